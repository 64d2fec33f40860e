"""A finished model in another format, loaded again and held against the one that it was made of.

    print(export(Path("runs/demo"), Path("demo.gguf"), quantize="q8_0").text())

A GGUF file is made by llama.cpp's own converter where that is found and knows the model, else by the gguf package
(`publish.gguf`). Types that neither makes (`q4_k_m` …) need llama.cpp's `llama-quantize`. Whatever made it, the file is
read again by transformers' GGUF loader, and its perplexity stands beside the original's; where llama.cpp can be asked,
so do its greedy answers.
"""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from prunetune.common import units as human
from prunetune.common.outputs import output_file
from prunetune.common.progress import Watch
from prunetune.common.reading import read_text
from prunetune.errors import BadCheckpoint, DataError, MissingExtra, MissingPath, UnknownName
from prunetune.models.folders import load_gguf, load_model, load_tokenizer, model_sha
from prunetune.publish.child import ChildError, run
from prunetune.publish.engines import CONVERTER, answered, convert, tool, without_llama_cpp
from prunetune.publish.exported import NO_TEXT, Exported, bytes_of, own_text, perplexity_of, row
from prunetune.publish.gguf.write import TYPES, write_gguf
from prunetune.publish.greedy import prompts_of, reference
from prunetune.publish.inputs import final_of
from prunetune.runs.reading import RunRecord

if TYPE_CHECKING:
    pass

BY_CONVERTER = ("f32", "bf16", "f16", "q8_0")
"""Types that llama.cpp's converter writes itself."""
BY_QUANTIZER = ("q6_k", "q5_k_m", "q5_k_s", "q4_k_m", "q4_k_s", "q3_k_m", "q3_k_s", "q2_k", "iq4_xs", "iq4_nl")
"""Types that only llama-quantize makes."""
FAITHFUL = ("f32", "bf16", "f16")
"""Types that must give the same model: what parts from it there is a fault of the file."""
FAULT = 0.01
"""Share by which the perplexity of a faithful file may differ from the original's."""


def export(
    source: Path, out: Path, *, quantize: str = "f16", text: Path | None = None, converter: str | None = None
) -> Exported:
    """Write a model as a GGUF file, read it again, and measure it.

    Args:
        source: A finished run folder, or a model folder.
        out: The file.
        quantize: The type of its matrices: one of `TYPES` or `BY_QUANTIZER`.
        text: A text to measure the perplexity on. None: a run's questions with the original's right answers.
        converter: llama.cpp's convert_hf_to_gguf.py; None: looked for.

    Raises:
        UnknownName: no such type. MissingExtra: the gguf package is not installed. MissingPath: no model, text or
            converter. UnsupportedModel: A GGUF file would be another model. NotWritable: `out` is not ours.
    """
    if quantize not in (*TYPES, *BY_QUANTIZER):
        raise UnknownName("type of a GGUF file", quantize, (*TYPES, *BY_QUANTIZER))
    _need_gguf()
    if converter is not None and not Path(converter).is_file():
        raise MissingPath("no such converter", value=converter, fix="the path of convert_hf_to_gguf.py")
    final, record = final_of(source)
    final = final.resolve()
    words = read_text(text, "text") if text is not None else own_text(record)
    key = {"export": model_sha(final), "quantize": quantize}
    with output_file(out, key=key, say=Watch().line) as tmp:
        by, notes = _make(final, tmp, quantize, converter or tool(*CONVERTER))
    return _measured(final, record, out, by, quantize, words, notes)


def _need_gguf() -> None:
    if importlib.util.find_spec("gguf") is None:
        raise MissingExtra("gguf", "gguf", "writing a GGUF file")


def _make(final: Path, path: Path, quantize: str, converter: str | None) -> tuple[str, list[str]]:
    """(what wrote the file, notes)."""
    quantizer = tool("llama-quantize")
    if quantize in BY_QUANTIZER and quantizer is None:
        raise MissingPath(
            "this type is made by llama.cpp's llama-quantize alone, which is not in $LLAMA_CPP nor on PATH",
            value=quantize,
            valid=f"without it: {', '.join(TYPES)}",
            fix="build llama.cpp and set LLAMA_CPP to its folder, or take q4_0 or q8_0",
        )
    if quantizer is not None and quantize not in FAITHFUL:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".whole-") as folder:
            whole = Path(folder) / "whole.gguf"
            by, notes = _whole(final, whole, "bf16", converter)
            try:
                run([quantizer, str(whole), str(path), quantize.upper()])
            except ChildError as e:
                raise BadCheckpoint(
                    f"llama-quantize cannot make {quantize} of this model ({e})", value=str(final)
                ) from e
        return f"{by} and llama-quantize", notes
    return _whole(final, path, quantize, converter)


def _whole(final: Path, path: Path, kind: str, converter: str | None) -> tuple[str, list[str]]:
    notes: list[str] = []
    if converter is not None and kind in BY_CONVERTER:
        try:
            convert(converter, final, path, kind)
            return "llama.cpp's converter", notes
        except ChildError as e:
            notes = [f"llama.cpp's converter could not write it ({e}); the gguf package did"]
    kinds = write_gguf(final, path, kind)
    aside = sum(n for name, n in kinds.items() if name not in (kind, "f32"))
    if aside:
        others = ", ".join(f"{n} {name}" for name, n in kinds.items() if name not in (kind, "f32"))
        notes.append(f"of the matrices, {others} and the rest {kind} (embedding and head keep 8 bits)")
    return "the gguf package", notes


def _measured(
    final: Path, record: RunRecord | None, out: Path, by: str, quantize: str, text: str | None, notes: list[str]
) -> Exported:
    import torch

    faults: list[str] = []
    before = after = None
    try:
        again = load_gguf(out, torch.float32)
        if text is None:
            notes.append(NO_TEXT)
        else:
            tokenizer = load_tokenizer(final)
            after = perplexity_of(again, tokenizer, text)
            before = perplexity_of(load_model(final, torch.float32), tokenizer, text)
            if quantize in FAITHFUL and abs(after.perplexity / before.perplexity - 1) > FAULT:
                faults.append(f"its perplexity is {after.perplexity:.4g}, the model's {before.perplexity:.4g}")
    except DataError:
        raise
    except Exception as e:  # whatever a reader of a file raises is a fault of the file
        faults.append(f"transformers cannot read it again: {e}")
    answers, wrong, missing = _answers(final, record, out, quantize)
    rows = (row("the model", bytes_of(final), before, human.DASH), row(quantize, out.stat().st_size, after, answers))
    return Exported(str(out), by, rows, (*faults, *wrong), (*notes, *missing))


def _answers(final: Path, record: RunRecord | None, out: Path, quantize: str) -> tuple[str, list[str], list[str]]:
    """(for the table, faults, notes)."""
    if (missing := without_llama_cpp()) is not None:
        return human.DASH, [], [f"not asked in llama.cpp: {missing}"]
    try:
        greedy = reference(final, prompts_of(record))
        parted, misread = answered(out, final, greedy)
    except ChildError as e:
        return human.DASH, [f"llama.cpp cannot answer: {e}"], []
    same = sum(at is None for at in parted)
    faults = [misread] if misread else []
    if quantize in FAITHFUL and same < len(parted):
        faults.append(f"llama.cpp gives other greedy tokens on {len(parted) - same} of {len(parted)} prompts")
    return f"the same on {same} of {len(parted)}", faults, []
