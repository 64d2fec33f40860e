"""One forward pass over reasoning sequences -> how redundant every neuron and every layer is (Eq. 2-6).

walk the base model (no head) over batches sorted by length, or layer after layer from disk (scoring/)
    hook on down_proj's input   -> a statistic over real tokens, a layer
    hook on the decoder layer   -> how much it changes the residual stream
with gradients (`taylor`): the head's loss in chunks of tokens, then layer after layer backwards, each run again
with second moments (`greedy`): layer after layer (ranking.py)
combine with the weights         -> Scores, a safetensors file that several plans can use
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prunetune.common.device import ALONE, Processes
from prunetune.errors import DataError
from prunetune.models.axes import shape_of
from prunetune.models.batches import mask_of, padded
from prunetune.models.families import family_of
from prunetune.models.finite import layer_overflow
from prunetune.models.folders import load_config
from prunetune.pruning.blocks.units import own_axes
from prunetune.pruning.criteria import Criterion, blockwise, criterion, forward_only
from prunetune.pruning.halfway import Halfway
from prunetune.pruning.layerwise import one_layer, open_source
from prunetune.pruning.ranking import Ranked, rank
from prunetune.pruning.scoring.layer import Asked
from prunetune.pruning.scoring.offload import by_layer
from prunetune.pruning.scoring.whole import whole
from prunetune.pruning.tensors import Scores

__all__ = ["Batch", "Scores", "make_batches", "score"]

Batch = dict[str, Tensor]

CLOSE = 0.85
"""Least length of a sequence in a batch, as a share of the longest's."""


def make_batches(
    sequences: Sequence[Sequence[int]], pad_id: int, max_tokens: int = 8192, close: float = CLOSE
) -> list[Batch]:
    """Sequences sorted by length, longest first, into right-padded batches of at most `max_tokens` places each.

    A sequence shorter than `close` of its batch's longest opens the next batch: padded places cost what tokens do.

    Returns:
        [{input_ids: int64 [batch, tokens], attention_mask: int64 [batch, tokens]}, ...]
    """
    order = sorted((s for s in sequences if len(s)), key=lambda s: (-len(s), tuple(s)))
    if not order:
        raise DataError("there is no sequence to score", fix="check `data` and `score.samples` of the recipe")
    batches, i = [], 0
    while i < len(order):
        rows = order[i : i + max(1, max_tokens // len(order[i]))]
        rows = [row for row in rows if len(row) >= close * len(rows[0])]
        batches.append({"input_ids": padded(rows, pad_id), "attention_mask": mask_of(rows)})
        i += len(rows)
    return batches


def score(
    model: PreTrainedModel | Path,
    batches: Sequence[Batch],
    *,
    neuron_criterion: str = "contribution",
    reduce: str = "mean",
    layers_by: str = "l2",
    more: Sequence[str] = (),
    vote_share: float = 0.5,
    seed: int = 0,
    model_sha: str = "",
    data_sha: str = "",
    device: torch.device | str | None = None,
    progress: Callable[[int, int], None] | None = None,
    halfway: Halfway | None = None,
    processes: Processes = ALONE,
) -> Scores:
    """Score every neuron and every layer of a model on the given sequences, in one pass; units of other axes, if asked.

    Args:
        model: A causal language model of a supported family, in eval mode, in any floating dtype; or its folder, whose
            layers are then read one by one, with hidden states on disk.
        batches: {input_ids, attention_mask} with padding on either side; padded places never count.
        neuron_criterion: A name of `criteria.CRITERIA`.
        reduce: Reduction over tokens where the criterion leaves it open: `mean`, `rms`, `max`, `q99`.
        layers_by: A name of `criteria.LAYER_CRITERIA`.
        more: Other axes whose units are scored in the same pass, such as `heads`.
        vote_share: k of `ptl_vote`, as a share of the width.
        seed: For `random`.
        model_sha: Recorded in the result.
        data_sha: Recorded, too.
        device: Where to run (default: the model's device; for a folder a GPU if there is one).
        progress: Called with (batches done, batches in all); layer by layer with (batches done in all layers, in all).
        halfway: Where an earlier start may have left off, and where this one may; of a folder with moments alone.
        processes: Who scores; each is given the same model and all batches, and has all scores in the end.

    Raises:
        NotFinite: A layer's activations, gradients or weights are. RecipeError: The criterion knows neurons alone, or a
            folder is to be scored by one that goes backwards through the whole model.
    """
    config = load_config(model) if isinstance(model, Path) else model.config
    chosen, family, shape = criterion(neuron_criterion), family_of(config), shape_of(config.to_dict())
    own = own_axes(family, more)
    blockwise(neuron_criterion, [axis.name for axis in own])
    asked = Asked(family, chosen, chosen.reduce or reduce, layers_by, tuple(own), shape, vote_share, seed)
    ways: Any = {"progress": progress, "halfway": halfway, "processes": processes}
    if chosen.needs == "moments":
        place: Any = "disk" if isinstance(model, Path) else "device"
        found = rank(model, batches, chosen, more, layers_by, seed, device=device, place=place, **ways)
    elif isinstance(model, Path):
        forward_only(neuron_criterion)
        found = by_layer(model, batches, asked, device=device, progress=progress)
    else:
        found = whole(model, batches, asked, **ways)
    tokens = sum(int(b["attention_mask"].sum()) for b in batches)
    told = neuron_criterion + _reduction(chosen, reduce), layers_by, model_sha, data_sha, tokens
    return _checked(model, _scores(found, asked, *told))


def _scores(
    found: Ranked, asked: Asked, criterion: str, layers_by: str, model_sha: str, data_sha: str, tokens: int
) -> Scores:
    sized = (*found.blocks, *(of for axis in asked.axes for of in axis.beside))
    return Scores(
        neurons=found.neurons.float(),
        layers=torch.tensor([c.mean for c in found.changes], dtype=torch.float32),
        layers_max=torch.tensor([c.top for c in found.changes], dtype=torch.float32),
        criterion=criterion,
        layer_criterion=layers_by,
        model_sha=model_sha,
        data_sha=data_sha,
        tokens=tokens,
        blocks=found.blocks,
        sizes={name: asked.shape[name] for name in sized},
        stays=(len(found.changes) - 1,) if asked.family.last else (),
    )


def _checked(model: PreTrainedModel | Path, found: Scores) -> Scores:
    if (i := found.not_finite()) is None:
        return found
    if isinstance(model, Path):
        source = open_source(model, as_loaded=True)
        raise layer_overflow(one_layer(source, i).block, i, "its scores", source.dtype)
    layer = model.get_submodule(f"{family_of(model.config).layers}.{i}")
    raise layer_overflow(layer, i, "its scores", model.dtype)


def _reduction(chosen: Criterion, reduce: str) -> str:
    """How scores say the reduction that a criterion left open."""
    return f":{reduce}" if chosen.needs in ("activations", "gradients") and not chosen.reduce else ""
