"""Hidden states of rows in host memory, walked through layers that are read one at a time.

    hidden = start(source, rows)                          # the input of layer 0, a row a tensor
    hidden = walked(source, range(0, 3), hidden)          # after layer 2; one layer is in memory
    out = run([one_layer(source, 3)], *batch(hidden, [0, 5]))

Rows are stored without padding, and padded on the right for a pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from prunetune.pruning.layerwise import LayerSource, OneLayer, embed, one_layer

Hidden = list[Tensor]
"""Of each row, its hidden states [tokens, hidden], on the CPU."""
PLACES = 8192
"""Tokens of a pass without gradients, padding included, at most (of more than one row)."""


def grouped(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Places of rows, the shortest first, in groups of at most `PLACES` tokens with their padding."""
    group: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if group and (len(group) + 1) * lengths[i] > PLACES:
            yield group
            group = []
        group.append(i)
    if group:
        yield group


def start(source: LayerSource, rows: Sequence[Sequence[int]]) -> Hidden:
    """The input of the first layer, for rows of token ids."""
    ids = [torch.tensor(row, dtype=torch.long) for row in rows]
    groups = list(grouped([len(row) for row in rows]))
    found = embed(source, [pad_sequence([ids[i] for i in group], batch_first=True) for group in groups])
    return _by_row(zip(groups, found, strict=True), [len(row) for row in rows])


def walked(source: LayerSource, layers: Iterable[int], hidden: Hidden) -> Hidden:
    """What comes out of so many layers of a model, one after another; its input where there are none."""
    for layer in layers:
        hidden = passed([one_layer(source, layer)], hidden, source.device)
    return hidden


@torch.no_grad()
def passed(ones: Sequence[OneLayer], hidden: Hidden, device: torch.device) -> Hidden:
    """What comes out of layers in hand."""
    lengths = [len(h) for h in hidden]
    groups = ((group, run(ones, *batch(hidden, group, device))) for group in grouped(lengths))
    return _by_row(groups, lengths)


def _by_row(groups: Iterable[tuple[list[int], Tensor]], lengths: Sequence[int]) -> Hidden:
    """Padded groups as rows on the CPU."""
    out: dict[int, Tensor] = {}
    for group, found in groups:
        for place, i in enumerate(group):
            out[i] = found[place, : lengths[i]].to("cpu", copy=True)
    return [out[i] for i in range(len(lengths))]


def batch(hidden: Sequence[Tensor], rows: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows padded on the right: ([rows, longest, hidden] on the device, which places are real)."""
    some = [hidden[i] for i in rows]
    real = pad_sequence([torch.ones(len(h), dtype=torch.bool) for h in some], batch_first=True)
    return pad_sequence(some, batch_first=True).to(device), real.to(device)


def run(ones: Sequence[OneLayer], hidden: Tensor, real: Tensor) -> Tensor:
    """Layers in hand, one after another, with gradients where they are wanted; autocast off."""
    with torch.autocast(hidden.device.type, enabled=False):
        for one in ones:
            hidden = one.model(inputs_embeds=hidden, attention_mask=real, use_cache=False).last_hidden_state
    return hidden
