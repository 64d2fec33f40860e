"""What a run removed, by layer: its plans composed into places in the original model, and drawn as a heat map."""

from __future__ import annotations

import numpy as np
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from prunetune.report.figures.draw import GONE, HEAT, Plot, blank, plot
from prunetune.runs.reading import RunRecord

BINS = 64


def removed_map(run: RunRecord) -> tuple[np.ndarray, dict[int, str]] | None:
    """Share of the original neurons removed, [layers, bins], and the stage in which a whole layer went.

    Plans number what their own source model holds; composing them gives places in the original model.
    """
    plans = run.plans()
    if not plans:
        return None
    experts = max(plan.sizes.get("experts", 1) for _, plan in plans)  # whose neurons stand one after another
    depth, width = plans[0][1].depth, plans[0][1].width * experts
    alive = {layer: np.arange(width) for layer in range(depth)}  # original layer -> original neurons still there
    order, gone = list(range(depth)), {}
    for stage, plan in plans:
        if plan.depth != len(order) or any(len(alive[layer]) != plan.width * experts for layer in order):
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
        figure, axes = blank(min(5.0, 1.15 + 0.14 * max(depth, 9)))
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
            ncols=4,
            fontsize=7.5,
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
    return plot("removed", "What was removed, by layer", caption, draw)
