"""Units that are blocks of columns of a readout: a key/value group or a query head of `o_proj` (models/axes).

A unit B is a block of neighbouring columns of the readout's weight W. Without it the readout's output lacks W_B x_B for
each token, whose norm is Eq. 2 for a block. With C = E[x x^T] the error left *after* least squares, when B goes and all
others make up for it, is tr(W_B ((C^-1)_BB)^-1 W_B^T): the optimal brain surgeon's saliency of several weights at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from prunetune.common.device import sum_dtype
from prunetune.errors import UnsupportedModel
from prunetune.models.axes import Axis, axis_of
from prunetune.models.families import Family


@dataclass(frozen=True)
class Blocks:
    """The units of one axis in one layer.

    Attributes:
        readout: W, the weight whose input columns they are.
        units: How many there are.
        groups: In how many groups; each loses as many.
        squares: Of each unit, the sum of the squares of all its weights, in all tensors that it has rows of.
    """

    readout: Float[Tensor, "hidden columns"]
    units: int
    groups: int
    squares: Float[Tensor, " units"]

    def apart(self, x: Float[Tensor, "tokens columns"]) -> Float[Tensor, "tokens units block"]:
        """The inputs of each unit."""
        found: Tensor = x.float().unflatten(1, (self.units, -1))
        return found

    @cached_property
    def factors(self) -> Float[Tensor, "units rank block"]:
        """R with ||R x|| = ||W_B x|| for every unit B: the triangular factor of its columns, which is smaller."""
        columns = self.readout.float().unflatten(1, (self.units, -1)).transpose(0, 1)
        found: Tensor = torch.linalg.qr(columns, mode="r").R
        return found


def blocks_of(layer: nn.Module, axis: Axis, family: Family, shape: Mapping[str, int]) -> Blocks:
    """The units of an axis that has a readout, in a decoder layer of a model of this shape."""
    if axis.readout is None:
        raise UnsupportedModel("the units of this axis are no columns of a matrix", value=axis.name)
    places = axis.places(shape)
    readout = layer.get_parameter(f"{axis.readout(family)}.weight")
    held, squares = dict(layer.named_parameters()), torch.zeros(places, device=readout.device)
    for one in axis.slices(family, shape):
        weight = held.get(one.suffix)
        rows = None if weight is None else one.rows(weight.shape[one.dim], places)
        if weight is None or rows is None:
            continue
        each = weight.detach().float().square()
        each = each.sum(1 - one.dim) if each.ndim > 1 else each
        for part, block in zip(each.split([places * block for block in rows[0]] + [rows[1]]), rows[0], strict=False):
            squares += part.unflatten(0, (places, block)).sum(1)
    return Blocks(readout.detach(), places, places // shape[axis.name], squares)


def own_axes(family: Family, names: Sequence[str]) -> list[Axis]:
    """The axes whose units are scored as blocks: all but layers, neurons and experts, which have scores of their own.

    Args:
        family: Of the model. UnsupportedModel where it has no such axis.
        names: What is asked for.
    """
    if "experts" in names and family.experts is None:
        raise UnsupportedModel("this model has no experts to score", value=family.model_type, fix="leave out `experts`")
    return [axis_of(name) for name in names if name not in ("layers", "neurons", "experts")]


# ------------------------------------------------------------------------------------------ activations, token by token


def norms(x: Float[Tensor, "tokens columns"], blocks: Blocks) -> Float[Tensor, "tokens units"]:
    """||x_B||: what a unit says."""
    found: Tensor = blocks.apart(x).norm(dim=-1)
    return found


def outputs(x: Float[Tensor, "tokens columns"], blocks: Blocks) -> Float[Tensor, "tokens units"]:
    """||W_B x_B||: what the readout's output lacks without the unit (Eq. 2)."""
    found: Tensor = torch.einsum("tub,urb->tur", blocks.apart(x), blocks.factors).norm(dim=-1)
    return found


def sums(x: Float[Tensor, "tokens columns"], blocks: Blocks) -> Float[Tensor, "tokens units"]:
    """The sum over a unit: of a * dL/da, how the loss changes to first order without it."""
    return blocks.apart(x).sum(-1)


# ------------------------------------------------------------------------------------------------------ second moments


