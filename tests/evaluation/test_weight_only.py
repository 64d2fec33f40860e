"""Weight-only rounding against a loop over single weights, and its bytes against a count."""

from __future__ import annotations

import math

import pytest
import torch
from tests.tiny import tiny_model

from prunetune.evaluation.weight_only import GROUP, round_weights, rounded, stored_bytes


def by_hand(row: list[float], bits: int) -> list[float]:
    """A group of a row: the largest weight is -2^(bits-1) steps of an fp16 scale, the others the nearest step."""
    extreme = max(row, key=abs)
    scale = float(torch.tensor(extreme / -(2 ** (bits - 1))).half())
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    return [0.0 if scale == 0 else scale * min(high, max(low, round(w / scale))) for w in row]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("width", [64, 40, 7])
def test_every_weight_goes_to_its_nearest_step(bits, width):
    weight = torch.randn(5, width, generator=torch.Generator().manual_seed(bits))
    weight[2] = 0.0
    weight[3, 0] = 9.0  # the largest is above zero: its scale is below
    wanted = [
        [w for at in range(0, width, GROUP) for w in by_hand(row[at : at + GROUP], bits)] for row in weight.tolist()
    ]
    assert torch.allclose(rounded(weight, bits), torch.tensor(wanted), atol=1e-6)


def test_the_error_is_half_a_step_but_at_the_far_end():
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    for bits in (8, 4):
        step = weight.view(64, -1, GROUP).abs().amax(-1, keepdim=True) / 2 ** (bits - 1)
        error = (rounded(weight, bits) - weight).view(64, -1, GROUP).abs()
        assert (error <= step * 1.002).all() and (error <= 0.502 * step).float().mean() > 0.95


def test_only_linear_layers_are_rounded_and_the_head_is_none():
    model, before = tiny_model("llama"), tiny_model("llama")
    stored = round_weights(model, 4)
    changed = {
        n for (n, a), (_, b) in zip(model.named_parameters(), before.named_parameters(), strict=True) if not a.equal(b)
    }
    linear = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"}
    assert changed == linear and model.get_input_embeddings().weight.equal(before.get_input_embeddings().weight)
    sizes = {n: p.shape for n, p in model.named_parameters()}
    rest = sum(math.prod(s) for n, s in sizes.items() if n not in linear)
    assert stored == 2 * rest + sum(stored_bytes(*sizes[n], 4) for n in linear)


def test_bytes_are_four_and_a_half_bits_a_weight():
    assert stored_bytes(10, 64, 4) == 10 * 64 * 4.5 / 8
    assert stored_bytes(10, 64, 8) == 10 * 64 * 8.5 / 8
    assert stored_bytes(1, 33, 8) == 2 * (32 + 2), "a group that is not full is stored whole"
