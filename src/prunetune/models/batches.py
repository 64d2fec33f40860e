"""Rows of token ids of unlike length -> one tensor. The only padding there is.

ids, mask = padded(rows, fill=0), mask_of(rows)             # right: scoring, losses, training
ids, mask = padded(rows, 0, left=True), mask_of(rows, left=True)   # left: what generation goes on from
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def padded(rows: Sequence[Sequence[int]], fill: int, *, left: bool = False) -> Tensor:
    """Rows as int64 [rows, longest]; `fill` stands behind them, or before them with `left`."""
    out = torch.full((len(rows), max(map(len, rows))), fill, dtype=torch.long)
    for place, row in zip(out, rows, strict=True):
        if row:
            place[-len(row) if left else 0 : None if left else len(row)] = torch.tensor(row, dtype=torch.long)
    return out


def mask_of(rows: Sequence[Sequence[int]], *, left: bool = False) -> Tensor:
    """1 where a token of a row is, 0 where padding is: int64 [rows, longest]."""
    return padded([[1] * len(row) for row in rows], 0, left=left)
