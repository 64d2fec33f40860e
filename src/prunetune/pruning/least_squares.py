"""Second moments of the FFN's activations, and what follows from them by linear algebra alone.

a [tokens, width] is the input of `down_proj`, C = E[a a^T]. When the neurons r go and k stay, the FFN loses
u = W_r a_r for each token. The kept columns can make up for the part of u that is linear in a_k:

    D = E[u a_k^T] (C_kk + ridge I)^-1      W_k + D  instead of  W_k               (least squares with a ridge)

so D = W_r C_rk (C_kk + ridge I)^-1. The error left over is E||u||^2 - 2 <D, E[u a_k^T]> + <D C_kk, D>, which held-out
tokens give for every ridge without another pass. With the whole C the same algebra ranks neurons by the error left
*after* compensation: ||W_j||^2 / (C^-1)_jj for one neuron (the optimal brain surgeon's saliency, Hassibi & Stork 1993,
for a column), and neuron after neuron for a greedy order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from prunetune.common.device import Processes, native_products, sum_dtype

BLOCK = 256
"""Rows of a product that are computed at a time; C is symmetric, so only the blocks on and above the diagonal."""


class Gram:
    """C = E[x x^T] over tokens, in memory that does not grow with the number of tokens."""

    def __init__(
        self, width: int, device: torch.device | str = "cpu", total: Tensor | None = None, tokens: int = 0
    ) -> None:
        kind = sum_dtype(width, torch.device(device).type)
        self.total = torch.zeros(width, width, dtype=kind, device=device) if total is None else total
        self.tokens = tokens

    def update(self, x: Float[Tensor, "tokens width"]) -> None:
        """Add a batch of tokens. Products are summed in fp32 at least; bf16 is multiplied as it is."""
        full = x.float()
        with native_products(x):
            for i in range(0, x.shape[1], BLOCK):
                rows = self.total[i : i + BLOCK, i:]
                if self.total.dtype == full.dtype:
                    rows.addmm_(full[:, i : i + BLOCK].T, full[:, i:])
                else:
                    rows += full[:, i : i + BLOCK].T @ full[:, i:]
        self.tokens += len(x)

    def join(self, processes: Processes) -> None:
        """Become the sum over the tokens of all processes."""
        self.total = processes.total(self.total)
        self.tokens = sum(processes.gather(self.tokens))

    def finish(self) -> Float[Tensor, "width width"]:
        """The mean over tokens. Works in place: call it once."""
        for i in range(0, len(self.total), BLOCK):
            j = min(i + BLOCK, len(self.total))
            self.total[j:, i:j] = self.total[i:j, j:].T
            self.total[i:j, i:j] = torch.triu(self.total[i:j, i:j]) + torch.triu(self.total[i:j, i:j], 1).T
        return self.total.div_(max(self.tokens, 1))


@dataclass(frozen=True)
class Residue:
    """What the kept neurons are asked to make up for, over one set of tokens.

    Attributes:
        kept: C_kk = E[a_k a_k^T].
        cross: E[u a_k^T], u being what is missing.
        missing: E||u||^2.
        energy: E||y||^2 of the whole output, for relative errors.
        tokens: Number of tokens.
    """

    kept: Float[Tensor, "kept kept"]
    cross: Float[Tensor, "hidden kept"]
    missing: float
    energy: float
    tokens: int

    def error(self, change: Float[Tensor, "hidden kept"] | None) -> float:
        """E||u - change a_k||^2 / E||y||^2; without a change: of plain pruning."""
        left = self.missing
        if change is not None:
            left += float((change * (change @ self.kept - 2 * self.cross)).sum())
        return max(left, 0.0) / self.energy if self.energy > 0 else 0.0

    def of(self, weight: Float[Tensor, "hidden kept"]) -> Residue:
        """With E||y||^2 of y = weight a_k + u, where the output itself was not seen."""
        weight = weight.to(self.kept)
        energy = self.missing + float((weight * (weight @ self.kept + 2 * self.cross)).sum())
        return replace(self, energy=energy)


def energy_of(x: Float[Tensor, "tokens n"]) -> float:
    """Sum of the squares: fp32 within a token, fp64 over tokens (fp64 throughout takes ten times as long on a CPU)."""
    return float(x.float().square().sum(1).sum(dtype=sum_dtype(1, x.device.type)))


def residue_of(
    second: Float[Tensor, "n n"],
    lost: Float[Tensor, "hidden gone"],
    stay: Int64[Tensor, " kept"],
    gone: Int64[Tensor, " gone"],
) -> Residue:
    """The `Residue` of one choice of neurons from the whole C; its errors are relative to that of plain pruning."""
    rows, lost = second[gone], lost.to(second)
    missing = float(((lost @ rows[:, gone]) * lost).sum())
    return Residue(second[stay][:, stay], lost @ rows[:, stay], missing, missing, 0)


class ResidueSum:
    """Gathers a `Residue` batch by batch."""

    def __init__(self, kept: int, hidden: int, device: torch.device | str = "cpu") -> None:
        self.gram = Gram(kept, device)
        self.cross = torch.zeros(hidden, kept, dtype=self.gram.total.dtype, device=device)
        self.missing = self.energy = 0.0

    def update(
        self,
        kept: Float[Tensor, "tokens kept"],
        missing: Float[Tensor, "tokens hidden"],
        whole: Float[Tensor, "tokens hidden"] | None,
    ) -> None:
        """Add tokens: activations of the kept neurons, what is missing, and the whole output (None: see `of`)."""
        self.gram.update(kept)
        with native_products(kept):
            self.cross += missing.float().T @ kept.float()
        self.missing += energy_of(missing)
        self.energy += 0.0 if whole is None else energy_of(whole)

    def join(self, processes: Processes) -> None:
        """Become the sums over the tokens of all processes."""
        self.gram.join(processes)
        self.cross = processes.total(self.cross)
        missing, energy = zip(*processes.gather((self.missing, self.energy)), strict=True)
        self.missing, self.energy = sum(missing), sum(energy)

    def finish(self) -> Residue:
        """The means over tokens. Works in place: call it once."""
        n = max(self.gram.tokens, 1)
        return Residue(self.gram.finish(), self.cross.div_(n), self.missing / n, self.energy / n, self.gram.tokens)


@dataclass(frozen=True)
class Fold:
    """The best change of the kept columns, with relative held-out errors before and after.

    `change` and `ridge` are None where no ridge lowers the held-out error: then `after` equals `before`.
    """

    change: Float[Tensor, "hidden kept"] | None
    ridge: float | None
    before: float
    after: float


def fold(calibration: Residue, held_out: Residue, ridges: Sequence[float], start: float | None = None) -> Fold:
    """Solve on the calibration tokens with several ridges and keep the best on the held-out ones.

    Held-out error falls and then rises with the ridge, so the search walks from `start` while it falls: two or three
    factorisations instead of one for every ridge.

    Args:
        calibration: Tokens to fit on.
        held_out: Tokens to choose the ridge with, not among those.
        ridges: Relative to the mean of the diagonal of C_kk.
        start: The ridge of these to begin with, such as the layer before's (default: the one in the middle).
    """
    before, errors = held_out.error(None), dict[int, float]()
    scale, ladder = float(calibration.kept.diagonal().mean()), sorted(ridges)
    least = Fold(None, None, before, before)

    def at(i: int) -> float:
        nonlocal least
        if i not in errors:
            change = solve(calibration.kept, calibration.cross, ladder[i] * scale)
            errors[i] = math.inf if change is None else held_out.error(change)
            if errors[i] < least.after:  # no other change is kept: it is as large as the matrix
                least = Fold(change, ladder[i], before, errors[i])
        return errors[i]

    if scale <= 0 or not ladder:
        return least
    best = ladder.index(start) if start in ladder else len(ladder) // 2
    for step in (1, -1):
        while 0 <= best + step < len(ladder) and (at(best + step) < at(best) or at(best) == math.inf):
            best += step
    at(best)
    return least


def solve(
    kept: Float[Tensor, "kept kept"], cross: Float[Tensor, "hidden kept"], ridge: float
) -> Float[Tensor, "hidden kept"] | None:
    """Cross times (kept + ridge I)^-1, by Cholesky; None if that is not positive definite in this precision."""
    matrix = kept.clone()
    matrix.diagonal().add_(ridge)
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if failed:
        return None
    return torch.cholesky_solve(cross.T, factor).T


# ------------------------------------------------------------------------------ ranking by the error after compensation


def _inverse(second: Float[Tensor, "width width"], ridge: float) -> Float[Tensor, "width width"]:
    """(C + ridge * mean diagonal)^-1 in C's precision."""
    matrix = second.clone()
    scale = float(matrix.diagonal().mean())
    matrix.diagonal().add_(ridge * scale if scale > 0 else 1.0)
    return torch.cholesky_inverse(torch.linalg.cholesky(matrix))