def leverage(second: Float[Tensor, "n n"], blocks: Blocks, ridge: float = 1e-3) -> Float[Tensor, " units"]:
    """E||error||^2 that is left if this one unit goes and all others make up for it; low = redundant."""
    weight, inverse = _start(second, blocks, ridge)
    return torch.stack(
        [_error(weight, inverse, _place(blocks, unit, len(second))) for unit in range(blocks.units)]
    ).float()


def greedy(second: Float[Tensor, "n n"], blocks: Blocks, ridge: float = 1e-3) -> Float[Tensor, " units"]:
    """The error left when units go one after another, cheapest first, each made up for by all that still stay.

    Every group loses one before any loses a second, so that the lowest scores of each group are the order's start. The
    last unit of each group ranks behind, by the error that it alone would add.

    Args:
        second: C = E[x x^T].
        blocks: The units.
        ridge: Relative to the mean of C's diagonal.

    Returns:
        The cumulative error at the removal of each unit: low = goes first.
    """
    weight, inverse = _start(second, blocks, ridge)
    each = blocks.units // blocks.groups
    places = [_place(blocks, unit, len(second)) for unit in range(blocks.units)]
    score, left = torch.zeros(blocks.units, dtype=weight.dtype), set(range(blocks.units))
    total, turns = 0.0, blocks.units - blocks.groups
    served: set[int] = set()
    for _ in range(turns):
        open_to = [unit for unit in sorted(left) if unit // each not in served]
        errors = [float(_error(weight, inverse, places[unit])) for unit in open_to]
        best = min(range(len(open_to)), key=errors.__getitem__)
        unit = open_to[best]
        total += max(errors[best], 0.0)
        score[unit] = total
        _drop(weight, inverse, places[unit])
        left.remove(unit)
        served = (served | {unit // each}) if len(served) + 1 < blocks.groups else set()
    for unit in left:
        score[unit] = total + max(float(_error(weight, inverse, places[unit])), 0.0)
    return score.float()


def _start(second: Tensor, blocks: Blocks, ridge: float) -> tuple[Tensor, Tensor]:
    matrix = second.to(sum_dtype(len(second)), copy=True)
    scale = float(matrix.diagonal().mean())
    matrix.diagonal().add_(ridge * scale if scale > 0 else 1.0)
    return blocks.readout.to(matrix, copy=True), torch.cholesky_inverse(torch.linalg.cholesky(matrix))


def _place(blocks: Blocks, unit: int, columns: int) -> slice:
    block = columns // blocks.units
    return slice(unit * block, (unit + 1) * block)


def _error(weight: Tensor, inverse: Tensor, at: slice) -> Tensor:
    gone = weight[:, at]
    error: Tensor = (gone * torch.linalg.solve(inverse[at, at], gone.T).T).sum()
    return error


def _drop(weight: Tensor, inverse: Tensor, at: slice) -> None:
    """Let a unit go, made up for by the rest, in place."""
    rows = inverse[at].clone()
    spread = torch.linalg.solve(rows[:, at], rows)
    weight -= weight[:, at].clone() @ spread
    inverse -= rows.T @ spread
    weight[:, at] = 0
    inverse[at, :] = inverse[:, at] = 0
    inverse[at, at] = torch.eye(at.stop - at.start, dtype=inverse.dtype, device=inverse.device)


class ReadoutTap:
    """What a readout of a layer sees, for the batch in hand; where a norm follows it, weighted as `tap.Tap` weights."""

    def __init__(self, module: nn.Module, family: Family, eps: float) -> None:
        self.module, self.family, self.eps = module, family, eps
        self.seen: tuple[Tensor, Tensor] | None = None
        self.handle = module.register_forward_hook(self._hook)

    def __enter__(self) -> ReadoutTap:
        return self

    def __exit__(self, *_: object) -> None:
        self.handle.remove()

    def _hook(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        self.seen = (args[0], output)

    def taken(
        self, real: Tensor
    ) -> tuple[Float[Tensor, "tokens columns"], Float[Tensor, "tokens hidden"], Float[Tensor, "tokens 1"]]:
        """(input, output, weights) of the real tokens, in fp32."""
        if self.seen is None:
            raise RuntimeError("the readout did not run")
        x, y = (part[real].float() for part in self.seen)
        self.seen = None
        weight = torch.ones_like(y[:, :1])
        if self.family.post_ffn_norm:
            weight = torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)
        return x * weight, y * weight, weight
