"""What plain transformers answers, token by token: the measure of every other engine."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prunetune.publish.child import ISOLATED, child
from prunetune.report.pairs import read_samples
from prunetune.runs.reading import RunRecord

PROMPTS = 6
NEW_TOKENS = 32
TIE = 0.01
"""Two next tokens whose logits differ by less than this share of all logits' standard deviation are a tie: an engine
with another order of sums, or 16-bit keys and values, may take either."""

# Greedy whatever the model's generation config says of sampling and penalties.
_GREEDY = """
from transformers import GenerationConfig
def greedy(model, ids):
    ends = model.generation_config.eos_token_id
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=0)
    with torch.inference_mode():
        out = model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                             max_new_tokens=args["new_tokens"], do_sample=False)
        new = out[0, len(ids):].tolist()
        logits = model(out).logits[0, len(ids) - 1 : -1].float()
    best = logits.topk(2, -1).values
    return new, ((best[:, 0] - best[:, 1]) / logits.std(-1)).tolist(), ends
"""

_REFERENCE = """
tokenizer = AutoTokenizer.from_pretrained(args["model"])
model, out = load(), {"ids": [], "tokens": [], "gaps": [], "texts": []}
for prompt in args["prompts"]:
    ids = tokenizer(prompt)["input_ids"]
    new, gaps, ends = greedy(model, ids)
    ends = ends if isinstance(ends, list) else [ends]
    if new and new[-1] in ends:
        new, gaps = new[:-1], gaps[:-1]
    text = tokenizer.decode(new, skip_special_tokens=True)
    for key, value in zip(out, (ids, new, gaps, text)):
        out[key].append(value)
done({**out, "prunetune": "prunetune" in sys.modules})
"""


@dataclass(frozen=True)
class Greedy:
    """The greedy answers of plain transformers in fp32.

    Attributes:
        prompts: What was asked.
        ids: Each prompt's token ids.
        tokens: Each answer's, its end token left out; at most `NEW_TOKENS`.
        gaps: At each token the distance to the second best, in standard deviations of the logits.
        texts: Each answer as text.
    """

    prompts: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]
    tokens: tuple[tuple[int, ...], ...]
    gaps: tuple[tuple[float, ...], ...]
    texts: tuple[str, ...]

    @property
    def count(self) -> int:
        """Tokens of all answers."""
        return sum(map(len, self.tokens))


def reference(model: Path, prompts: Sequence[str]) -> Greedy:
    """Ask plain transformers, where prunetune cannot be imported. ChildError if it cannot answer."""
    found = child(ISOLATED + _GREEDY + _REFERENCE, model=str(model), prompts=list(prompts), new_tokens=NEW_TOKENS)
    lists = [tuple(tuple(row) for row in found[key]) for key in ("ids", "tokens", "gaps")]
    return Greedy(tuple(prompts), lists[0], lists[1], lists[2], tuple(found["texts"]))


def prompts_of(run: RunRecord | None) -> list[str]:
    """The first evaluation questions as they were asked, and plain ones."""
    asked: list[str] = []
    if run is not None and run.final is not None:
        for task in run.tasks:
            samples = itertools.islice(read_samples(run.folder(run.final), task).values(), PROMPTS - 2)
            asked += [f"Question: {s.question[:2000]}\nAnswer:" for s in samples]
    plain = ["What is 12 + 30?", "Tom has 3 pens and buys 4 more. How many?", "What is 7 * 8?", "Is 91 a prime?"]
    asked = asked[: PROMPTS - 2]
    return asked + [f"Question: {q}\nAnswer:" for q in plain][: PROMPTS - len(asked)]


def parting(greedy: Greedy, answers: Sequence[Sequence[int]]) -> list[int | None]:
    """For each answer the place of its first token that differs, ties aside; None: it is the same."""
    return [_parts(*row) for row in zip(greedy.tokens, greedy.gaps, answers, strict=True)]


def parting_texts(greedy: Greedy, texts: Sequence[str], pieces: Sequence[Sequence[str]]) -> list[int | None]:
    """The same for engines that give text alone; `pieces`: each answer's text up to each of its tokens."""
    found: list[int | None] = []
    for ours, gaps, said, grown in zip(greedy.texts, greedy.gaps, texts, pieces, strict=True):
        if said.strip() == ours.strip():
            found.append(None)
            continue
        at = next((i for i, piece in enumerate(grown) if not said.strip().startswith(piece.strip())), len(grown))
        found.append(None if at < len(gaps) and gaps[at] < TIE else at)
    return found


def _parts(ours: Sequence[int], gaps: Sequence[float], theirs: Sequence[int]) -> int | None:
    for at, (a, b) in enumerate(itertools.zip_longest(ours, theirs)):
        if a != b:
            return None if at < len(gaps) and gaps[at] < TIE else at
    return None


def said(greedy: Greedy, parted: Sequence[int | None]) -> tuple[bool, str]:
    """Whether all answers are the same, in words with the figure."""
    others = [at for at in parted if at is not None]
    if not others:
        return True, f"the same {greedy.count} greedy tokens on {len(parted)} prompts as plain transformers"
    return False, (
        f"other greedy tokens than plain transformers on {len(others)} of {len(parted)} prompts, "
        f"the earliest from token {min(others) + 1} on: there it is another model"
    )
