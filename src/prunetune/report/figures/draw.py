"""How our figures look, whatever they show: tones, text, and a matplotlib drawing as SVG that follows the page's theme.

Every figure is drawn once, in mid-tones that read on white and on black; `themed` then swaps each tone for a CSS
variable, so that the same drawing follows the page's light or dark theme and its font.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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
WIDE = 4.5  # inches; 324 units, about a phone's width, so that text keeps its size there


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


def blank(height: float) -> tuple[Figure, Axes]:
    """A figure of the report's width and this height in inches, with one pair of axes."""
    figure = Figure(figsize=(WIDE, height), layout="constrained")
    return figure, figure.subplots()


def plot(name: str, title: str, caption: str, draw: Callable[[], Figure]) -> Plot:
    """Draw in our style and keep the SVG; the same drawing gives the same bytes."""
    style: Any = {**STYLE, "svg.hashsalt": name}
    with mpl.rc_context(style):
        out = io.StringIO()
        draw().savefig(out, format="svg", transparent=True, metadata={"Date": None})
    return Plot(name, title, caption, out.getvalue())
