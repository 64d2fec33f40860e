"""Figures of a run: accuracy against size, by round (Fig. 3), loss, what was removed, time. Records in, SVG out.

A figure whose records are missing is left out, never drawn empty.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from prunetune import human
from prunetune.draw import GRID, INK, SERIES, Plot, blank, plot
from prunetune.heatmap import removed
from prunetune.records import ACTIONS, EvalRecord, RunRecord, StageRecord


def plots(run: RunRecord) -> list[Plot]:
    """Every figure that the run's records allow, in the report's order."""
    makers: tuple[Callable[[RunRecord], Plot | None], ...] = (
        by_size,
        by_round,
        saw,
        removed,
        losses,
        rewards,
        time_spent,
    )
    return [p for p in (make(run) for make in makers) if p is not None]


def _measured(stages: Sequence[StageRecord], task: str) -> list[tuple[StageRecord, EvalRecord]]:
    return [(s, e) for s in stages if (e := s.eval_of(task)) is not None]


def _bars(axes: Axes, xs: Sequence[float], evals: Sequence[EvalRecord], colour: str, **style: Any) -> None:
    """Points of accuracy in percent with one standard error either way."""
    axes.errorbar(
        xs, [100 * e.value for e in evals], yerr=[100 * (e.stderr or 0.0) for e in evals],
        color=colour, capsize=2.5, elinewidth=1, markeredgecolor=colour, **style,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ accuracy


def by_size(run: RunRecord) -> Plot | None:
    """Accuracy against the share of parameters, the original to the pruned-once control."""
    if run.original is None or not run.original.params:
        return None
    base = float(run.original.params or 1)
    stages = [s for s in (run.original, *run.accepted) if s.params]
    if len(stages) < 2 or not run.tasks:
        return None
    control = run.control.final if run.control is not None else None

    def draw() -> Figure:
        figure, axes = blank(3.0)
        for colour, task in zip(SERIES, run.tasks, strict=False):
            points = _measured(stages, task)
            _bars(
                axes,
                [100 * (s.params or 0) / base for s, _ in points],
                [e for _, e in points],
                colour,
                marker="o",
                label=task,
            )
            if points and points[0][0] is run.original:
                axes.axhline(100 * points[0][1].value, color=colour, linewidth=0.8, linestyle=(0, (2, 3)))
            if control is not None and control.params and (e := control.eval_of(task)) is not None:
                _bars(
                    axes,
                    [100 * (control.params or 0) / base],
                    [e],
                    colour,
                    marker="D",
                    markerfacecolor="none",
                    linestyle="none",
                    label=f"{task}, pruned once",
                )
        axes.invert_xaxis()
        axes.set_xlabel("parameters, % of the original")
        axes.set_ylabel("accuracy, %")
        axes.legend(loc="lower left", fontsize=7.5)
        axes.margins(x=0.06, y=0.12)
        return figure

    once = " The open diamond is the same size pruned once." if control is not None else ""
    caption = f"Each point is a round; bars are one standard error, the dotted line is the original.{once}"
    return plot("accuracy-size", "Accuracy against size", caption, draw)


def by_round(run: RunRecord) -> Plot | None:
    """Accuracy of every task by round (Fig. 3); rejected attempts are crosses."""
    stages = [s for s in (run.original, *run.accepted) if s is not None]
    if len(stages) < 2 or not run.tasks:
        return None
    place = {id(s): i for i, s in enumerate(stages)}
    rejected = [s for s in run.stages if not s.accepted]

    def label(s: StageRecord) -> str:
        share = human.ratio(s.params, run.original.params if run.original else None)
        return ("orig." if s is run.original else str(s.index)) + (f"\n{100 * share:.0f} %" if share else "")

    def draw() -> Figure:
        figure, axes = blank(2.75)
        for colour, task in zip(SERIES, run.tasks, strict=False):
            points = _measured(stages, task)
            _bars(axes, [place[id(s)] for s, _ in points], [e for _, e in points], colour, marker="o", label=task)
            for s, e in _measured(rejected, task):
                axes.plot(
                    [sum(1 for a in run.accepted if a.index < s.index) + 1],
                    [100 * e.value],
                    marker="x",
                    color=colour,
                    linestyle="none",
                )
        axes.set_xticks(range(len(stages)), [label(s) for s in stages])
        axes.set_xlabel("round, and parameters left")
        axes.set_ylabel("accuracy, %")
        axes.set_ylim(top=min(101.5, axes.get_ylim()[1] + 1))
        if len(run.tasks) > 1:
            axes.legend(loc="lower left", ncols=2)
        return figure

    crosses = " Crosses are rejected attempts." if rejected else ""
    ns = sorted({e.n for s in stages for e in s.evals if e.n})
    asked = f" Stages were asked {' or '.join(f'{n:,}' for n in ns)} questions." if len(ns) > len(run.tasks) else ""
    return plot(
        "accuracy-round",
        "Accuracy by round",
        f"All tasks after each round; bars are one standard error.{asked}{crosses}",
        draw,
    )


# ------------------------------------------------------------------------------------------------------ loss and time


def curve(run: RunRecord, key: str) -> list[tuple[str, list[float], list[float]]]:
    """(stage name, steps counted over the whole run, values) for a key of the tuning logs."""
    out, start = [], 0
    for stage in run.accepted:
        xs: list[float] = []
        ys: list[float] = []
        for result in stage.tune:
            rows = [r for r in result.log if isinstance(r.get(key), int | float) and "step" in r]
            xs += [start + r["step"] for r in rows]
            ys += [float(r[key]) for r in rows]
            start += max([result.steps or 0, *(int(r["step"]) for r in rows)])
        if xs:
            out.append((stage.name, xs, ys))
    return out


def _curves(run: RunRecord, key: str, name: str, title: str, caption: str) -> Plot | None:
    found = curve(run, key)
    if not found:
        return None

    def draw() -> Figure:
        figure, axes = blank(2.5)
        for i, (stage, xs, ys) in enumerate(found):
            axes.plot(xs, ys, color=SERIES[i % len(SERIES)], linewidth=1.4, marker="." if len(xs) < 3 else None)
            axes.annotate(
                stage.split("-")[0],
                (xs[0], max(ys)),
                xytext=(3, 4),
                textcoords="offset points",
                fontsize=7.5,
                color=SERIES[i % len(SERIES)],
            )
            if i:
                axes.axvline(xs[0] - 0.5, color=GRID, linewidth=0.6)
        axes.set_xlabel("recovery step, over all rounds")
        axes.set_ylabel(key)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.margins(y=0.14)
        return figure

    return plot(name, title, caption, draw)


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


def losses(run: RunRecord) -> Plot | None:
    """Training loss over all rounds."""
    return _curves(
        run,
        "loss",
        "loss",
        "Recovery loss",
        "Training loss as logged, step by step; the numbers are the rounds.",
    )


def rewards(run: RunRecord) -> Plot | None:
    """Reward over all rounds, where a round was recovered with GRPO."""
    return _curves(run, "reward", "reward", "Reward", "Mean reward of the rollouts by step.")


def time_spent(run: RunRecord) -> Plot | None:
    """Wall time of every stage, by action."""
    stages = [s for s in (run.original, *run.stages) if s is not None and s.seconds]
    if not stages:
        return None
    longest = max(s.total_seconds or 0.0 for s in stages)
    unit, per = ("hours", 3600.0) if longest > 7200 else ("minutes", 60.0) if longest > 120 else ("seconds", 1.0)
    actions = [*ACTIONS, *sorted({a for s in stages for a in s.seconds} - set(ACTIONS))]

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
    lines = [
        (n, [s for s in (r.original, *r.accepted) if s is not None and s.params])
        for n, r in zip(names, runs, strict=True)
    ]
    lines = [(n, stages) for n, stages in lines if stages]
    every = [s for _, stages in lines for s in stages]
    common = [t for t in dict.fromkeys(e.task for s in every for e in s.evals) if all(s.eval_of(t) for s in every)]
    base = next((float(r.original.params) for r in runs if r.original and r.original.params), None)
    if not common or base is None:
        return None

    def draw() -> Figure:
        figure, axes = blank(3.0)
        for i, (name, stages) in enumerate(lines):
            found = [[e for t in common if (e := s.eval_of(t)) is not None] for s in stages]
            means = [100 * sum(e.value for e in es) / len(es) for es in found]
            errors = [100 * sum((e.stderr or 0.0) ** 2 for e in es) ** 0.5 / len(es) for es in found]
            shares = [100 * (s.params or 0) / base for s in stages]
            axes.errorbar(
                shares,
                means,
                yerr=errors,
                color=SERIES[i % len(SERIES)],
                marker="o",
                capsize=2.5,
                elinewidth=1,
                label=name,
            )
        axes.invert_xaxis()
        axes.set_xlabel("parameters, % of the first original")
        axes.set_ylabel("mean accuracy, %" if len(common) > 1 else "accuracy, %")
        axes.legend(loc="lower left")
        axes.margins(x=0.06, y=0.12)
        return figure

    caption = f"Mean over {', '.join(common)}; bars are one standard error, a point is a round."
    return plot("across-runs", "Accuracy against size, across runs", caption, draw)
