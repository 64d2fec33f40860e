"""Which numbers a device works in: held here for devices that this machine has not."""

from __future__ import annotations

import pytest
import torch

from prunetune.common.device import LARGE, WIDE, cpu_features, native_products, sum_dtype, walk_dtype


@pytest.mark.parametrize(
    ("device", "stored", "elements", "features", "expected"),
    [
        ("cuda", torch.bfloat16, 1, {}, torch.bfloat16),  # a GPU never runs in another dtype than it is given
        ("cuda", torch.float16, 1, {}, torch.float16),
        ("mps", torch.bfloat16, 1, {}, torch.bfloat16),
        ("cpu", torch.bfloat16, LARGE, {"avx512_bf16": True}, torch.bfloat16),
        ("cpu", torch.bfloat16, LARGE, {"amx_bf16": True, "avx512_bf16": False}, torch.bfloat16),
        ("cpu", torch.bfloat16, LARGE, {"avx512_bf16": False}, torch.float32),
        ("cpu", torch.bfloat16, LARGE, {}, torch.float32),
        ("cpu", torch.bfloat16, LARGE - 1, {"avx512_bf16": True}, torch.float32),
        ("cpu", torch.float16, LARGE, {"avx512_bf16": True}, torch.float32),
        ("cpu", torch.float32, LARGE, {"avx512_bf16": True}, torch.float32),
    ],
)
def test_walk_dtype(
    device: str, stored: torch.dtype, elements: int, features: dict[str, bool], expected: torch.dtype
) -> None:
    assert walk_dtype(device, stored, elements, features) == expected


def test_sums_are_as_wide_as_the_device_allows() -> None:
    assert [sum_dtype(WIDE, d) for d in ("cpu", "cuda", "mps")] == [torch.float64, torch.float64, torch.float32]
    assert [sum_dtype(WIDE + 1, d) for d in ("cpu", "cuda", "mps")] == [torch.float32] * 3


def test_native_products_lose_nothing_of_bf16() -> None:
    """Whether this CPU has the units or not: products of bf16 numbers, summed in fp32; the setting is put back."""
    x, y = torch.randn(300, 40).bfloat16(), torch.randn(300, 24).bfloat16()
    plain = torch.randn(64, 64)
    before = plain @ plain
    with native_products(x):
        found = x.float().T @ y.float()
    torch.testing.assert_close(found.double(), x.double().T @ y.double(), atol=1e-4, rtol=1e-5)
    assert torch.equal(plain @ plain, before)
    with native_products(plain):  # fp32 is never rounded
        assert torch.equal(plain @ plain, before)


def test_this_machine_says_what_it_can() -> None:
    assert isinstance(dict(cpu_features()), dict)
