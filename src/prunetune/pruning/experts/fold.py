"""Least squares inside the experts of a mixture: the neurons that stay in an expert make up for those that it loses.

An expert's output enters the layer times its gate, so without the neurons r the layer lacks g_j(x) W_r a_r(x) for each
token x that is routed to expert j, and what is least is its square over those tokens. So a token counts with g_j(x)^2:

    C_j = E[g_j^2 a a^T]      W_j[:, k] + W_j[:, r] C_j[r, k] (C_j[k, k] + ridge I)^-1   in place of   W_j[:, k]

Each expert has a ridge of its own, chosen on the held-out tokens that it gets. One that gets fewer than `FEW` of them,
or none to fit to, or that no ridge helps, is only cut. What the experts of a token lack adds up, so that each may get
better and their sum worse: the layer's output is therefore looked at whole on the held-out tokens, and a layer that did
not come nearer is only cut.

In memory are C of all experts of one layer, twice: 16 x experts x width^2 bytes.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from prunetune.common.device import Processes
from prunetune.models.families import Experts, Family
from prunetune.models.finite import broken_weights, is_finite, layer_overflow
from prunetune.pruning.experts.cut import kept_neurons
from prunetune.pruning.experts.walk import activations, expert_of, sent
from prunetune.pruning.folding.layer import cut_layer
from prunetune.pruning.layerwise import LayerSource, OneLayer, Shelf, forward
from prunetune.pruning.least_squares import Fold, Gram, fold, residue_of
from prunetune.pruning.patch import LayerFit
from prunetune.pruning.plan import PrunePlan
from prunetune.pruning.tap import at_real

FEW = 16
"""Held-out tokens that choose an expert's ridge; with fewer chance chooses it, and one expert in seven or so is left
worse on fresh tokens than by the cut alone (studies/11-calibration-tokens)."""

Moments = tuple[Mapping[int, Tensor], Mapping[int, Tensor]]
"""Expert -> its C, over the tokens to fit to and over those held out; of those that got enough."""


class RoutedTap:
    """What the experts of a layer in hand are sent, and what they give, while it runs.

    With a bias on the down projections, C has one more row: that of a neuron that is always 1.
    """

    def __init__(self, block: nn.Module, family: Family) -> None:
        self.found: Experts = family.experts  # type: ignore[assignment]  # by contract
        self.module = block.get_submodule(self.found.module)
        self.device = block.get_parameter(self.found.down).device
        self.grams: tuple[dict[int, Gram], dict[int, Gram]] = ({}, {})
        self.gather: dict[int, Gram] | None = None
        self.real = torch.zeros(0, dtype=torch.int64)
        self.output: Tensor | None = None
        self.handle = self.module.register_forward_hook(self._hook)

    def __enter__(self) -> RoutedTap:
        return self

    def __exit__(self, *_: object) -> None:
        self.handle.remove()

    def run(
        self, one: OneLayer, hidden: Float[Tensor, "batch places hidden"], real: Bool[Tensor, "batch places"], into: int
    ) -> tuple[Float[Tensor, "batch places hidden"], Float[Tensor, "tokens hidden"]]:
        """(the layer's output; the experts', of the real tokens). Moments go into this one of both; -1: nowhere."""
        self.real, self.gather = real.flatten().nonzero().squeeze(1), self.grams[into] if into >= 0 else None
        out = forward(one, hidden, real)
        if self.output is None:
            raise RuntimeError("the experts did not run")
        y, self.output = self.output.flatten(0, -2).index_select(0, self.real), None
        return out, y

    def _hook(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        self.output = output
        if self.gather is None:
            return
        x, chosen, gates = args
        for one in sent(x, chosen, gates, self.real):
            gate = one.gate.float()[:, None]
            a = activations(module, self.found, one.expert, one.x).float() * gate
            features = torch.cat([a, gate], dim=1) if self.found.bias else a
            if one.expert not in self.gather:
                self.gather[one.expert] = Gram(features.shape[1], features.device)
            self.gather[one.expert].update(features)

    def moments(self, width: int, processes: Processes) -> Moments:
        """C of every expert that got `FEW` held-out tokens, over the tokens of all processes. Call it once."""
        for grams in self.grams:
            for expert in sorted(set().union(*processes.gather(set(grams)))):
                if expert not in grams:
                    grams[expert] = Gram(width + self.found.bias, self.device)
                grams[expert].join(processes)
        fitted, held_out = self.grams
        enough = {expert: gram.finish() for expert, gram in held_out.items() if gram.tokens >= FEW}
        return {expert: gram.finish() for expert, gram in fitted.items() if expert in enough}, enough


@dataclass(frozen=True)
class Mended:
    """What least squares makes of a layer's experts.

    Attributes:
        tensors: The down projections (and biases) of all of them, cut, by their suffix in the layer.
        ridges: Of the experts that are changed; the others are only cut.
    """

    tensors: dict[str, Tensor]
    ridges: tuple[float, ...]

    @property
    def ridge(self) -> float | None:
        """The middle one; None: no expert is changed."""
        return statistics.median_low(self.ridges) if self.ridges else None


def mended(
    block: nn.Module,
    family: Family,
    plan: PrunePlan,
    layer: int,
    moments: Moments,
    ridges: Sequence[float],
    start: float | None,
) -> Mended:
    """Least squares of every expert of a layer in hand, of whose neurons some go (`cut.of_the_rest`)."""
    found: Experts = family.experts  # type: ignore[assignment]  # by contract
    module, chosen = block.get_submodule(found.module), list[float]()
    biases = module.get_parameter("down_proj_bias").detach().to(torch.float32, copy=True) if found.bias else None
    weights = list[Tensor]()
    for expert, kept in kept_neurons(plan, layer).items():
        down = expert_of(module, found, expert).down.float()
        stay = torch.tensor(kept, device=down.device)
        weight = down[:, stay]
        if all(expert in each for each in moments):
            one = _fold(down, stay, [each[expert] for each in moments], ridges, start)
            if one.change is not None and one.ridge is not None:
                change = one.change.float()
                weight, chosen = weight + change[:, : len(kept)], [*chosen, one.ridge]
                if biases is not None:
                    biases[expert] += change[:, -1]
        weights.append(weight)
    stacked = torch.stack(weights)
    tensors = {found.down: stacked.mT.contiguous() if found.transposed else stacked}
    return Mended(tensors | ({} if biases is None else {f"{found.down}_bias": biases}), tuple(chosen))


def _fold(
    down: Float[Tensor, "hidden width"],
    stay: Int64[Tensor, " kept"],
    both: Sequence[Float[Tensor, "n n"]],
    ridges: Sequence[float],
    start: float | None,
) -> Fold:
    """One expert's least squares; errors are relative to that of plain pruning."""
    goes = torch.ones(len(both[0]), dtype=torch.bool, device=down.device)
    goes[stay], goes[down.shape[1] :] = False, False  # the bias stays
    gone, kept = goes.nonzero().squeeze(1), (~goes).nonzero().squeeze(1)
    calibration, held_out = (residue_of(c, down[:, gone], kept, gone) for c in both)
    return fold(calibration, held_out, ridges, start)


