"""Figures of a run: accuracy against size, by round (Fig. 3), loss, what was removed, time. Records in, SVG out.

Every figure is drawn once, in mid-tones that read on white and on black; `themed` then swaps each tone for a CSS
variable, so that the same drawing follows the page's light or dark theme and its font.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from prunetune import human
from prunetune.records import ACTIONS, EvalRecord, RunRecord, StageRecord

# Tones for standalone files (contrast about 4:1 on white and on near-black), and the CSS variable each becomes.
INK, GRID = "#747c87", "#b4bac3"
SERIES = ("#4c78dd", "#d9752b", "#2e9e77", "#9a67cf", "#d9566a", "#a08a1c", "#3196b5", "#8d6e63")
HEAT = ("#a9bfee", "#88a6ea", "#698fe4", "#4d76d4", "#3a5fb4", "#2c4a90")
GONE = "#d9566b"
CSS_NAMES = {
    INK: "--ink", GRID: "--grid", GONE: "--gone",
    **{c: f"--s{i}" for i, c in enumerate(SERIES)}, **{c: f"--h{i}" for i, c in enumerate(HEAT)},
}  # fmt: skip

STYLE: dict[str, Any] = {
    "svg.fonttype": "none", "font.family": ["DejaVu Sans"], "font.size": 8.5, "text.color": INK, "axes.labelcolor": INK,
    "axes.edgecolor": GRID, "xtick.color": GRID, "ytick.color": GRID, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "axes.grid": True, "grid.color": GRID, "grid.linewidth": 0.5, "grid.alpha": 0.45, "axes.axisbelow": True,
    "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False, "ytick.left": False,
    "legend.frameon": False, "legend.fontsize": 8, "lines.linewidth": 1.8, "lines.markersize": 5,
    "axes.facecolor": "none", "figure.facecolor": "none",
}  # fmt: skip
WIDE = 5.4  # inches; 389 units, so that text keeps its size on a phone


@dataclass(frozen=True)
class Plot:
    """One figure: file name without suffix, heading, a sentence on how to read it, and the SVG document."""

    name: str
    title: str
    caption: str
    svg: str


def themed(plot: Plot) -> str:
    """The drawing as an inline `<svg>` element: no prolog, ids of its own, colours and font from the page."""
    svg = plot.svg[plot.svg.index("<svg") :]
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg, flags=re.S)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'\bid="', f'id="{plot.name}-', svg)
    svg = svg.replace('href="#', f'href="#{plot.name}-').replace("url(#", f"url(#{plot.name}-")
    svg = re.sub(r"font: (?:[\w.]+ )*?([\d.]+px)[^;\"]*", r"font: \1 var(--sans)", svg)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: var(--sans)", svg)
    for colour, name in CSS_NAMES.items():
        svg = svg.replace(colour, f"var({name})")
    label = f'role="img" aria-label="{plot.title}"'
    return svg.replace("<svg", f"<svg {label}", 1)


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


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDE, height), layout="constrained")
    return figure, figure.subplots()


def _plot(name: str, title: str, caption: str, draw: Callable[[], Figure]) -> Plot:
    style: Any = {**STYLE, "svg.hashsalt": name}
    with mpl.rc_context(style):
        out = io.StringIO()
        draw().savefig(out, format="svg", transparent=True, metadata={"Date": None})
    return Plot(name, title, caption, out.getvalue())


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
        figure, axes = _figure(3.5)
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
    return _plot("accuracy-size", "Accuracy against size", caption, draw)


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
        figure, axes = _figure(3.2)
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
    return _plot(
        "accuracy-round",
        "Accuracy by round",
        f"All tasks after each round; bars are one standard error.{crosses}",
        draw,
    )


# ------------------------------------------------------------------------------------------------------------- removed

BINS = 64


def removed_map(run: RunRecord) -> tuple[np.ndarray, dict[int, str]] | None:
    """Share of the original neurons removed, [layers, bins], and the stage in which a whole layer went.

    Plans number what their own source model holds; composing them gives places in the original model.
    """
    plans = run.plans()
    if not plans:
        return None
    depth, width = plans[0][1].depth, plans[0][1].width
    alive = {layer: np.arange(width) for layer in range(depth)}  # original layer -> original neurons still there
    order, gone = list(range(depth)), {}
    for stage, plan in plans:
        if plan.depth != len(order) or any(len(alive[layer]) != plan.width for layer in order):
            return None  # a plan of another model: the chain is broken, so no honest picture
        for now, layer in enumerate(order):
            if now in plan.drop_layers:
                gone[layer] = stage.name
            else:
                alive[layer] = np.delete(alive[layer], plan.drop_neurons.get(now, ()))
        order = [order[i] for i in plan.kept_layers]
    edges = np.linspace(0, width, min(BINS, width) + 1).round().astype(int)
    share = np.ones((depth, len(edges) - 1))
    for layer in order:
        share[layer] = 1 - np.histogram(alive[layer], bins=edges)[0] / np.diff(edges)
    return share, gone


def removed(run: RunRecord) -> Plot | None:
    """Heat map: which layers and which parts of their FFNs went."""
    found = removed_map(run)
    if found is None:
        return None
    share, gone = found
    depth, bins = share.shape

    def draw() -> Figure:
        figure, axes = _figure(min(6.0, 1.1 + 0.17 * max(depth, 8)))
        axes.grid(False)
        level = np.minimum((share * len(HEAT)).astype(int), len(HEAT) - 1)
        for i, colour in enumerate(HEAT):
            cells = [
                (y, x)
                for y in range(depth)
                if y not in gone
                for x in range(bins)
                if share[y, x] > 0 and level[y, x] == i
            ]
            boxes = [[(x, y + 0.06), (x + 1, y + 0.06), (x + 1, y + 0.94), (x, y + 0.94)] for y, x in cells]
            upto = f"{100 * (i + 1) / len(HEAT):.0f} %"
            axes.add_collection(PolyCollection(boxes, facecolors=colour, edgecolors="none", label=f"to {upto}"))
        if gone:
            boxes = [[(0, y + 0.06), (bins, y + 0.06), (bins, y + 0.94), (0, y + 0.94)] for y in gone]
            axes.add_collection(PolyCollection(boxes, facecolors=GONE, edgecolors="none", label="whole layer"))
        axes.set_xlim(0, bins)
        axes.set_ylim(depth, 0)
        every = max(1, depth // 16)
        axes.set_yticks([y + 0.5 for y in range(0, depth, every)], [str(y) for y in range(0, depth, every)])
        axes.set_xticks([0, bins / 2, bins], ["first neuron", "", "last"])
        axes.set_ylabel("layer of the original")
        figure.legend(
            loc="outside lower center",
            ncols=len(HEAT) + bool(gone),
            fontsize=6.5,
            handlelength=0.9,
            columnspacing=0.8,
            handletextpad=0.35,
        )
        return figure

    whole = (
        f" Layers removed whole: {', '.join(str(i) for i in sorted(gone))}." if gone else " No layer was removed whole."
    )
    caption = (
        f"A row is a layer, a cell a group of its neurons in their first order; the stronger, the more went.{whole}"
    )
    return _plot("removed", "What was removed, by layer", caption, draw)


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
        figure, axes = _figure(2.8)
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

    return _plot(name, title, caption, draw)


def saw(run: RunRecord) -> Plot | None:
    """Held-out loss up with every cut and down with every recovery: the loop at work."""
    rows = [s for s in run.accepted if s.pruned_loss is not None and s.held_out_loss is not None]
    start = run.original.held_out_loss if run.original else None
    if not rows or start is None:
        return None

    def draw() -> Figure:
        figure, axes = _figure(3.2)
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

    caption = "Loss on held-out sequences: up when a round prunes, down when it tunes."
    return _plot("held-out-loss", "Prune, tune, repeat", caption, draw)


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
        figure, axes = _figure(1.0 + 0.25 * max(len(stages), 3))
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

    return _plot("time", "Where the time went", "Wall time of each stage by action.", draw)
