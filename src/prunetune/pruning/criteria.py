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

a [tokens, width] is the input of `down_proj`. Every sum runs in fp32 or fp64 over real tokens, in memory that does not
grow with the number of tokens. To add a criterion, add one entry to CRITERIA.

    layer criterion   score of layer l, from its input h and output f(h)
    l2                ||f(h) - h||               Eq. 5-6
    relative          ||f(h) - h|| / ||h||       -
    cosine            1 - cos(h, f(h))           ShortGPT's Block Influence, arXiv 2403.03853
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from prunetune.errors import UnknownName
from prunetune.models.families import Family
from prunetune.pruning.least_squares import greedy, leverage

Needs = Literal["activations", "gradients", "votes", "moments", "weights"]


BLOCK = 2**19
"""Elements taken at a time on a CPU, so that what is computed from them stays in its cache."""


def block_rows(x: Float[Tensor, "rows width"]) -> int:
    """How many rows of x to take at a time: a block's worth on a CPU, else all of them."""
    return max(1, BLOCK // x.shape[1] if x.device.type == "cpu" else len(x))


# ------------------------------------------------------------------------------------------- statistics over tokens


class Mean:
    """Mean of |x| over tokens."""

    def __init__(self) -> None:
        self.total: Tensor | float = 0.0
        self.tokens = 0

    def update(self, x: Float[Tensor, "tokens width"]) -> None:
        """Add a batch of tokens."""
        self.total = self.total + x.abs().sum(0, dtype=torch.float32).double()
        self.tokens += len(x)

    def finish(self) -> Float[Tensor, " width"]:
        """The statistic, one number a neuron."""
        return (torch.as_tensor(self.total) / max(self.tokens, 1)).float()


class Rms(Mean):
    """Root of the mean of x^2 over tokens."""

    def update(self, x: Float[Tensor, "tokens width"]) -> None:
        """Add a batch of tokens."""
        self.total = self.total + x.float().square().sum(0).double()
        self.tokens += len(x)

    def finish(self) -> Float[Tensor, " width"]:
        """The statistic, one number a neuron."""
        return (torch.as_tensor(self.total) / max(self.tokens, 1)).sqrt().float()


class Max(Mean):
    """Maximum of |x| over tokens ("for all x")."""

    def update(self, x: Float[Tensor, "tokens width"]) -> None:
        """Add a batch of tokens."""
        top = x.abs().amax(0).float()
        self.total = torch.maximum(top, self.total) if isinstance(self.total, Tensor) else top
        self.tokens += len(x)

    def finish(self) -> Float[Tensor, " width"]:
        """The statistic, one number a neuron."""
        return torch.as_tensor(self.total).float()


class Quantile:
    """A quantile of |x| over tokens from a logarithmic histogram: bins of 1/8 octave (9 %), from 2^-24 to 2^24.

    The answer is the upper edge of the bin that holds the quantile: never below the true value, at most 9 % above it.
    """

    PER_OCTAVE, LOWEST, OCTAVES = 8, -24, 48

    def __init__(self, q: float) -> None:
        self.q = q
        self.counts: Tensor | None = None

    def update(self, x: Float[Tensor, "tokens width"]) -> None:
        """Add a batch of tokens."""
        bins = self.OCTAVES * self.PER_OCTAVE
        place = (torch.log2(x.abs().float()) - self.LOWEST).mul(self.PER_OCTAVE).floor().clamp(0, bins - 1).long()
        if self.counts is None:
            self.counts = torch.zeros(x.shape[1], bins, dtype=torch.int64, device=x.device)
        self.counts.scatter_add_(1, place.T, torch.ones_like(place.T))

    def finish(self) -> Float[Tensor, " width"]:
        """The statistic, one number a neuron."""
        if self.counts is None:
            return torch.zeros(0)
        below = self.counts.cumsum(1)
        rank = max(1, -(-int(below[0, -1]) * self.q // 1))
        place = (below < rank).sum(1)
        return torch.exp2((place + 1).float() / self.PER_OCTAVE + self.LOWEST)


class Vote:
    """The rank that the authors' scripts vote with, over one value a sample: the last token's, **signed**.

    A sample votes for the k smallest values; votes are intersected over samples, so neuron j is in for every
    k > max over samples of its ascending rank. `finish` returns that maximum.
    """

    def __init__(self) -> None:
        self.worst: Tensor | None = None

    def update(self, x: Float[Tensor, "samples width"]) -> None:
        """Add the last tokens of a batch of samples."""
        ranks = x.float().argsort(dim=1, stable=True).argsort(dim=1).amax(0)
        self.worst = ranks if self.worst is None else torch.maximum(self.worst, ranks)

    def finish(self) -> Float[Tensor, " width"]:
        """The worst rank over samples, 0 to width - 1, one number a neuron."""
        return torch.zeros(0) if self.worst is None else self.worst.float()


Statistic = Mean | Quantile | Vote
_REDUCTIONS: dict[str, Callable[[], Statistic]] = {"mean": Mean, "rms": Rms, "max": Max}


def statistic(reduce: str) -> Statistic:
    """The accumulator named `mean`, `rms`, `max`, or `q` and a per cent (`q99`, `q99.9`)."""
    if reduce in _REDUCTIONS:
        return _REDUCTIONS[reduce]()
    if re.fullmatch(r"q\d{1,2}(\.\d+)?", reduce):
        return Quantile(float(reduce[1:]) / 100)
    raise UnknownName("reduction over tokens", reduce, [*_REDUCTIONS, "q99 (a quantile in per cent)"])


# ------------------------------------------------------------------------------------------------- neuron criteria


@dataclass(frozen=True)
class Neurons:
    """The weights of one layer's neurons: row j of gate and up, column j of down."""

    gate: Float[Tensor, "width hidden"]
    up: Float[Tensor, "width hidden"]
    down: Float[Tensor, "hidden width"]

    def down_norm(self) -> Float[Tensor, " width"]:
        """||W_down[:, j]|| in fp32 (`norm(dim=0)` walks the matrix column by column, four times as slow on a CPU)."""
        return self.down.float().square().sum(0).sqrt()

    def norm(self) -> Float[Tensor, " width"]:
        """Norm of all three weight vectors of a neuron, in fp32."""
        squares = self.gate.float().square().sum(1) + self.up.float().square().sum(1)
        return (squares + self.down.float().square().sum(0)).sqrt()


def neurons_of(layer: nn.Module, family: Family) -> Neurons:
    """The weight vectors of a decoder layer's neurons (the halves apart where gate and up are fused)."""
    down = layer.get_parameter(f"{family.down}.weight")
    if any(cut.copies == 2 for cut in family.cuts):
        gate, up = layer.get_parameter("mlp.gate_up_proj.weight").chunk(2, dim=0)
    else:
        gate, up = layer.get_parameter("mlp.gate_proj.weight"), layer.get_parameter("mlp.up_proj.weight")
    return Neurons(gate, up, down)


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


def _as_it_is(stat: Tensor | None, weights: Neurons, layer: int, seed: int) -> Tensor:
    return torch.as_tensor(stat)


def _times_down(stat: Tensor | None, weights: Neurons, layer: int, seed: int) -> Tensor:
    return torch.as_tensor(stat) * weights.down_norm()


def _magnitude(stat: Tensor | None, weights: Neurons, layer: int, seed: int) -> Tensor:
    return weights.norm()


def _random(stat: Tensor | None, weights: Neurons, layer: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(1_000_003 * seed + layer)
    return torch.rand(weights.down.shape[1], generator=generator)


def _leverage(stat: Tensor | None, weights: Neurons, layer: int, seed: int) -> Tensor:
    return leverage(torch.as_tensor(stat), weights.down)


def _greedy(stat: Tensor | None, weights: Neurons, layer: int, seed: int) -> Tensor:
    return greedy(torch.as_tensor(stat), weights.down)


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
    """The entry of CRITERIA, or UnknownName with the nearest names."""
    if name not in CRITERIA:
        raise UnknownName("neuron criterion", name, CRITERIA)
    return CRITERIA[name]


def vote_scores(gate: Float[Tensor, " width"], up: Float[Tensor, " width"], share: float) -> Float[Tensor, " width"]:
    """`ptl_vote` from the worst ranks of gate and up: united candidates in index order, then the rest by rank.

    Args:
        gate: Worst rank over samples of the gate projection's output.
        up: The same for the up projection.
        share: k as a share of the width; a sample votes for its k smallest values.
    """
    width = len(gate)
    rank = torch.minimum(gate, up)
    index = torch.arange(width, dtype=torch.float32, device=gate.device)
    return torch.where(rank < share * width, index, width + rank * width + index)


# --------------------------------------------------------------------------------------------------- layer criteria


def _l2(before: Tensor, after: Tensor) -> Tensor:
    change: Tensor = (after - before).norm(dim=-1)
    return change


def _relative(before: Tensor, after: Tensor) -> Tensor:
    change: Tensor = (after - before).norm(dim=-1) / before.norm(dim=-1).clamp_min(1e-12)
    return change


def _cosine(before: Tensor, after: Tensor) -> Tensor:
    return 1 - torch.nn.functional.cosine_similarity(before, after, dim=-1)


LAYER_CRITERIA: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"l2": _l2, "relative": _relative, "cosine": _cosine}


def layer_criterion(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The entry of LAYER_CRITERIA: fp32 (h, f(h)), each [tokens, hidden] -> [tokens]."""
    if name not in LAYER_CRITERIA:
        raise UnknownName("layer criterion", name, LAYER_CRITERIA)
    return LAYER_CRITERIA[name]


@dataclass
class LayerChange:
    """Mean and maximum over tokens of a layer criterion."""

    change: Callable[[Tensor, Tensor], Tensor]
    total: float = 0.0
    top: float = 0.0
    tokens: int = field(default=0)

    def update(
        self,
        before: Float[Tensor, "places hidden"],
        after: Float[Tensor, "places hidden"],
        real: Int64[Tensor, " tokens"] | None = None,
    ) -> None:
        """Add a batch: the layer's input and its output, at all places or at the `real` ones alone."""
        n = block_rows(before)
        pairs = zip(before.split(n), after.split(n), strict=True)
        value = torch.cat([self.change(b.float(), a.float()) for b, a in pairs])
        value = value if real is None else value.index_select(0, real)
        self.total += float(value.double().sum())
        self.top = max(self.top, float(value.max()))
        self.tokens += len(value)

    @property
    def mean(self) -> float:
        """Mean over all tokens seen."""
        return self.total / max(self.tokens, 1)
