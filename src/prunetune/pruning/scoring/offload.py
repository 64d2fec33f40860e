"""A pass over a model that need not fit in memory: one layer after another from disk, over all batches each.

    hidden states of every batch, on disk --> layer i, read from its shards --> hidden states, on disk --> layer i + 1

The layers run as they do in the whole model, bit for bit (layerwise.py), so the scores are the same. What goes
backwards through the whole model (`taylor`) is refused: its gradients come from the head, layer by layer down.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from prunetune.models.calibration import Place
from prunetune.pruning.halfway import in_parts
from prunetune.pruning.layerwise import LayerSource, Shelf, embedded, forward, one_layer, open_source
from prunetune.pruning.ranking import Ranked, stacked
from prunetune.pruning.scoring.layer import Asked, LayerPass, places_of

Batch = dict[str, Tensor]


def by_layer(
    folder: Path,
    batches: Sequence[Batch],
    asked: Asked,
    *,
    device: torch.device | str | None = None,
    place: Place = "disk",
    progress: Callable[[int, int], None] | None = None,
) -> Ranked:
    """Scores by a criterion that needs activations, votes or weights, with one layer in memory at a time.

    Args:
        folder: A model folder.
        batches: {input_ids, attention_mask}; padded places never count.
        asked: What is scored.
        device: Where the layers run (default: a GPU if there is one).
        place: Where hidden states lie between two layers.
        progress: Called with (batches done in all layers, in all).

    Raises:
        NotFinite: The embedding or a layer holds NaN or infinity, or its activations overflow.
        NotWritable: There is no room for the hidden states.
    """
    source = open_source(folder, device=device, as_loaded=True)
    batches = in_parts(batches)
    shelf, masks = Shelf(place, source.device), [b["attention_mask"].bool().to(source.device) for b in batches]
    hidden = embedded(source, [b["input_ids"] for b in batches], shelf)
    neurons, changes, others = [], [], []
    for layer in range(source.depth):
        told = (lambda n, at=layer: progress(at * len(masks) + n, source.depth * len(masks))) if progress else None
        seen = _through(source, layer, asked, hidden, masks, shelf, told)
        neurons.append(seen.neurons().cpu())
        changes.append(seen.change)
        others.append({name: scores.cpu() for name, scores in seen.others().items()})
        del seen  # it holds the layer
    return Ranked(torch.stack(neurons), changes, stacked(others))


def _through(
    source: LayerSource,
    layer: int,
    asked: Asked,
    hidden: list[Tensor],
    masks: Sequence[Tensor],
    shelf: Shelf,
    told: Callable[[int], None] | None,
) -> LayerPass:
    """Run one layer over all batches; `hidden` is its input, and its output afterwards."""
    one = one_layer(source, layer)
    seen = LayerPass(one.block, layer, asked)
    with seen.hooked():
        for i, mask in enumerate(masks):
            seen.at = places_of(mask)
            hidden[i] = shelf.put(forward(one, shelf.take(hidden[i]), mask))
            seen.check(source.dtype)
            if told:
                told(i + 1)
    return seen
