"""How redundant is a neuron, a layer? Small accumulators over tensor functions (Eq. 2-6); low = redundant.

    name          score of neuron j of a layer                                            source
    activation    max over tokens of |a_j|                                                Eq. 3-4
    contribution  |a_j| * ||W_down[:, j]||, reduced over tokens (mean, rms, max, qNN)      Eq. 2, exact; default
    wanda         rms(a_j) * ||W_down[:, j]||                                             arXiv 2306.11695
    taylor        mean over tokens of |a_j * dL/da_j|                                     arXiv 2305.11627
    leverage      error left if j alone goes and all others make up for it                optimal brain surgeon, 1993
    greedy        error left when neurons go one after another, made up for by the rest   the same; recommended
    magnitude     norm of the three weight vectors of the neuron                          -
    random        a seeded permutation                                                    a control
    ptl_vote      the authors' published rule (signed, last token, lowest indices)        method, section 7

a [tokens, width] is the input of `down_proj`. To add a criterion, add one entry to CRITERIA;
from another package, an entry point `criterion.NAME` (common/plugins.py). Nothing here imports torch: recipes are read
quickly.

    layer criterion   score of layer l, from its input h and output f(h)
    l2                ||f(h) - h||               Eq. 5-6
    relative          ||f(h) - h|| / ||h||       -
    cosine            1 - cos(h, f(h))           ShortGPT's Block Influence, arXiv 2403.03853
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from prunetune.common.plugins import lookup

if TYPE_CHECKING:
    from torch import Tensor

    from prunetune.pruning.statistics import Neurons

Needs = Literal["activations", "gradients", "votes", "moments", "weights"]


@dataclass(frozen=True)
class Criterion:
    """A neuron score: what it needs from the pass over the data, and how that becomes one number a neuron.

    Attributes:
        needs: `activations` (a), `gradients` (a * dL/da), `votes` (gate and up of the last token), `moments`
            (C = E[a a^T], [width, width]), `weights` (no pass).
        finish: (statistic over tokens, C, or None; weights; layer index; seed) -> score.
        reduce: The statistic over tokens; None lets the recipe choose.
    """

    needs: Needs
    finish: Callable[[Tensor | None, Neurons, int, int], Tensor]
    reduce: str | None = None


def known(stat: Tensor | None) -> Tensor:
    """The statistic that a criterion needs, which is there."""
    if stat is None:
        raise ValueError("this criterion needs a pass over the data")
    return stat


def _as_it_is(stat: Tensor | None, weights: Neurons, layer: int, seed: int) -> Tensor:
    return known(stat)


def _times_down(stat: Tensor | None, weights: Neurons, layer: int, seed: int) -> Tensor:
    return known(stat) * weights.down_norm()


def _magnitude(stat: Tensor | None, weights: Neurons, layer: int, seed: int) -> Tensor:
    return weights.norm()


def _random(stat: Tensor | None, weights: Neurons, layer: int, seed: int) -> Tensor:
    import torch

    generator = torch.Generator().manual_seed(1_000_003 * seed + layer)
    return torch.rand(weights.down.shape[1], generator=generator)


def _leverage(stat: Tensor | None, weights: Neurons, layer: int, seed: int) -> Tensor:
    from prunetune.pruning.least_squares import leverage

    return leverage(known(stat), weights.down)


def _greedy(stat: Tensor | None, weights: Neurons, layer: int, seed: int) -> Tensor:
    from prunetune.pruning.least_squares import greedy

    return greedy(known(stat), weights.down)


CRITERIA: dict[str, Criterion] = {
    "contribution": Criterion("activations", _times_down),
    "activation": Criterion("activations", _as_it_is, reduce="max"),
    "wanda": Criterion("activations", _times_down, reduce="rms"),
    "taylor": Criterion("gradients", _as_it_is, reduce="mean"),
    "ptl_vote": Criterion("votes", _as_it_is),
    "leverage": Criterion("moments", _leverage),
    "greedy": Criterion("moments", _greedy),
    "magnitude": Criterion("weights", _magnitude),
    "random": Criterion("weights", _random),
}


def criterion(name: str) -> Criterion:
    """The entry of CRITERIA or of a plugin, or UnknownName with the nearest names."""
    return lookup("criterion", CRITERIA, name, "neuron criterion")


# --------------------------------------------------------------------------------------------------- layer criteria


def _l2(before: Tensor, after: Tensor) -> Tensor:
    change: Tensor = (after - before).norm(dim=-1)
    return change


def _relative(before: Tensor, after: Tensor) -> Tensor:
    change: Tensor = (after - before).norm(dim=-1) / before.norm(dim=-1).clamp_min(1e-12)
    return change


def _cosine(before: Tensor, after: Tensor) -> Tensor:
    import torch

    return 1 - torch.nn.functional.cosine_similarity(before, after, dim=-1)


LAYER_CRITERIA: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"l2": _l2, "relative": _relative, "cosine": _cosine}


def layer_criterion(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The entry of LAYER_CRITERIA or of a plugin: fp32 (h, f(h)), each [tokens, hidden] -> [tokens]."""
    return lookup("layer_criterion", LAYER_CRITERIA, name, "layer criterion")
