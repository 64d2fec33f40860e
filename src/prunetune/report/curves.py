"""A run's accuracy by stage, on the same questions: rounds may be asked fewer than original and final are.

Where stages were asked different numbers of questions, a curve through their recorded accuracies would compare
different questions. So the curve takes the questions that every stage answered, and what was measured on more of them
stands beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

from prunetune.common.stats import stderr, wilson
from prunetune.report.pairs import read_samples
from prunetune.runs.reading import RunRecord
from prunetune.runs.records import EvalRecord, StageRecord


@dataclass(frozen=True)
class Point:
    """One stage's accuracy with its standard error, shares of 1, on n questions (None: not recorded)."""

    stage: StageRecord
    value: float
    error: float
    n: int | None

    @property
    def bar(self) -> tuple[float, float]:
        """How far its error bar goes down and up: one standard error; Wilson's interval where all or none are right."""
        if not self.n or 0 < self.value < 1:
            return self.error, self.error
        low, high = wilson(round(self.value * self.n), self.n)
        return max(0.0, self.value - low), max(0.0, high - self.value)


@dataclass(frozen=True)
class Curve:
    """`line`: every stage, on the same questions where the samples allow it. `full`: those measured on more."""

    task: str
    line: tuple[Point, ...]
    full: tuple[Point, ...]

    @property
    def n(self) -> int | None:
        """Questions behind the line; None if they differ from stage to stage."""
        ns = {p.n for p in self.line}
        return next(iter(ns)) if len(ns) == 1 else None


def curve_of(run: RunRecord, task: str) -> Curve:
    """The original and the accepted stages of a run on one task."""
    stages = [s for s in (run.original, *run.accepted) if s is not None]
    found = [(s, e) for s in stages if (e := s.eval_of(task)) is not None]
    recorded = tuple(_point(s, e) for s, e in found)
    if len({e.n for _, e in found}) < 2:
        return Curve(task, recorded, ())
    samples = [read_samples(run.folder(s), task) for s, _ in found]
    first = samples[0]
    shared = [i for i in first if all(i in other and other[i].question == first[i].question for other in samples)]
    if not shared:
        return Curve(task, recorded, ())
    line = []
    for (s, _), own in zip(found, samples, strict=True):
        right = sum(own[i].correct for i in shared)
        line.append(Point(s, right / len(shared), stderr(right, len(shared)), len(shared)))
    return Curve(task, tuple(line), tuple(p for p in recorded if (p.n or 0) > len(shared)))


def _point(stage: StageRecord, e: EvalRecord) -> Point:
    return Point(stage, e.value, e.stderr or 0.0, e.n)
