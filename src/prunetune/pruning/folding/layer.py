"""One layer whose `down_proj` is folded: its activations in parts, its patch, its cut, its output afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

from prunetune.models.finite import broken_weights, is_finite
from prunetune.pruning.cut import cut_tensor
from prunetune.pruning.layerwise import LayerSource, OneLayer, forward
from prunetune.pruning.least_squares import Fold
from prunetune.pruning.plan import PrunePlan
from prunetune.pruning.tap import added

MEMORY = 2 << 30
"""Bytes of activations that are held so that a layer need not be run twice."""


@dataclass(frozen=True)
class Half:
    """A batch at a layer whose `down_proj` is about to change: what does not change is not computed again.

    Attributes:
        hidden: The layer's input.
        mask: Its real places.
        rest: The layer's output without the FFN's part; None: to be computed again.
        kept: The activations that stay.
    """

    hidden: Tensor
    mask: Tensor
    rest: Tensor | None
    kept: Tensor | None

    def whole(self, one: OneLayer, source: LayerSource) -> Float[Tensor, "batch places hidden"]:
        """The output of the layer as it is now: cut and patched."""
        if self.rest is None or self.kept is None:
            return forward(one, self.hidden.to(source.device), self.mask)
        return added(one, source, self.rest, one.block.get_submodule(source.family.down)(self.kept))


def columns(x: Shaped[Tensor, "batch places n"], which: Int64[Tensor, " m"]) -> Shaped[Tensor, "batch places m"]:
    """Some of the last dimension. `index_select(-1)` of three dimensions takes six times as long on a CPU."""
    return x.flatten(0, 1).index_select(1, which).view(*x.shape[:2], -1)


def with_one(x: Float[Tensor, "tokens n"], weight: Float[Tensor, "tokens 1"] | None) -> Float[Tensor, "tokens m"]:
    """The features with one more neuron that is always 1, times the tokens' weights: what a bias is fitted with."""
    one = torch.ones_like(x[:, :1]) if weight is None else weight.to(x.dtype)
    return torch.cat([x, one], dim=1)


def patch_of(one: OneLayer, source: LayerSource, plan: PrunePlan, layer: int, found: Fold) -> dict[str, Tensor]:
    """The changed tensors of a layer by their `patch_name`, of the cut shape and the source's dtype."""
    if found.change is None:
        return {}
    down: Any = one.block.get_submodule(source.family.down)
    kept = torch.tensor(plan.kept("neurons", layer), device=source.device)
    change = found.change
    changed = {"weight": down.weight[:, kept].to(change) + change[:, : len(kept)]}
    if down.bias is not None:
        changed["bias"] = down.bias.to(change) + change[:, -1]
    names, family, stored = source.names[layer], source.family, dict[str, Tensor]()
    for suffix, tensor in ((f"{family.down}.{kind}", tensor) for kind, tensor in changed.items()):
        stored[f"{family.layers}.{layer}.{suffix}"] = tensor.to(source.stored(names[suffix])).cpu()
    for name, tensor in stored.items():
        if not is_finite(tensor):
            raise broken_weights(f"layer {layer}'s patch", name, tensor)
    return stored


def cut_layer(one: OneLayer, source: LayerSource, plan: PrunePlan, layer: int, patch: dict[str, Tensor]) -> None:
    """Cut and patch the layer in hand, with the function that surgery cuts with."""
    family = source.family
    for suffix, tensor in list(one.block.named_parameters()):
        new = cut_tensor(plan, patch, family, f"{family.layers}.{layer}.{suffix}", tensor)
        if new is not None and new is not tensor:
            module, _, name = suffix.rpartition(".")
            setattr(one.block.get_submodule(module), name, nn.Parameter(new, requires_grad=False))
