"""A pass over the whole model in memory: every layer is looked at while the model runs, backwards if need be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunetune.common.device import ALONE, Processes
from prunetune.pruning.gradients import backward_by_layer
from prunetune.pruning.halfway import Halfway, in_parts
from prunetune.pruning.ranking import Ranked, stacked
from prunetune.pruning.scoring.layer import Asked, LayerPass, places_of

Batch = dict[str, Tensor]


def whole(
    model: PreTrainedModel,
    batches: Sequence[Batch],
    asked: Asked,
    progress: Callable[[int, int], None] | None = None,
    halfway: Halfway | None = None,
    processes: Processes = ALONE,
) -> Ranked:
    """Scores by a criterion that needs activations, gradients, votes or weights.

    Args:
        model: In eval mode.
        batches: {input_ids, attention_mask}; padded places never count.
        asked: What is scored.
        progress: Called with (batches done, batches in all).
        halfway: Where an earlier start may have left off, and where this one may.
        processes: Who scores: each takes its share of the batches, and has all scores in the end.

    Raises:
        NotFinite: A layer's activations or gradients overflow.
    """
    layers: nn.ModuleList = model.get_submodule(asked.family.layers)  # type: ignore[assignment]  # by contract
    passes = [LayerPass(layer, i, asked) for i, layer in enumerate(layers)]
    if asked.axes or asked.family.experts:
        halfway = None  # what these gather is not kept
    halfway = halfway.of(processes) if halfway else None
    before, batches = (
        _restore(passes, halfway.found(model.device)) if halfway else 0,
        processes.share(in_parts(batches)),
    )
    with ExitStack() as hooks:
        for one in passes:
            hooks.enter_context(one.hooked())
        for done, batch in enumerate(batches[before:], start=before + 1):
            _run(model, layers, passes, asked, {k: v.to(model.device) for k, v in batch.items()})
            if progress:
                progress(done, len(batches))
            if halfway:
                halfway.reached(done, len(batches), partial(_state, passes, done))
    for one in passes if processes.count > 1 else ():
        one.join(processes)
    others = [one.others() for one in passes]
    neurons = torch.stack([one.neurons().cpu() for one in passes])
    return Ranked(neurons, [one.change for one in passes], stacked(others))


def _run(
    model: PreTrainedModel, layers: nn.ModuleList, passes: Sequence[LayerPass], asked: Asked, batch: Batch
) -> None:
    places = places_of(batch["attention_mask"])
    for one in passes:
        one.at = places
    if asked.chosen.needs == "gradients":
        backward_by_layer(model, layers, batch)
    else:
        with torch.no_grad():
            model.get_submodule(asked.family.base)(**batch, use_cache=False)
    for one in passes:
        one.check(model.dtype)


def _gathered(passes: Sequence[LayerPass]) -> list[dict[str, Any]]:
    return [vars(s) for s in (*(one.stat for one in passes), *(one.up_votes for one in passes))]


def _state(passes: Sequence[LayerPass], done: int) -> dict[str, Any]:
    """What a later start goes on from."""
    return {"done": done, "gathered": _gathered(passes), "changes": [one.change.sums() for one in passes]}


def _restore(passes: Sequence[LayerPass], state: dict[str, Any] | None) -> int:
    """Take up what an earlier start gathered; how many batches that were."""
    if state is None:
        return 0
    for mine, values in zip(_gathered(passes), state["gathered"], strict=True):
        mine.update(values)
    for one, sums in zip(passes, state["changes"], strict=True):
        one.change.total, one.change.top, one.change.tokens = sums
    return int(state["done"])
