"""The figures of a study: accuracy against the budget, one panel a size, and round by round; one line a method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

import matplotlib as mpl
from matplotlib.figure import Figure
from paired import Interval, t_interval

mpl.rcParams["svg.hashsalt"] = "prunetune"  # the same records, the same bytes


def accuracy_figure(
    lines: Mapping[tuple[str, float], Sequence[tuple[int, Interval]]],
    sizes: Sequence[float],
    methods: Sequence[str],
    original: Interval | None,
    unit: str,
    out: Path,
) -> None:
    """Draw it.

    Args:
        lines: (method, size) -> budgets with accuracies.
        sizes: The panels.
        methods: The lines, in order.
        original: The untouched model.
        unit: What a budget counts.
        out: SVG file.
    """
    figure = Figure(figsize=(3.4 * len(sizes), 3.4), layout="constrained")
    panels = figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
    for panel, size in zip(panels, sizes, strict=True):
        for i, method in enumerate(methods):
            if not (found := lines.get((method, size))):
                continue
            x = [tokens * 1.03 ** (i - len(methods) / 2) for tokens, _ in found]  # apart, so that bars can be told
            y = [100 * v.mean for _, v in found]
            bars = [[100 * (v.mean - v.low) for _, v in found], [100 * (v.high - v.mean) for _, v in found]]
            panel.errorbar(
                x, y, yerr=bars, label=method, color=f"C{i}", marker="o", markersize=3, capsize=2, linewidth=1.2
            )
        if original:
            panel.axhline(100 * original.mean, color="0.5", linestyle="--", linewidth=1, label="original")
        panel.set(title=f"{size:.0%} of the parameters", xlabel=f"recovery {unit}", xscale="log")
        budgets = sorted({tokens for (_, at), found in lines.items() if at == size for tokens, _ in found})
        panel.set_xticks(budgets, [f"{t:,}" for t in budgets], fontsize=8)
        panel.set_xticks([], minor=True)
        panel.grid(alpha=0.25)
    panels[0].set_ylabel("right answers, % (95 % interval)")
    panels[0].set_ylim(0, 100)
    if any(lines.values()):
        panels[0].legend(fontsize=7, loc="lower left")
    figure.savefig(out, metadata={"Date": None, "Creator": None})


def rounds_figure(
    walks: Mapping[tuple[str, tuple[float, int]], Sequence[Sequence[tuple[float, float]]]],
    places: Sequence[tuple[float, int]],
    methods: Sequence[str],
    unit: str,
    out: Path,
) -> None:
    """Draw accuracy against the parameters left, a point a round.

    Args:
        walks: (method, place) -> round -> each seed's share of the parameters and accuracy.
        places: Sizes and budgets: the panels.
        methods: The lines, in order.
        unit: What a budget counts.
        out: SVG file.
    """
    figure = Figure(figsize=(4.2 * len(places), 3.4), layout="constrained")
    panels = figure.subplots(1, len(places), sharey=True, squeeze=False)[0]
    for panel, place in zip(panels, places, strict=True):
        for i, method in enumerate(methods):
            walk = walks.get((method, place)) or []
            x = [100 * fmean(share for share, _ in seeds) for seeds in walk]
            means = [[100 * value for _, value in seeds] for seeds in walk]
            y, ends = [fmean(m) for m in means], [t_interval(m) for m in means]
            bars = [
                [m - low for m, (low, _) in zip(y, ends, strict=True)],
                [h - m for m, (_, h) in zip(y, ends, strict=True)],
            ]
            panel.errorbar(
                x, y, yerr=bars, label=method, color=f"C{i}", marker="o", markersize=3, capsize=2, linewidth=1
            )
        panel.set(title=f"to {place[0]:.0%} with {place[1]:,} {unit}", xlabel="parameters left, %")
        panel.invert_xaxis()
        panel.grid(alpha=0.25)
    panels[0].set_ylabel("right answers, % (95 % interval)")
    panels[0].set_ylim(0, 100)
    panels[0].legend(fontsize=7, loc="lower left")
    figure.savefig(out, metadata={"Date": None, "Creator": None})
