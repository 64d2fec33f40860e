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

Of heads (blocks B of the columns of `o_proj`, whose input is x; blocks.py) it is the same of the block: ||x_B|| for
activation, ||W_B x_B|| for contribution and wanda, |sum of x_B * dL/dx_B| for taylor, the error of a block for leverage
and greedy, all weights for magnitude.

a [tokens, width] is the input of `down_proj`. To add a criterion, add one entry to CRITERIA;
from another package, an entry point `criterion.NAME` (common/plugins.py). Nothing here imports torch: recipes are read
quickly.

    layer criterion   score of layer l, from its input h and output f(h)
    l2                ||f(h) - h||               Eq. 5-6
    relative          ||f(h) - h|| / ||h||       -
    cosine            1 - cos(h, f(h))           ShortGPT's Block Influence, arXiv 2403.03853
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

from prunetune.common.plugins import joined, lookup
from prunetune.errors import RecipeError

if TYPE_CHECKING:
    from torch import Tensor

    from prunetune.pruning.blocks.units import Blocks
    from prunetune.pruning.statistics import Neurons

Needs = Literal["activations", "gradients", "votes", "moments", "weights"]


@dataclass(frozen=True)
class Blockwise:
    """What a criterion says of units that are blocks of a readout's columns.

    Attributes:
        value: (what `needs` names [tokens, columns], the units) -> a number for each token and unit, which is then
            reduced over tokens; None: it needs no pass, or moments.
        finish: (C or None, the units, layer index, seed) -> score; None: the statistic of `value` as it is.
    """

    value: Callable[[Tensor, Blocks], Tensor] | None = None
    finish: Callable[[Tensor | None, Blocks, int, int], Tensor] | None = None


@dataclass(frozen=True)
class Criterion:
    """A neuron score: what it needs from the pass over the data, and how that becomes one number a neuron.

    Attributes:
        needs: `activations` (a), `gradients` (a * dL/da), `votes` (gate and up of the last token), `moments`
            (C = E[a a^T], [width, width]), `weights` (no pass).
        finish: (statistic over tokens, C, or None; weights; layer index; seed) -> score.
        reduce: The statistic over tokens; None lets the recipe choose.
        blocks: The same for units that are blocks of columns (heads); None: it is one of neurons alone.
    """

    needs: Needs
    finish: Callable[[Tensor | None, Neurons, int, int], Tensor]
    reduce: str | None = None
    blocks: Blockwise | None = None


T = TypeVar("T")


def known(value: T | None) -> T:
    """What a criterion needs, which is there."""
    if value is None:
        raise ValueError("this criterion needs a pass over the data")
    return value


def _as_it_is(stat: Tensor | None, weights: Neurons, layer: int, seed: int) -> Tensor:
    return known(stat)


def _times_down(stat: Tensor | None, weights: Neurons, layer: int, seed: int) -> Tensor:
    return known(stat) * weights.down_norm()


def _block_norms(x: Tensor, blocks: Blocks) -> Tensor:
    from prunetune.pruning.blocks.units import norms

    return norms(x, blocks)


def _block_outputs(x: Tensor, blocks: Blocks) -> Tensor:
    from prunetune.pruning.blocks.units import outputs

    return outputs(x, blocks)


def _block_sums(x: Tensor, blocks: Blocks) -> Tensor:
    from prunetune.pruning.blocks.units import sums

    return sums(x, blocks)


def _block_leverage(stat: Tensor | None, blocks: Blocks, layer: int, seed: int) -> Tensor:
    from prunetune.pruning.blocks.units import leverage

    return leverage(known(stat), blocks)


def _block_greedy(stat: Tensor | None, blocks: Blocks, layer: int, seed: int) -> Tensor:
    from prunetune.pruning.blocks.units import greedy

    return greedy(known(stat), blocks)


def _block_magnitude(stat: Tensor | None, blocks: Blocks, layer: int, seed: int) -> Tensor:
    return blocks.squares.sqrt()


def _block_random(stat: Tensor | None, blocks: Blocks, layer: int, seed: int) -> Tensor:
    import torch

    generator = torch.Generator().manual_seed(1_000_003 * seed + layer)
    return torch.rand(blocks.units, generator=generator)


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
    "contribution": Criterion("activations", _times_down, blocks=Blockwise(_block_outputs)),
    "activation": Criterion("activations", _as_it_is, reduce="max", blocks=Blockwise(_block_norms)),
    "wanda": Criterion("activations", _times_down, reduce="rms", blocks=Blockwise(_block_outputs)),
    "taylor": Criterion("gradients", _as_it_is, reduce="mean", blocks=Blockwise(_block_sums)),
    "ptl_vote": Criterion("votes", _as_it_is),
    "leverage": Criterion("moments", _leverage, blocks=Blockwise(finish=_block_leverage)),
    "greedy": Criterion("moments", _greedy, blocks=Blockwise(finish=_block_greedy)),
    "magnitude": Criterion("weights", _magnitude, blocks=Blockwise(finish=_block_magnitude)),
    "random": Criterion("weights", _random, blocks=Blockwise(finish=_block_random)),
}


def criterion(name: str) -> Criterion:
    """The entry of CRITERIA or of a plugin, or UnknownName with the nearest names."""
    return lookup("criterion", CRITERIA, name, "neuron criterion")


def blockwise(name: str, axes: Iterable[str]) -> Blockwise | None:
    """What a criterion says of the units of these axes; None where there are none. UnknownName if it says nothing."""
    asked, found = list(axes), criterion(name).blocks
    if asked and found is None:
        able = [n for n, entry in {**CRITERIA, **joined("criterion", {})}.items() if entry.blocks is not None]
        raise RecipeError(
            f"this criterion is one of neurons alone and says nothing of {', '.join(asked)}",
            value=name,
            valid=", ".join(able),
            fix="another score.criterion, or no " + ", ".join(asked),
        )
    return found if asked else None


def forward_only(name: str) -> None:
    """RecipeError for a criterion that goes backwards through the whole model."""
    if criterion(name).needs == "gradients":
        raise RecipeError(
            "this criterion goes backwards through the whole model, which then has to be in memory",
            value=name,
            valid=", ".join(
                n for n, entry in {**CRITERIA, **joined("criterion", {})}.items() if entry.needs != "gradients"
            ),
            fix="another criterion, or a machine that holds the model, without --offload",
        )


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
