"""Scores by second moments: neurons by the error that is left *after* least squares, not before (least_squares.py).

One layer after another over the same batches (layerwise.py), so that one layer's C = E[a a^T] is in memory, whatever
the size of the model. The same pass tells how much each layer changes the residual stream (Eq. 5).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from prunetune.common.device import ALONE, Processes
from prunetune.errors import DataError
from prunetune.models.axes import Axis, shape_of
from prunetune.models.calibration import Place
from prunetune.models.finite import is_finite, layer_overflow
from prunetune.pruning.blocks.units import own_axes
from prunetune.pruning.blocks.walk import BlockMoments
from prunetune.pruning.criteria import Criterion, layer_criterion
from prunetune.pruning.experts.walk import ExpertsTap
from prunetune.pruning.halfway import PARTS, Halfway, in_parts
from prunetune.pruning.layerwise import LayerSource, OneLayer, Shelf, embedded, forward, one_layer, open_source
from prunetune.pruning.least_squares import Gram
from prunetune.pruning.statistics import LayerChange, neurons_of
from prunetune.pruning.tap import Tap, at_real

Batch = dict[str, Tensor]


class Ranked(NamedTuple):
    """What one walk through the layers tells.

    Attributes:
        neurons: A score for every neuron.
        changes: How each layer changes the residual stream.
        blocks: Axis -> a score for every unit of every layer, of the other axes that were asked for.
    """

    neurons: Float[Tensor, "layers width"]
    changes: list[LayerChange]
    blocks: dict[str, Float[Tensor, "layers units"]]


def stacked(layers: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """{axis: [units]} of each layer -> {axis: [layers, units]}."""
    return {name: torch.stack([each[name].cpu() for each in layers]) for name in layers[0]}


def rank(
    model: PreTrainedModel | Path,
    batches: Sequence[Batch],
    chosen: Criterion,
    more: Sequence[str] = (),
    layers_by: str = "l2",
    seed: int = 0,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    place: Place = "device",
    progress: Callable[[int, int], None] | None = None,
    halfway: Halfway | None = None,
    processes: Processes = ALONE,
) -> Ranked:
    """Scores by a criterion that needs moments, and how each layer changes the residual stream.

    Args:
        model: The model, or its folder, whose layers are then read one by one.
        batches: {input_ids, attention_mask}; padded places never count.
        chosen: A criterion with `needs="moments"`.
        more: Other axes whose units are scored in the same pass.
        layers_by: A name of `criteria.LAYER_CRITERIA`.
        seed: Handed to the criterion.
        device: Where to run (default: the model's device; for a folder a GPU if there is one).
        dtype: In what to run (default: `walk_dtype`).
        place: Where hidden states lie between two layers.
        progress: Called with (batches done in all layers, in all): a layer's batches, then its scores.
        halfway: Where an earlier start may have left off, and where this one may.
        processes: Who ranks: each runs every layer on its share of the batches, and solves some of the layers.

    Raises:
        DataError: There are no tokens. NotFinite: A layer's activations overflow.
    """
    source = open_source(model, device=device, dtype=dtype, quick=True)
    batches = in_parts(batches, math.ceil(PARTS / source.depth))
    asked, values, shelf = own_axes(source.family, more), source.config.to_dict(), Shelf(place, source.device)
    by = _By(chosen, asked, shape_of(values), float(values.get("rms_norm_eps") or 0), seed)
    masks = processes.share(_masks(source, batches))
    walk = _Walk(source, masks, shelf, layer_criterion(layers_by), by, progress, processes)
    batches, halfway = processes.share(batches), halfway.of(processes, abreast=True) if halfway else None
    state = (halfway.found(source.device) if halfway else None) or _start(source, batches, shelf)
    turn = list[Callable[[], _Found] | None]()  # layers whose scores are made at once, a process each
    for layer in range(len(state["scores"]), source.depth):
        finish, change = walk.layer(layer, state, halfway)
        turn.append(finish if len(turn) == processes.rank else None)
        del finish  # it holds C
        state["changes"].append(change.sums())
        if progress:
            progress((layer + 1) * len(walk.masks), walk.total)
        if len(turn) < processes.count and layer < source.depth - 1:
            continue
        for found, others in processes.each(turn):
            state["scores"].append(found)
            state["others"].append(others)
        turn.clear()
        if halfway and (asked or source.family.experts or not walk.inside):
            halfway.reached(layer + 1, source.depth, state.copy)
    changes = [LayerChange(walk.change_of, *seen) for seen in state["changes"]]
    return Ranked(torch.stack([s.cpu() for s in state["scores"]]), changes, stacked(state["others"]))


_Found = tuple[Tensor, dict[str, Tensor]]
"""Scores of a layer's neurons, and of its units of other axes; on the CPU."""


@dataclass(frozen=True)
class _By:
    """By what a layer's units are ranked."""

    chosen: Criterion
    axes: list[Axis]
    shape: Mapping[str, int]
    eps: float
    seed: int


@dataclass(frozen=True)
class _Walk:
    """What every layer is run with."""

    source: LayerSource
    masks: list[Tensor]
    shelf: Shelf
    change_of: Callable[[Tensor, Tensor], Tensor]
    by: _By
    progress: Callable[[int, int], None] | None
    processes: Processes

    @property
    def total(self) -> int:
        """Batches in all layers."""
        return self.source.depth * len(self.masks)

    @property
    def inside(self) -> bool:
        """Whether a state is kept inside a layer, too: it is too large a part to lose to a kill. Of one process."""
        return self.source.depth < PARTS and self.processes.count == 1

    def layer(
        self, layer: int, state: dict[str, Any], halfway: Halfway | None
    ) -> tuple[Callable[[], _Found], LayerChange]:
        """(what makes a layer's scores, which holds it and its C; its change), of the tokens of all processes."""
        by, one = self.by, one_layer(self.source, layer)
        with BlockMoments(one.block, by.axes, self.source.family, by.eps) as blocks:
            seen: Gram | ExpertsTap
            if self.source.family.experts:
                seen, change = self.experts(one, layer, state, by.chosen, blocks.update)
            else:
                seen, change = self.through(one, layer, state, None if by.axes else halfway, blocks.update)
        for each in (seen, change, blocks):
            each.join(self.processes)
        return partial(self.scores, one, layer, seen, blocks), change

    def scores(self, one: OneLayer, layer: int, seen: Gram | ExpertsTap, blocks: BlockMoments) -> _Found:
        """A layer's scores from its moments. Call it once."""
        by = self.by
        others = blocks.scores(by.chosen, by.shape, layer, by.seed) if by.axes else {}
        if isinstance(seen, ExpertsTap):
            found, others = seen.neurons(layer, by.seed), others | {"experts": seen.experts()}
        else:
            found = by.chosen.finish(seen.finish(), neurons_of(one.block, self.source.family), layer, by.seed)
        return found.float().cpu(), {name: units.cpu() for name, units in others.items()}

    @torch.no_grad()
    def through(
        self,
        one: OneLayer,
        layer: int,
        state: dict[str, Any],
        halfway: Halfway | None,
        seen_by: Callable[[Tensor], None],
    ) -> tuple[Gram, LayerChange]:
        """Run one layer over all batches; `state["hidden"]` is its input, and its output afterwards."""
        source, hidden = self.source, state["hidden"]
        change = LayerChange(self.change_of, *state.pop("change", ()))
        gram = Gram(source.width, source.device, *state.pop("gram", ()))
        with torch.autocast(source.device.type, enabled=False), Tap(one, source, layer) as tap:
            for i in range(state.pop("batch", 0), len(self.masks)):
                real, done = self.masks[i], layer * len(self.masks) + i
                if self.progress:
                    self.progress(done, self.total)
                before = self.shelf.take(hidden[i])
                seen = tap.run(before, real)
                gram.update(seen.weighted(at_real(seen.a, real)))
                seen_by(real)
                change.update(at_real(before, real), at_real(seen.out, real))
                hidden[i] = self.shelf.put(seen.out)
                if halfway and self.inside:
                    now = {"gram": (gram.total, gram.tokens), "change": change.sums(), "batch": i + 1}
                    halfway.reached(done + 1, self.total, partial(dict, state, **now))
        return gram, change

    @torch.no_grad()
    def experts(
        self,
        one: OneLayer,
        layer: int,
        state: dict[str, Any],
        chosen: Criterion,
        seen_by: Callable[[Tensor], None],
    ) -> tuple[ExpertsTap, LayerChange]:
        """The same of a mixture's layer: each expert has second moments of its own."""
        hidden, change = state["hidden"], LayerChange(self.change_of)
        tap = ExpertsTap(one.block, self.source.family, chosen)
        handle = tap.hooked()
        with torch.autocast(self.source.device.type, enabled=False):
            for i, real in enumerate(self.masks):
                if self.progress:
                    self.progress(layer * len(self.masks) + i, self.total)
                tap.real = real.flatten().nonzero().squeeze(1)
                before = self.shelf.take(hidden[i])
                out = forward(one, before, real)
                if not is_finite(at_real(out, real)):
                    raise layer_overflow(one.block, layer, "its second moments", before.dtype)
                seen_by(real)
                change.update(at_real(before, real), at_real(out, real))
                hidden[i] = self.shelf.put(out)
        handle.remove()
        return tap, change


def _masks(source: LayerSource, batches: Sequence[Batch]) -> list[Tensor]:
    """The real places of each batch; DataError if there are none at all."""
    masks = [b["attention_mask"].bool().to(source.device) for b in batches]
    if not sum(int(m.sum()) for m in masks):
        raise DataError("there are no tokens to score with", fix="raise the number of samples")
    return masks


def _start(source: LayerSource, batches: Sequence[Batch], shelf: Shelf) -> dict[str, Any]:
    """The state of a walk before the first layer."""
    hidden = embedded(source, [b["input_ids"] for b in batches], shelf)
    return {"hidden": hidden, "scores": [], "changes": [], "others": []}
