"""Patches of several plans that take neurons alone, from one walk: good enough to compare cuts with, not to cut with.

    for each layer, in order:
        run it whole on the input that the first plan's layers before it give; gather all of C = E[a a^T], once
        every plan's least squares are parts of C: solve them all
        the first plan's output is the next layer's input

So the first plan gets nearly what `compensate` gives, but that its ridge is chosen on fewer sequences. The others,
which should take more, get the moments of a stream that is hurt a little less than theirs (docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from prunetune.common.device import ALONE, Processes
from prunetune.errors import PlanError
from prunetune.pruning.cut import check_shape
from prunetune.pruning.experts.cut import check_counted, of_the_rest
from prunetune.pruning.experts.fold import Held, RoutedTap, as_stored, mended, settled
from prunetune.pruning.folding.layer import MEMORY, Half, columns, cut_layer, patch_of, with_one
from prunetune.pruning.halfway import Halfway
from prunetune.pruning.layerwise import LayerSource, OneLayer, Shelf, embed, one_layer, open_source
from prunetune.pruning.least_squares import Fold, Gram, fold, residue_of
from prunetune.pruning.plan import PrunePlan
from prunetune.pruning.tap import Tap, adds, at_real

Batch = dict[str, Tensor]


def together(
    model: PreTrainedModel | Path,
    plans: Sequence[PrunePlan],
    batches: Sequence[Batch],
    *,
    held_out: Sequence[Batch],
    ridges: Sequence[float],
    progress: Callable[[int, int], None] | None = None,
    halfway: Halfway | None = None,
    processes: Processes = ALONE,
) -> list[dict[str, Tensor]]:
    """Replacement tensors for each plan, by their names in the model (`cut.patch_name`).

    Args:
        model: The model that the plans are for, or its folder.
        plans: Each takes neurons and nothing else; the one that takes least first.
        batches: Calibration: {input_ids, attention_mask}; padded places never count.
        held_out: Batches that choose the ridge; not among the calibration.
        ridges: To choose from, relative to the mean of C_kk's diagonal.
        progress: Called with (layers done, layers in all).
        halfway: Where an earlier start may have left off, and where this one may. The result stays there too.
        processes: Who folds: each runs every layer on its share of the batches, and has all patches in the end.

    Raises:
        PlanError: A plan does not fit the model, or takes other units. NotFinite: A layer's activations overflow.
    """
    source = open_source(model, quick=True)
    for plan in plans:
        check_shape(plan, source.config.to_dict())
        check_counted(plan, source.family)
        if plan.drop_layers or plan.drop:
            raise PlanError("one walk folds several plans only if they take neurons alone", value=plan.new_shape)
    every, calibration = processes.share([*batches, *held_out]), len(processes.share(batches))
    halfway = halfway.of(processes, abreast=True) if halfway else None
    masks = [b["attention_mask"].bool().to(source.device) for b in every]
    state = halfway.found(source.device) if halfway else None
    if state is None:
        hidden = embed(source, [b["input_ids"] for b in every])
        state = {"hidden": hidden, "found": [{} for _ in plans], "ridges": [None for _ in plans], "next": 0}
    hidden, found, start = state["hidden"], [_cpu(tensors) for tensors in state["found"]], state["ridges"]
    given, through = _Given(source, plans, masks, calibration, ridges, processes), _dense
    if source.family.experts:
        given, through = replace(given, plans=[of_the_rest(plan) for plan in plans]), _experts
    with torch.no_grad(), torch.autocast(source.device.type, enabled=False):
        for layer in range(state["next"], source.depth):
            hidden, patches, start = through(given, layer, hidden, start)
            found = [tensors | patch for tensors, patch in zip(found, patches, strict=True)]
            if progress:
                progress(layer + 1, source.depth)
            if halfway:
                now = {"hidden": hidden, "found": found, "ridges": start, "next": layer + 1}
                halfway.reached(layer + 1, source.depth, partial(dict, now), result=True)
    return found


@dataclass(frozen=True)
class _Given:
    """What every layer is folded with."""

    source: LayerSource
    plans: Sequence[PrunePlan]
    masks: list[Tensor]
    calibration: int
    ridges: Sequence[float]
    processes: Processes


_After = tuple[list[Tensor], list[dict[str, Tensor]], list[float | None]]
"""The layer's outputs by the first plan, every plan's patch of it, and the ridge to begin the next layer with."""


def _dense(given: _Given, layer: int, hidden: list[Tensor], start: list[float | None]) -> _After:
    source, plans, one = given.source, given.plans, one_layer(given.source, layer)
    grams, halves = _gather(one, source, plans[0], layer, hidden, given.masks, given.calibration)
    moments = [_joined(gram, given.processes) for gram in grams]
    fits = [_solve(one, source, p, layer, moments, given.ridges, r) for p, r in zip(plans, start, strict=True)]
    patches = [patch_of(one, source, p, layer, fit) for p, fit in zip(plans, fits, strict=True)]
    cut_layer(one, source, plans[0], layer, patches[0])
    after = [] if layer == source.depth - 1 else [half.whole(one, source) for half in halves]
    return after, patches, [fit.ridge or before for fit, before in zip(fits, start, strict=True)]


def _experts(given: _Given, layer: int, hidden: list[Tensor], start: list[float | None]) -> _After:
    """The same of a mixture. Only the first plan's patch is looked at as a whole layer (`fold.settled`)."""
    source, one = given.source, one_layer(given.source, layer)
    held = Held(one, hidden, given.masks, given.calibration, Shelf("device", source.device))
    with RoutedTap(one.block, source.family) as tap:
        whole = held.gather(tap, layer)
        asked = (tap.moments(source.width, given.processes), given.ridges)
        found = [
            mended(one.block, source.family, plan, layer, *asked, ridge)
            for plan, ridge in zip(given.plans, start, strict=True)
        ]
        ways: Any = {"processes": given.processes, "last": layer == source.depth - 1}
        after, patch, _ = settled(held, tap, whole, found[0], source, given.plans[0], layer, **ways)
    others = [as_stored(source, layer, each.tensors) if each.ridges else {} for each in found[1:]]
    return after, [patch, *others], [each.ridge or before for each, before in zip(found, start, strict=True)]


