"""What a pass over the data gathers for the criteria (criteria.py): accumulators over tokens, weights, layers' changes.

Every sum runs in fp32 or fp64 over real tokens, in memory that does not grow with the number of tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from prunetune.common.device import Processes
from prunetune.errors import UnknownName
from prunetune.models.families import Family

BLOCK = 2**19
"""Elements taken at a time on a CPU, so that what is computed from them stays in its cache."""


def block_rows(x: Float[Tensor, "rows width"]) -> int:
    """How many rows of x to take at a time: a block's worth on a CPU, else all of them."""
    return max(1, BLOCK // x.shape[1] if x.device.type == "cpu" else len(x))


class Mean:
    """Mean of |x| over tokens."""

    def __init__(self) -> None:
        self.total: Tensor | float = 0.0
        self.tokens = 0

    def update(self, x: Float[Tensor, "tokens width"]) -> None:
        """Add a batch of tokens."""
        self.total = self.total + x.abs().sum(0, dtype=torch.float32).double()
        self.tokens += len(x)

    def join(self, processes: Processes) -> None:
        """Become the statistic of what all processes have seen."""
        self.total = processes.sum(self.total)
        self.tokens = sum(processes.gather(self.tokens))

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

    def join(self, processes: Processes) -> None:
        """Become the statistic of what all processes have seen."""
        self.total = processes.most(self.total)
        self.tokens = sum(processes.gather(self.tokens))

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

    def join(self, processes: Processes) -> None:
        """Become the statistic of what all processes have seen."""
        self.counts = processes.sum(self.counts)

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

    def join(self, processes: Processes) -> None:
        """Become the rank over the samples of all processes."""
        self.worst = processes.most(self.worst)

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


@dataclass(frozen=True)
class Neurons:
    """The weights of one layer's neurons: row j of gate (None: there is none) and up, column j of down."""

    gate: Float[Tensor, "width hidden"] | None
    up: Float[Tensor, "width hidden"]
    down: Float[Tensor, "hidden width"]

    def down_norm(self) -> Float[Tensor, " width"]:
        """||W_down[:, j]|| in fp32 (`norm(dim=0)` walks the matrix column by column, four times as slow on a CPU)."""
        return self.down.float().square().sum(0).sqrt()

    def norm(self) -> Float[Tensor, " width"]:
        """Norm of all weight vectors of a neuron, in fp32."""
        squares = self.down.float().square().sum(0)
        for rows in (self.up, self.gate):
            if rows is not None:
                squares += rows.float().square().sum(1)
        return squares.sqrt()


def neurons_of(layer: nn.Module, family: Family) -> Neurons:
    """The weight vectors of a decoder layer's neurons (the halves apart where gate and up are fused)."""
    down = layer.get_parameter(f"{family.down}.weight")
    if family.fused:
        both = layer.get_parameter(f"{family.up}.weight").chunk(2, dim=0)
        return Neurons(both[0], both[1], down)
    gate = layer.get_parameter(f"{family.gate}.weight") if family.gate else None
    return Neurons(gate, layer.get_parameter(f"{family.up}.weight"), down)


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

    def join(self, processes: Processes) -> None:
        """Become the change over what all processes have seen."""
        totals, tops, tokens = zip(*processes.gather(self.sums()), strict=True)
        self.total, self.top, self.tokens = sum(totals), max(tops), sum(tokens)

    @property
    def mean(self) -> float:
        """Mean over all tokens seen."""
        return self.total / max(self.tokens, 1)

    def sums(self) -> tuple[float, float, int]:
        """All that is gathered, in the order of the fields."""
        return self.total, self.top, self.tokens
