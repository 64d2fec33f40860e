"""Examples -> training rows -> a fixed order of micro-batches without padding waste. Pure; tensors only at the end.

Rows are padded on the right and carry no attention mask: under causal attention a real token never sees what follows,
and labels of padding do not count. That keeps the fast causal kernels and wastes nothing.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from prunetune.common.progress import bar
from prunetune.data.stream import Example
from prunetune.models.batches import padded
from prunetune.models.head_loss import IGNORED
from prunetune.models.prompt import Encoded, PromptFormat, encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WINDOW = 4096
"""Examples that are sorted by length together; the rest of the order stays random."""


@dataclass(frozen=True)
class Row:
    """One training row.

    Attributes:
        ids: Token ids.
        labels: The same ids, with IGNORED where a token does not count in the loss (never the first).
        positions: Position ids of packed rows, starting anew at each example; None: 0, 1, 2, ...
        real: How many of the tokens are an example's, for the count of trained tokens.
        index: Its place among the rows as they were made; -1: a filler or a packed row.
    """

    ids: tuple[int, ...]
    labels: tuple[int, ...]
    positions: tuple[int, ...] | None = None
    real: int = 0
    index: int = -1


@dataclass(frozen=True)
class Rows:
    """All rows of a stage, with the counts that the result reports.

    Attributes:
        rows: In the order of the examples.
        used: Examples taken from the stream (fewer than given where a token budget ended them).
        truncated: Examples cut by the length limit.
        empty: Examples without a single label that counts (the cut left only the prompt); they are not trained on.
    """

    rows: tuple[Row, ...]
    used: int
    truncated: int
    empty: int


def make_rows(
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    fmt: PromptFormat,
    max_length: int,
    *,
    completion_only: bool = False,
    tokens: int | None = None,
) -> Rows:
    """Encode examples until they are used up or hold `tokens` tokens."""
    rows: list[Row] = []
    used = truncated = empty = total = 0
    with bar("tokenise") as progress:
        for i, example in enumerate(examples):
            if tokens is not None and total >= tokens:
                break
            if i % 256 == 0:
                progress(*((i, len(examples)) if tokens is None else (total, tokens)))
            encoded = encode(tokenizer, example, fmt, max_length)
            used, truncated = i + 1, truncated + encoded.truncated
            ids = tuple(encoded.input_ids)
            labels = _labels(encoded) if completion_only and example.question else (IGNORED, *ids[1:])
            if all(label == IGNORED for label in labels):
                empty += 1
                continue
            rows.append(Row(ids, labels, real=len(ids), index=len(rows)))
            total += len(ids)
    return Rows(tuple(rows), used, truncated, empty)


def _labels(row: Encoded) -> tuple[int, ...]:
    """The ids of the answers; IGNORED elsewhere, and at the first place, which nothing predicts."""
    labels = [IGNORED] * len(row.input_ids)
    for start, end in row.answers:
        labels[max(1, start) : end] = row.input_ids[max(1, start) : end]
    return tuple(labels)


def ordered(rows: Sequence[Row], micro: int, seed: int, epochs: int = 1) -> list[Row]:
    """All rows, `epochs` times, so that each run of `micro` has rows of like length and the runs come in random order.

    Rows are shuffled, sorted by length inside windows, cut into micro-batches, and the micro-batches of a window are
    shuffled. An optimiser step of several micro-batches thus still sees all lengths.
    """
    rng = random.Random(seed)
    out: list[Row] = []
    for _ in range(epochs):
        shuffled = list(rows)
        rng.shuffle(shuffled)
        for start in range(0, len(shuffled), WINDOW):
            window = sorted(shuffled[start : start + WINDOW], key=lambda r: -len(r.ids))
            cut = len(window) - len(window) % micro
            groups = [window[i : i + micro] for i in range(0, cut, micro)]
            rng.shuffle(groups)
            out += [row for group in groups for row in group] + window[cut:]
    return out


def packed(rows: Sequence[Row], max_length: int, seed: int) -> list[Row]:
    """Rows filled up to `max_length` with several examples, positions starting anew at each (first fit)."""
    shuffled = list(rows)
    random.Random(seed).shuffle(shuffled)
    bins: list[list[Row]] = []
    room: list[int] = []
    first_open = 0
    for row in shuffled:
        fit = next((b for b in range(first_open, len(bins)) if room[b] >= len(row.ids)), None)
        if fit is None:
            bins.append([])
            room.append(max_length)
            fit = len(bins) - 1
            first_open = max(first_open, len(bins) - 64)  # older ones are nearly full; keeps this linear
        bins[fit].append(row)
        room[fit] -= len(row.ids)
    return [
        Row(
            tuple(i for r in b for i in r.ids),
            tuple(label for r in b for label in r.labels),
            tuple(p for r in b for p in range(len(r.ids))),
            sum(r.real for r in b),
        )
        for b in bins
    ]


def filled(rows: Sequence[Row], multiple: int) -> list[Row]:
    """Rows up to a multiple (of micro-batch times devices), by copies of the last one without a label that counts."""
    missing = -len(rows) % multiple
    last = rows[-1]
    blank = Row(last.ids[:2], (IGNORED,) * len(last.ids[:2]), last.positions and last.positions[:2], 0)
    return [*rows, *[blank] * missing]


def collate(rows: Sequence[Row], pad: int = 0) -> dict[str, Tensor]:
    """Rows as tensors [batch, length], padded on the right to the longest, and their index [batch].

    Packed rows also have position_ids [batch, length].
    """
    length = max(len(r.ids) for r in rows)
    out = {
        "input_ids": padded([r.ids for r in rows], pad),
        "labels": padded([r.labels for r in rows], IGNORED),
        "index": torch.tensor([r.index for r in rows]),
    }
    if any(r.positions is not None for r in rows):  # padding is an example of its own, from position 0
        out["position_ids"] = padded([[*(r.positions or ()), *range(length - len(r.ids))] for r in rows], 0)
    return out
