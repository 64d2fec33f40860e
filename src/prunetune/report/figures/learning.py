"""What recovery logged, step by step over all rounds: the training loss, and how reinforcement learning went."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from prunetune.report.figures.draw import GRID, SERIES, WIDE, Plot, blank, plot
from prunetune.runs.reading import RunRecord

Logged = list[tuple[str, list[float], list[float]]]


def curve(run: RunRecord, key: str) -> Logged:
    """(stage name, steps counted over the whole run, values) for a key of the tuning logs."""
    out, start = [], 0
    for stage in run.accepted:
        xs: list[float] = []
        ys: list[float] = []
        for result in stage.tune:
            found = result.logged(key)
            xs += [start + step for step, _ in found]
            ys += [value for _, value in found]
            start += max([result.steps or 0, *(step for step, _ in result.logged("step"))])
        if xs:
            out.append((stage.name, xs, ys))
    return out


def _trace(axes: Axes, found: Logged, label: str, scale: float = 1.0) -> None:
    """A line a round, with its number at its beginning."""
    for i, (stage, xs, ys) in enumerate(found):
        colour, values = SERIES[i % len(SERIES)], [scale * y for y in ys]
        axes.plot(xs, values, color=colour, linewidth=1.4, marker="." if len(xs) < 3 else None)
        axes.annotate(
            stage.split("-")[0],
            (xs[0], max(values)),
            xytext=(3, 4),
            textcoords="offset points",
            fontsize=7.5,
            color=colour,
        )
        if i:
            axes.axvline(xs[0] - 0.5, color=GRID, linewidth=0.6)
    axes.set_ylabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(y=0.14)


def losses(run: RunRecord) -> Plot | None:
    """Training loss over all rounds."""
    found = curve(run, "loss")
    if not found:
        return None

    def draw() -> Figure:
        figure, axes = blank(2.5)
        _trace(axes, found, "loss")
        axes.set_xlabel("recovery step, over all rounds")
        return figure

    return plot("loss", "Recovery loss", "Training loss as logged, step by step; the numbers are the rounds.", draw)


PANELS = (
    ("reward", "reward", 1.0),
    ("kl", "KL to the step's input", 1.0),
    ("completion_tokens", "tokens an answer", 1.0),
    ("clipped", "cut at the limit, %", 100.0),
)
"""Key of the log, what its axis says, factor."""


def rollouts(run: RunRecord) -> Plot | None:
    """Reward, KL, length of the answers and share of those cut off, where a round was recovered with GRPO."""
    found = [(curve(run, key), label, scale) for key, label, scale in PANELS]
    found = [panel for panel in found if panel[0]]
    if not curve(run, "reward"):
        return None

    def draw() -> Figure:
        figure = Figure(figsize=(WIDE, 1.1 + 1.15 * len(found)), layout="constrained")
        axes = figure.subplots(len(found), sharex=True, squeeze=False)[:, 0]
        for one, (lines, label, scale) in zip(axes, found, strict=True):
            _trace(one, lines, label, scale)
        axes[-1].set_xlabel("recovery step, over all rounds")
        return figure

    caption = (
        "Means over the sampled answers by step: the reward, the divergence from the model that the step began with, "
        "how long the answers were, and how many hit the length limit."
    )
    return plot("reward", "Reinforcement learning", caption, draw)
