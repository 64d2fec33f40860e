"""Figures of a run: accuracy against size, by round (Fig. 3), loss, what was removed, time. Records in, SVG out.

A figure whose records are missing is left out, never drawn empty.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prunetune.common import units as human
from prunetune.report.curves import Curve, Point, curve_of
from prunetune.report.figures.bytes import by_bytes
from prunetune.report.figures.draw import GRID, INK, SERIES, Plot, blank, plot
from prunetune.report.figures.heatmap import removed
from prunetune.report.figures.learning import losses, rollouts
from prunetune.runs.reading import RunRecord
from prunetune.runs.records import ACTIONS, StageRecord

BARS = "bars are one standard error (all or none right: Wilson's interval)"


def plots(run: RunRecord) -> list[Plot]:
    """Every figure that the run's records allow, in the report's order."""
    makers: tuple[Callable[[RunRecord], Plot | None], ...] = (
        by_size,
        by_bytes,
        by_round,
        controls,
        saw,
        removed,
        losses,
        rollouts,
        time_spent,
    )
    return [p for p in (make(run) for make in makers) if p is not None]


def _bars(axes: Axes, xs: Sequence[float], points: Sequence[Point], colour: str, **style: Any) -> None:
    """Points of accuracy in percent with one standard error either way."""
    axes.errorbar(
        xs, [100 * p.value for p in points], yerr=[[100 * p.bar[side] for p in points] for side in (0, 1)],
        color=colour, capsize=2.5, elinewidth=1, markeredgecolor=colour, **style,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ accuracy

FULL: dict[str, Any] = {"marker": "s", "linestyle": "none", "markersize": 6}


def _curves_of(run: RunRecord) -> list[tuple[str, Curve]]:
    found = [(colour, curve_of(run, task)) for colour, task in zip(SERIES, run.shares, strict=False)]
    return [(colour, c) for colour, c in found if c.line]


def _labels(curve: Curve) -> tuple[str, str]:
    """Legend entries of a curve's line and of the points measured on more questions."""
    if not curve.full:
        return curve.task, ""
    ns = {p.n for p in curve.full}
    return f"{curve.task}, the same {curve.n:,}", f"{curve.task}, all {next(iter(ns)):,}" if len(ns) == 1 else "all"


def _asked(curves: list[tuple[str, Curve]]) -> str:
    """A sentence for the caption where stages were asked different numbers of questions."""
    if not any(c.full for _, c in curves):
        return ""
    return " The line is on the questions that every stage was asked; squares are on all of them."


def by_size(run: RunRecord) -> Plot | None:
    """Accuracy against the share of parameters, the original to the control."""
    base = float(run.original.params or 0) if run.original is not None else 0.0
    curves = _curves_of(run)
    if not base or not curves or not run.accepted:
        return None
    control = run.control.final if run.control is not None else None
    called = run.summary.control.name if run.summary.control is not None else "pruned once"

    def share(s: StageRecord) -> float:
        return 100 * (s.params or 0) / base

    def draw() -> Figure:
        figure, axes = blank(3.2)
        for colour, c in curves:
            line, full = _labels(c)
            known = [p for p in c.line if p.stage.params]
            _bars(axes, [share(p.stage) for p in known], known, colour, marker="o", label=line)
            if c.full:
                _bars(axes, [share(p.stage) for p in c.full], c.full, colour, label=full, **FULL)
            best = {id(p.stage): p for p in (*c.line, *c.full)}  # a stage's figure on the most questions
            if run.original is not None and id(run.original) in best:
                axes.axhline(100 * best[id(run.original)].value, color=colour, linewidth=0.8, linestyle=(0, (2, 3)))
            if control is not None and control.params and (e := control.eval_of(c.task)) is not None:
                once = Point(control, e.value, e.stderr or 0.0, e.n)
                name = f"{c.task}, {called}"
                style = {"marker": "D", "markerfacecolor": "none", "linestyle": "none", "markersize": 7}
                _bars(axes, [share(control)], [once], colour, label=name, **style)
        axes.invert_xaxis()
        axes.set_xlabel("parameters, % of the original")
        axes.set_ylabel("accuracy, %")
        figure.legend(loc="outside upper center", ncols=2, fontsize=7.5)
        axes.margins(x=0.06, y=0.12)
        return figure

    once = f" The open diamond is the same size, {called}." if control is not None else ""
    caption = f"Each point is a round; {BARS}, the dotted line is the original.{_asked(curves)}{once}"
    return plot("accuracy-size", "Accuracy against size", caption, draw)