def leverage(
    second: Float[Tensor, "width width"], down: Float[Tensor, "hidden width"], ridge: float = 1e-3
) -> Float[Tensor, " width"]:
    """E||error||^2 that is left if this one neuron goes and all others make up for it; low = redundant.

    Args:
        second: C = E[a a^T].
        down: W_down.
        ridge: Relative to the mean of C's diagonal.
    """
    return (down.to(second).square().sum(0) / _inverse(second, ridge).diagonal()).float()


def greedy(
    second: Float[Tensor, "width width"],
    down: Float[Tensor, "hidden width"],
    *,
    count: int | None = None,
    ridge: float = 1e-3,
    block: int = 16,
) -> Float[Tensor, " width"]:
    """The error left when neurons go one after another, cheapest first, each made up for by all that still stay.

    The order does not depend on how many go in the end, so one score serves any width down to width - count.

    Args:
        second: C = E[a a^T].
        down: W_down.
        count: Neurons to order (default: three quarters); the others rank behind them, by leverage among those left.
        ridge: Relative to the mean of C's diagonal.
        block: Neurons chosen, exactly, among the 4 * block cheapest before all others are updated. Speed only: an
            update of a block is one matrix product.

    Returns:
        The cumulative error at the removal of each neuron: low = goes first.
    """
    width = len(second)
    left = min(width - 1, (3 * width) // 4 if count is None else count)
    stay = _Standing.of(_inverse(second, ridge), down.to(second).T.contiguous())
    score = torch.zeros(width, dtype=second.dtype, device=second.device)
    total = torch.zeros((), dtype=second.dtype, device=second.device)
    while left > 0:
        near = stay.cheapest(4 * block)
        weight = stay.weight[near]
        chosen, errors = _pick(stay.inverse[near][:, near], weight @ weight.T, min(block, left))
        score[stay.names[near[chosen]]] = total + errors.cumsum(0)
        total = total + errors.sum()
        stay.drop(near[chosen])
        left -= len(chosen)
        if 4 * stay.count < 3 * len(stay.names):
            stay = stay.shrunk()
    stay = stay.shrunk()
    score[stay.names] = total + stay.saliency()
    return score.float()


@dataclass
class _Standing:
    """The neurons that still stay, and some that have gone since the last `shrunk`.

    Attributes:
        names: Their numbers in the layer.
        inverse: (C + ridge)^-1 of those that stay; the row and column of one that went is that of the unit matrix.
        weight: Their columns of W_down as compensation has made them, as rows; zero where one went.
        here: Which stay.
        count: How many stay: known without asking the device.
    """

    names: Int64[Tensor, " n"]
    inverse: Float[Tensor, "n n"]
    weight: Float[Tensor, "n hidden"]
    here: Bool[Tensor, " n"]
    count: int

    @staticmethod
    def of(inverse: Float[Tensor, "n n"], weight: Float[Tensor, "n hidden"]) -> _Standing:
        """All of a layer's neurons."""
        names = torch.arange(len(inverse), device=inverse.device)
        return _Standing(names, inverse, weight, torch.ones_like(names, dtype=torch.bool), len(names))

    def saliency(self) -> Float[Tensor, " n"]:
        """The error that each would add if it went now."""
        return self.weight.square().sum(1) / self.inverse.diagonal()

    def cheapest(self, count: int) -> Int64[Tensor, " found"]:
        """Places of the `count` that would add least, of those that stay."""
        return self.saliency().masked_fill(~self.here, torch.inf).topk(min(count, self.count), largest=False).indices

    def drop(self, go: Int64[Tensor, " gone"]) -> None:
        """Let some go, made up for by the rest: a rank-k update of both matrices, in place."""
        rows, removed = self.inverse[go], self.weight[go]
        spread = torch.linalg.solve(rows[:, go], rows)  # (H_RR)^-1 H_R
        self.weight.addmm_(spread.T, removed, alpha=-1)
        self.inverse.addmm_(rows.T, spread, alpha=-1)
        self.inverse[go, go] = 1.0  # its row and column are zero now; the diagonal is divided by
        self.weight[go] = 0
        self.here[go] = False
        self.count -= len(go)

    def shrunk(self) -> _Standing:
        """Without those that went: smaller matrices."""
        stay = self.here.nonzero().squeeze(1)
        inverse = self.inverse[stay][:, stay].contiguous()
        return _Standing(self.names[stay], inverse, self.weight[stay], self.here[stay], self.count)


def _pick(
    inverse: Float[Tensor, "n n"], products: Float[Tensor, "n n"], count: int
) -> tuple[Int64[Tensor, " count"], Float[Tensor, " count"]]:
    """The exact greedy order among n candidates: (their places, the error that each adds). Nothing leaves the device.

    Args:
        inverse: Their part of (C + ridge)^-1.
        products: W_i . W_j of their columns of W_down.
        count: How many to choose.
    """
    chosen, errors = [], []
    gone = torch.zeros(len(inverse), dtype=inverse.dtype, device=inverse.device)
    for _ in range(count):
        saliency = products.diagonal() / inverse.diagonal() + gone
        j = saliency.argmin()
        chosen.append(j)
        errors.append(saliency[j])
        gone = gone.index_fill(0, j, torch.inf)
        row, theirs = inverse[j] / inverse[j, j], products[j]
        both = torch.outer(row, theirs)  # W_i loses row_i W_j, so W_i . W_k loses three products
        products = products - both - both.T + theirs[j] * torch.outer(row, row)
        inverse = inverse - torch.outer(inverse[j], row)
        inverse[j, j] = 1.0
    return torch.stack(chosen), torch.stack(errors)
