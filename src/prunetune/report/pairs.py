"""Answered questions read back, and two models' answers to the same questions side by side (Fig. 2)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from prunetune.common.stats import Paired, kept_interval, pair
from prunetune.evaluation.samples import Sample, read_rows
from prunetune.runs.summary import Against, KeptRecord


def read_samples(stage_folder: Path, task: str) -> dict[str, Sample]:
    """The per-sample records of one task by question id, {} if there are none. BadCheckpoint for a broken line."""
    path = stage_folder / "eval" / f"{task.replace('/', '_')}.jsonl"
    if not path.is_file():
        path = stage_folder / "eval" / f"{task}.jsonl"
    return {s.id: s for s in read_rows(path, Sample, whole=False)}


@dataclass(frozen=True)
class SideBySide:
    """The same questions answered by two models; `examples` holds the first of each class by id (Fig. 2)."""

    task: str
    counts: Paired
    examples: dict[str, tuple[Sample, Sample]]


CLASSES = {"both right": (True, True), "lost": (True, False), "gained": (False, True), "both wrong": (False, False)}


def _by_id(name: str) -> tuple[str, int]:
    """Order ids as text, but for a number at the end: q-9 comes before q-10."""
    prefix = name.rstrip("0123456789")
    return prefix, int(name[len(prefix) :] or 0)


def side_by_side(task: str, first: dict[str, Sample], second: dict[str, Sample]) -> SideBySide | None:
    """Pair two models' samples on the questions that both answered; None if there is no such question.

    An id counts as shared only if its question is the same text: other seeds give other questions the same ids.
    """
    both = first.keys() & second.keys()
    shared = sorted((i for i in both if first[i].question == second[i].question), key=_by_id)
    if not shared:
        return None
    examples: dict[str, tuple[Sample, Sample]] = {}
    for name, verdicts in CLASSES.items():
        hit = next((i for i in shared if (first[i].correct, second[i].correct) == verdicts), None)
        if hit is not None:
            examples[name] = (first[hit], second[hit])
    return SideBySide(task, pair((first[i].correct, second[i].correct) for i in shared), examples)


def ahead(first: dict[str, Sample], second: dict[str, Sample]) -> Against | None:
    """How far the second model is ahead of the first on the questions that both answered; None if there are none."""
    found = side_by_side("", first, second)
    if found is None:
        return None
    low, high = found.counts.interval()
    return Against(difference=found.counts.difference, low=low, high=high, n=found.counts.n)


def keeps(first: dict[str, Sample], second: dict[str, Sample]) -> KeptRecord | None:
    """The share of the first model's accuracy that the second keeps; None if they share no question."""
    found = side_by_side("", first, second)
    if found is None:
        return None
    counts = found.counts
    right = counts.both + counts.lost
    low, high = kept_interval(counts)
    return KeptRecord(value=(counts.both + counts.gained) / right if right else None, low=low, high=high)


@dataclass(frozen=True)
class Answers:
    """One question as several models answered it, by the models' names."""

    question: str
    by: tuple[tuple[str, Sample], ...]


def one_question(
    first: dict[str, Sample], second: dict[str, Sample], control: dict[str, Sample], name: str
) -> Answers | None:
    """The first question by id that original and final model answer rightly and the control wrongly; else the first.

    Args:
        first: The original's samples.
        second: The final model's.
        control: The control's.
        name: What the control is called.

    Returns:
        None where the three share no question.
    """
    shared = sorted(
        (
            i
            for i in first.keys() & second.keys() & control.keys()
            if len({first[i].question, second[i].question, control[i].question}) == 1
        ),
        key=_by_id,
    )
    if not shared:
        return None
    telling = (i for i in shared if first[i].correct and second[i].correct and not control[i].correct)
    at = next(telling, shared[0])
    return Answers(first[at].question, (("original", first[at]), (name, control[at]), ("compacted", second[at])))