def _cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.cpu() for name, tensor in tensors.items()}


def _gather(
    one: OneLayer,
    source: LayerSource,
    plan: PrunePlan,
    layer: int,
    hidden: list[Tensor],
    masks: list[Tensor],
    calibration: int,
) -> tuple[list[Gram], list[Half]]:
    """C over both sets of tokens, with a last row for a bias if there is one; what the next layer can start from."""
    kept = torch.tensor(plan.kept("neurons", layer), device=source.device)
    apart, left, halves = bool(hidden) and adds(one, source, layer, hidden[-1]), MEMORY, list[Half]()
    with Tap(one, source, layer, apart=apart) as tap:
        bias = tap.down.bias is not None
        grams = [Gram(source.width + bias, source.device) for _ in range(2)]
        for i, (x, real) in enumerate(zip(hidden, masks, strict=True)):
            seen = tap.run(x, real)
            features = seen.weighted(at_real(seen.a, real))
            grams[i >= calibration].update(with_one(features, seen.weight) if bias else features)
            stay = columns(seen.a, kept)
            left -= stay.nbytes + x.nbytes
            again = left < 0 or not apart
            halves.append(Half(x, real, None if again else seen.rest, None if again else stay))
    return grams, halves


def _joined(gram: Gram, processes: Processes) -> Float[Tensor, "n n"]:
    """C over the tokens of all processes."""
    gram.join(processes)
    return gram.finish().float()


def _solve(
    one: OneLayer,
    source: LayerSource,
    plan: PrunePlan,
    layer: int,
    moments: list[Float[Tensor, "n n"]],
    ridges: Sequence[float],
    start: float | None,
) -> Fold:
    down: Any = one.block.get_submodule(source.family.down)
    kept = [*plan.kept("neurons", layer), *([plan.width] if down.bias is not None else [])]
    stay = torch.tensor(kept, device=source.device)
    gone = torch.tensor(plan.drop_neurons.get(layer, ()), device=source.device, dtype=torch.int64)
    lost = down.weight.float()[:, gone]
    calibration, held_out = (residue_of(c, lost, stay, gone) for c in moments)
    return fold(calibration, held_out, ridges, start)
