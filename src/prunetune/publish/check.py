"""Does the final model work where people will use it? Each answer is yes, no with the reason, or not installed.

    for line in check(Path("runs/demo")):
        print(line)             # yes  plain transformers: loads without prunetune, and generates the same 192 tokens …

A yes of an engine means the same greedy tokens as plain transformers on several prompts: an engine that loads a model
and answers may still compute another one. Every check runs in a child process of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prunetune.common.progress import bar
from prunetune.publish import engines
from prunetune.publish.child import ChildError
from prunetune.publish.greedy import NEW_TOKENS, Greedy, prompts_of, reference
from prunetune.publish.inputs import final_of

Engine = Callable[[Path, Greedy], tuple[bool | None, str]]


@dataclass(frozen=True)
class Line:
    """One check. `ok` is None where what it needs is not installed."""

    name: str
    ok: bool | None
    reason: str

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def check(run: Path) -> list[Line]:
    """Run every check on RUN/final, or on a model folder.

    Raises:
        MissingPath, BadCheckpoint: There is no final model to check.
    """
    final, record = final_of(run)
    final = final.resolve()
    name = "plain transformers"
    try:
        with bar("plain transformers", 1):
            greedy = reference(final, prompts_of(record))
    except ChildError as e:
        return [Line(name, False, str(e)), *(Line(n, False, f"{name} cannot answer") for n in ENGINES)]
    lines = [Line(name, *_same_here(final, greedy))]
    with bar("check", len(ENGINES)) as progress:
        for engine, run_it in ENGINES.items():
            lines.append(_line(engine, run_it, final, greedy))
            progress(len(lines) - 1, len(ENGINES))
    return lines


ENGINES: dict[str, Engine] = {
    "vLLM": engines.vllm,
    "GGUF and llama.cpp": engines.llama_cpp,
    "dynamic int8": engines.int8,
}


def _line(name: str, engine: Engine, final: Path, greedy: Greedy) -> Line:
    try:
        return Line(name, *engine(final, greedy))
    except ChildError as e:
        return Line(name, False, str(e))


def _same_here(final: Path, greedy: Greedy) -> tuple[bool, str]:
    """Whether our own loader, in this process, answers as plain transformers does without prunetune."""
    import torch

    from prunetune.models.folders import load_model, load_tokenizer
    from prunetune.models.generation import generate

    model, tokenizer = load_model(final, torch.float32), load_tokenizer(final)
    for prompt, ids, text in zip(greedy.prompts, greedy.ids, greedy.texts, strict=True):
        if tuple(tokenizer(prompt)["input_ids"]) != ids:
            return False, f"another tokenization of a prompt without prunetune: {prompt[:60]!r}"
        here = generate(model, tokenizer, [list(ids)], NEW_TOKENS)[0].text
        if here != text:
            return False, f"other tokens without prunetune: {text[:60]!r}, here {here[:60]!r}"
    count = f"{greedy.count} greedy tokens on {len(greedy.prompts)} prompts"
    return True, f"loads where prunetune is not importable, and generates the same {count} as here"