def as_stored(source: LayerSource, layer: int, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of all experts as a patch has them: by their names in the model, in the dtype that the source has."""
    family, patch = source.family, dict[str, Tensor]()
    for suffix, tensor in tensors.items():
        names = (n for s, n in source.names[layer].items() if family.experts and family.experts.held(s) == suffix)
        name = f"{family.layers}.{layer}.{suffix}"
        patch[name] = tensor.to(source.stored(next(names))).cpu()
        if not is_finite(patch[name]):
            raise broken_weights(f"layer {layer}'s patch", name, patch[name])
    return patch


@dataclass(frozen=True)
class Held:
    """A layer in hand and what it is run on: the batches to fit to, then those held out."""

    one: OneLayer
    hidden: Sequence[Tensor]
    masks: Sequence[Tensor]
    calibration: int
    shelf: Shelf

    def gather(self, tap: RoutedTap, layer: int) -> list[Tensor]:
        """Let the tap take moments; the experts' output on what is held out. NotFinite: the layer overflows."""
        outputs = []
        for i, real in enumerate(self.masks):
            before = self.shelf.take(self.hidden[i])
            out, y = tap.run(self.one, before, real, into=int(i >= self.calibration))
            if not is_finite(at_real(out, real)):
                raise layer_overflow(self.one.block, layer, "its second moments", before.dtype)
            if i >= self.calibration:
                outputs.append(self.shelf.put(y))
        return outputs

    def compare(self, tap: RoutedTap, whole: Sequence[Tensor], *, keep: bool) -> tuple[float, float, list[Tensor]]:
        """(squared distance of the experts' output from that of the whole layer on what is held out; that one's square;
        the layer's outputs, if they are to be kept).
        """
        error, energy, after = 0.0, 0.0, list[Tensor]()
        for i in range(0 if keep else self.calibration, len(self.masks)):
            out, y = tap.run(self.one, self.shelf.take(self.hidden[i]), self.masks[i], into=-1)
            if i >= self.calibration:
                was = self.shelf.take(whole[i - self.calibration]).float()
                error += float((was - y.float()).square().sum(dtype=torch.float64))
                energy += float(was.square().sum(dtype=torch.float64))
            if keep:
                after.append(self.shelf.put(out))
        return error, energy, after


def fold_experts(
    held: Held,
    source: LayerSource,
    plan: PrunePlan,
    layer: int,
    *,
    ridges: Sequence[float],
    start: float | None,
    processes: Processes,
    last: bool,
) -> tuple[list[Tensor], dict[str, Tensor], LayerFit]:
    """Cut and mend the experts of a layer in hand.

    Args:
        held: The layer, without the experts that go as a whole, and what it is run on.
        source: Where it is from.
        plan: The neurons that go of the experts that stay (`cut.of_the_rest`).
        layer: Its place.
        ridges: To choose from.
        start: The one to begin with.
        processes: Who folds, each with batches of its own.
        last: Its output is not asked for.

    Returns:
        (the layer's outputs as it is now, its patch, how well it fits).
    """
    with RoutedTap(held.one.block, source.family) as tap:
        whole = held.gather(tap, layer)
        moments = tap.moments(source.width, processes)
        found = mended(held.one.block, source.family, plan, layer, moments, ridges, start)
        return settled(held, tap, whole, found, source, plan, layer, processes=processes, last=last)


def settled(
    held: Held,
    tap: RoutedTap,
    whole: Sequence[Tensor],
    found: Mended,
    source: LayerSource,
    plan: PrunePlan,
    layer: int,
    *,
    processes: Processes,
    last: bool,
) -> tuple[list[Tensor], dict[str, Tensor], LayerFit]:
    """Cut the layer in hand, and put in what least squares found if the experts' output comes nearer to the `whole`.

    Returns as `fold_experts`.
    """
    one, start = held.one, f"{source.family.layers}.{layer}."
    cut_layer(one, source, plan, layer, {})
    error, energy, after = held.compare(tap, whole, keep=not last and not found.ridges)
    before, energy = (sum(processes.gather(each)) for each in (error, energy))
    patch, left = dict[str, Tensor](), before
    if found.ridges:
        plain = {suffix: one.block.get_parameter(suffix) for suffix in found.tensors}
        patch = as_stored(source, layer, found.tensors)
        _put(one.block, {suffix: patch[start + suffix] for suffix in found.tensors})
        error, _, after = held.compare(tap, whole, keep=not last)
        left = sum(processes.gather(error))
        if not left < before:
            _put(one.block, plain)
            patch, left, (_, _, after) = {}, before, held.compare(tap, whole, keep=not last)
    ridge, changed = (found.ridge, len(found.ridges)) if patch else (None, 0)
    scale = energy or 1.0
    return after, patch, LayerFit(layer, ridge, before / scale, left / scale, experts=changed)


def _put(block: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put tensors into a layer in hand, by their suffix in it."""
    for suffix, tensor in tensors.items():
        module, _, name = suffix.rpartition(".")
        new = nn.Parameter(tensor.to(block.get_parameter(suffix)), requires_grad=False)
        setattr(block.get_submodule(module), name, new)