def by_round(run: RunRecord) -> Plot | None:
    """Accuracy of every task by round (Fig. 3); rejected attempts are crosses."""
    stages = [s for s in (run.original, *run.accepted) if s is not None]
    curves = _curves_of(run)
    if len(stages) < 2 or not curves:
        return None
    place = {id(s): i for i, s in enumerate(stages)}
    rejected = [s for s in run.stages if not s.accepted]

    def label(s: StageRecord) -> str:
        left = human.ratio(s.params, run.original.params if run.original else None)
        return ("orig." if s is run.original else str(s.index)) + (f"\n{100 * left:.0f} %" if left else "")

    def draw() -> Figure:
        figure, axes = blank(3.0)
        for colour, c in curves:
            line, full = _labels(c)
            _bars(axes, [place[id(p.stage)] for p in c.line], c.line, colour, marker="o", label=line)
            if c.full:
                _bars(axes, [place[id(p.stage)] for p in c.full], c.full, colour, label=full, **FULL)
            for s in rejected:
                if (e := s.eval_of(c.task)) is not None:
                    at = sum(a.index < s.index for a in run.accepted) + 1
                    axes.plot([at], [100 * e.value], marker="x", color=colour, linestyle="none")
        axes.set_xticks(range(len(stages)), [label(s) for s in stages])
        axes.set_xlabel("round, and parameters left")
        axes.set_ylabel("accuracy, %")
        axes.set_ylim(top=min(101.5, axes.get_ylim()[1] + 1))
        if len(curves) > 1 or any(c.full for _, c in curves):
            figure.legend(loc="outside upper center", ncols=2)
        return figure

    crosses = " Crosses are rejected attempts." if rejected else ""
    caption = f"All tasks after each round; {BARS}.{_asked(curves)}{crosses}"
    return plot("accuracy-round", "Accuracy by round", caption, draw)


def controls(run: RunRecord) -> Plot | None:
    """What is not a share of right answers (perplexities) by round, as a ratio to the original's."""
    stages = [s for s in (run.original, *run.accepted) if s is not None]
    others = [t for t in run.tasks if t not in run.shares]
    start = {
        t: e for t in others if run.original is not None and (e := run.original.eval_of(t)) is not None and e.value
    }
    if len(stages) < 2 or not start:
        return None

    def draw() -> Figure:
        figure, axes = blank(2.5)
        for colour, (task, first) in zip(cycle(SERIES), start.items(), strict=False):
            found = [(i, e) for i, s in enumerate(stages) if (e := s.eval_of(task)) is not None]
            axes.errorbar(
                [i for i, _ in found], [e.value / first.value for _, e in found],
                yerr=[(e.stderr or 0.0) / first.value for _, e in found],
                color=colour, marker="o", capsize=2.5, elinewidth=1, label=f"{first.label()} (original {first.text()})",
            )  # fmt: skip
        axes.axhline(1.0, color=GRID, linewidth=0.8)
        axes.set_xticks(range(len(stages)), ["orig." if s is run.original else str(s.index) for s in stages])
        axes.set_xlabel("round")
        axes.set_ylabel("times the original's")
        figure.legend(loc="outside upper center", fontsize=7.5)
        return figure

    caption = "Figures that are not accuracies, divided by the original's; of a perplexity, above 1 is worse."
    return plot("controls-round", "General ability by round", caption, draw)


# ------------------------------------------------------------------------------------------------------ loss and time


