"""Padding: rows and mask, on either side."""

from __future__ import annotations

import torch

from prunetune.models.batches import mask_of, padded


def test_padding_on_either_side() -> None:
    rows = [[5, 6, 7], [8], [], (9, 10)]
    assert torch.equal(padded(rows, 1), torch.tensor([[5, 6, 7], [8, 1, 1], [1, 1, 1], [9, 10, 1]]))
    assert torch.equal(padded(rows, 1, left=True), torch.tensor([[5, 6, 7], [1, 1, 8], [1, 1, 1], [1, 9, 10]]))
    assert torch.equal(mask_of(rows, left=True), torch.tensor([[1, 1, 1], [0, 0, 1], [0, 0, 0], [0, 1, 1]]))
    assert padded(rows, 0).dtype == mask_of(rows).dtype == torch.long
