"""Scores by second moments: neurons by the error that is left *after* least squares, not before (least_squares.py).

One layer after another over the same batches (layerwise.py), so that one layer's C = E[a a^T] is in memory, whatever
the size of the model. The same pass tells how much each layer changes the residual stream (Eq. 5).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from prunetune.errors import DataError
from prunetune.models.axes import shape_of
from prunetune.models.finite import is_finite, layer_overflow
from prunetune.pruning.blocks.units import own_axes
from prunetune.pruning.blocks.walk import BlockMoments
from prunetune.pruning.criteria import Criterion, layer_criterion
from prunetune.pruning.experts.walk import ExpertsTap
from prunetune.pruning.halfway import PARTS, Halfway, in_parts
from prunetune.pruning.layerwise import LayerSource, OneLayer, embed, forward, one_layer, open_source
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
    progress: Callable[[int, int], None] | None = None,
    halfway: Halfway | None = None,
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
        progress: Called with (batches done in all layers, in all): a layer's batches, then its scores.
        halfway: Where an earlier start may have left off, and where this one may.

    Raises:
        DataError: There are no tokens. NotFinite: A layer's activations overflow.
    """
    source = open_source(model, device=device, dtype=dtype, quick=True)
    batches = in_parts(batches, math.ceil(PARTS / source.depth))
    mixture = source.family.experts is not None
    asked, values = own_axes(source.family, more), source.config.to_dict()
    walk = _Walk(source, _masks(source, batches), layer_criterion(layers_by), progress)
    shape, eps = shape_of(values), float(values.get("rms_norm_eps") or 0)
    state = (halfway.found(source.device) if halfway else None) or _start(source, batches)
    scores, others = state["scores"], state["others"]
    for layer in range(len(scores), source.depth):
        one = one_layer(source, layer)
        with BlockMoments(one.block, asked, source.family, eps) as blocks:
            if mixture:
                tap, change = walk.experts(one, layer, state, chosen, blocks.update)
                found, own = tap.neurons(layer, seed), {"experts": tap.experts()}
            else:
                gram, change = walk.through(one, layer, state, None if asked else halfway, blocks.update)
                found, own = chosen.finish(gram.finish(), neurons_of(one.block, source.family), layer, seed).float(), {}
        scores.append(found)
        others.append((blocks.scores(chosen, shape, layer, seed) if asked else {}) | own)
        state["changes"].append(change.sums())
        if progress:
            progress((layer + 1) * len(walk.masks), walk.total)
        if halfway and (asked or mixture or not walk.shallow):
            halfway.reached(layer + 1, source.depth, state.copy)
    units = {name: torch.stack([each[name].cpu() for each in others]) for name in others[0]}
    changes = [LayerChange(walk.change_of, *seen) for seen in state["changes"]]
    return Ranked(torch.stack([s.cpu() for s in scores]), changes, units)


@dataclass(frozen=True)
class _Walk:
    """What every layer is run with."""

    source: LayerSource
    masks: list[Tensor]
    change_of: Callable[[Tensor, Tensor], Tensor]
    progress: Callable[[int, int], None] | None

    @property
    def total(self) -> int:
        """Batches in all layers."""
        return self.source.depth * len(self.masks)

    @property
    def shallow(self) -> bool:
        """Whether a layer is too large a part to lose to a kill."""
        return self.source.depth < PARTS

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
        gram = Gram(source.config.intermediate_size, source.device, *state.pop("gram", ()))
        with torch.autocast(source.device.type, enabled=False), Tap(one, source, layer) as tap:
            for i in range(state.pop("batch", 0), len(self.masks)):
                real, done = self.masks[i], layer * len(self.masks) + i
                if self.progress:
                    self.progress(done, self.total)
                seen = tap.run(hidden[i], real)
                gram.update(seen.weighted(at_real(seen.a, real)))
                seen_by(real)
                change.update(at_real(hidden[i], real), at_real(seen.out, real))
                hidden[i] = seen.out
                if halfway and self.shallow:
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
                out = forward(one, hidden[i], real)
                if not is_finite(at_real(out, real)):
                    raise layer_overflow(one.block, layer, "its second moments", hidden[i].dtype)
                seen_by(real)
                change.update(at_real(hidden[i], real), at_real(out, real))
                hidden[i] = out
        handle.remove()
        return tap, change


def _masks(source: LayerSource, batches: Sequence[Batch]) -> list[Tensor]:
    """The real places of each batch; DataError if there are none at all."""
    masks = [b["attention_mask"].bool().to(source.device) for b in batches]
    if not sum(int(m.sum()) for m in masks):
        raise DataError("there are no tokens to score with", fix="raise the number of samples")
    return masks


def _start(source: LayerSource, batches: Sequence[Batch]) -> dict[str, Any]:
    """The state of a walk before the first layer."""
    return {"hidden": embed(source, [b["input_ids"] for b in batches]), "scores": [], "changes": [], "others": []}