def saw(run: RunRecord) -> Plot | None:
    """Held-out loss up with every cut and down with every recovery: the loop at work."""
    rows = [s for s in run.accepted if s.pruned_loss is not None and s.held_out_loss is not None]
    start = run.original.held_out_loss if run.original else None
    if not rows or start is None:
        return None

    def draw() -> Figure:
        figure, axes = blank(2.75)
        before = start
        for i, s in enumerate(rows):
            cut, tuned = s.pruned_loss or 0.0, s.held_out_loss or 0.0
            first = i == 0
            axes.plot(
                [i, i + 0.5], [before, cut], color=SERIES[4], linestyle=(0, (3, 2)), label="pruned" if first else None
            )
            axes.plot(
                [i + 0.5, i + 1],
                [cut, tuned],
                color=SERIES[2],
                marker="o",
                markevery=[1],
                label="tuned" if first else None,
            )
            before = tuned
        axes.plot([0], [start], marker="o", color=INK)
        axes.set_xticks(range(len(rows) + 1), ["orig.", *(str(s.index) for s in rows)])
        axes.set_xlabel("round")
        axes.set_ylabel("held-out loss")
        axes.legend(loc="upper left", ncols=2)
        axes.margins(y=0.18)
        return figure

    caption = "Loss on held-out sequences: dashed is what a round's pruning did to it, solid what its tuning did."
    return plot("held-out-loss", "Prune, tune, repeat", caption, draw)


def time_spent(run: RunRecord) -> Plot | None:
    """Wall time of every stage, by action."""
    stages = [s for s in (run.original, *run.stages) if s is not None and s.seconds]
    if not stages:
        return None
    longest = max(s.total_seconds or 0.0 for s in stages)
    unit, per = ("hours", 3600.0) if longest > 7200 else ("minutes", 60.0) if longest > 120 else ("seconds", 1.0)
    known = [*ACTIONS, *sorted({a for s in stages for a in s.seconds} - set(ACTIONS))]
    actions = [a for a in known if any(s.seconds.get(a) for s in stages)]

    def draw() -> Figure:
        figure, axes = blank(0.9 + 0.22 * max(len(stages), 3))
        left = np.zeros(len(stages))
        for colour, action in zip(SERIES, actions, strict=False):
            widths = np.array([s.seconds.get(action, 0.0) / per for s in stages])
            if widths.any():
                axes.barh(range(len(stages)), widths, left=left, color=colour, height=0.62, label=action)
                left += widths
        axes.set_yticks(
            range(len(stages)), [s.name if s.attempt == 1 else f"{s.name} (attempt {s.attempt})" for s in stages]
        )
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(unit)
        figure.legend(
            loc="outside upper center", ncols=len(actions), handlelength=0.9, columnspacing=1.0, handletextpad=0.4
        )
        return figure

    return plot("time", "Where the time went", "Wall time of each stage by action.", draw)


# ----------------------------------------------------------------------------------------------------- across runs


def across(runs: Sequence[RunRecord], names: Sequence[str]) -> Plot | None:
    """Mean accuracy over the data sets against parameters left, a line a run (Fig. 4).

    Only data sets that every stage shown measured are averaged, so that no line is easier than another.
    """
    curves = [{t: {id(p.stage): p for p in curve_of(r, t).line} for t in r.shares} for r in runs]
    stages = [[s for s in (r.original, *r.accepted) if s is not None and s.params] for r in runs]
    tasks = dict.fromkeys(t for r in runs for t in r.shares)
    common = [
        t for t in tasks
        if all(t in c and id(s) in c[t] for c, own in zip(curves, stages, strict=True) for s in own)
    ]  # fmt: skip
    base = next((float(r.original.params) for r in runs if r.original and r.original.params), None)
    if not common or base is None:
        return None

    def draw() -> Figure:
        figure, axes = blank(3.0)
        for colour, name, c, own in zip(cycle(SERIES), names, curves, stages, strict=False):
            found = [[c[t][id(s)] for t in common] for s in own]
            means = [100 * sum(p.value for p in points) / len(points) for points in found]
            errors = [100 * sum(p.error**2 for p in points) ** 0.5 / len(points) for points in found]
            shares = [100 * (s.params or 0) / base for s in own]
            axes.errorbar(shares, means, yerr=errors, color=colour, marker="o", capsize=2.5, elinewidth=1, label=name)
        axes.invert_xaxis()
        axes.set_xlabel("parameters, % of the first original")
        axes.set_ylabel("mean accuracy, %" if len(common) > 1 else "accuracy, %")
        axes.legend(loc="lower left")
        axes.margins(x=0.06, y=0.12)
        return figure

    caption = f"Mean over {', '.join(common)}; bars are one standard error, a point is a round."
    return plot("across-runs", "Accuracy against size, across runs", caption, draw)
