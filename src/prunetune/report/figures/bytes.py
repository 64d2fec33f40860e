"""Accuracy against the bytes of the weights: the original, every rung or the final model, and the rivals."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from prunetune.common import units as human
from prunetune.report.figures.draw import INK, SERIES, Plot, blank, plot
from prunetune.runs.reading import RunRecord
from prunetune.runs.records import EvalRecord, StageRecord

Marked = tuple[float, EvalRecord, str]
"""(bytes, result, name)."""


def by_bytes(run: RunRecord) -> Plot | None:
    """What each model that could be taken is worth at its bytes; None where there are neither rungs nor rivals."""
    tasks = [(colour, t) for colour, t in zip(SERIES, run.shares, strict=False)]
    own = {t: _own(run, t) for _, t in tasks}
    rivals = {t: _rivals(run, t) for _, t in tasks}
    if not (run.summary.ladder or run.summary.rivals) or not any(own.values()):
        return None

    def draw() -> Figure:
        figure, axes = blank(3.0)
        for colour, task in tasks:
            kinds: tuple[tuple[str, list[Marked], dict[str, Any]], ...] = (
                (task, own[task], {"marker": "o"}),
                (f"{task}, rivals", rivals[task], {"marker": "^", "linestyle": "none"}),
            )
            for label, found, style in kinds:
                at, values, errors = ([f(m) for m in found] for f in (_bytes, _percent, _error))
                if found:
                    axes.errorbar(
                        at, values, yerr=errors, color=colour, capsize=2.5, elinewidth=1, label=label, **style
                    )
                for name, x, y in zip((m[2] for m in found), at, values, strict=True):
                    axes.annotate(name, (x, y), (0, 7), textcoords="offset points", ha="center", color=INK, fontsize=7)
        axes.invert_xaxis()
        axes.xaxis.set_major_formatter(lambda x, _: human.size(x))
        axes.set_xlabel("bytes of the weights")
        axes.set_ylabel("accuracy, %")
        figure.legend(loc="outside upper center", ncols=2, fontsize=7.5)
        axes.margins(x=0.1, y=0.15)
        return figure

    caption = "Dots are ours, triangles rivals, all on all questions; bars are one standard error."
    return plot("accuracy-bytes", "Accuracy against bytes", caption, draw)


def _own(run: RunRecord, task: str) -> list[Marked]:
    """The original and our finished models, the largest first."""
    stages: list[tuple[str, StageRecord | None]] = [("original", run.original)]
    named = {s.name: s for s in run.stages}
    stages += [(f"{r.share:g}", named.get(r.stage)) for r in run.summary.ladder] or [("final", run.final)]
    return [
        (float(s.cost.weight_bytes), e, name)
        for name, s in stages
        if s is not None and s.cost.weight_bytes and (e := s.eval_of(task)) is not None
    ]


def _rivals(run: RunRecord, task: str) -> list[Marked]:
    found = ((r, next((e for e in r.evals if e.task == task), None)) for r in run.summary.rivals)
    return [(float(r.weight_bytes), e, r.name.rstrip("/").rsplit("/", 1)[-1]) for r, e in found if e and r.weight_bytes]


def _bytes(found: Marked) -> float:
    return found[0]


def _percent(found: Marked) -> float:
    return 100 * found[1].value


def _error(found: Marked) -> float:
    return 100 * (found[1].stderr or 0.0)
