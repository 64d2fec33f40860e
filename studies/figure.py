"""The figure of a study: accuracy against recovery tokens, one panel a size, one line a method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from paired import Interval

mpl.rcParams["svg.hashsalt"] = "prunetune"  # the same records, the same bytes


def accuracy_figure(
    lines: Mapping[tuple[str, float], Sequence[tuple[int, Interval]]],
    sizes: Sequence[float],
    methods: Sequence[str],
    original: Interval | None,
    out: Path,
) -> None:
    """Draw it.

    Args:
        lines: (method, size) -> budgets with accuracies.
        sizes: The panels.
        methods: The lines, in order.
        original: The untouched model.
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
        panel.set(title=f"{size:.0%} of the parameters", xlabel="recovery tokens", xscale="log")
        budgets = sorted({tokens for (_, at), found in lines.items() if at == size for tokens, _ in found})
        panel.set_xticks(budgets, [f"{t:,}" for t in budgets], fontsize=8)
        panel.set_xticks([], minor=True)
        panel.grid(alpha=0.25)
    panels[0].set_ylabel("right answers, % (95 % interval)")
    panels[0].set_ylim(0, 100)
    if any(lines.values()):
        panels[-1].legend(fontsize=7, loc="lower right")
    figure.savefig(out, metadata={"Date": None, "Creator": None})
