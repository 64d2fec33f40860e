"""Which numbers a device works in: held here for devices that this machine has not."""

from __future__ import annotations

import os

import pytest
import torch

from prunetune.common.device import (
    LARGE,
    SPINS,
    WIDE,
    choose_waiting,
    cpu_features,
    fitting_threads,
    native_products,
    sum_dtype,
    walk_dtype,
)


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


WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")


@pytest.mark.parametrize(
    ("given", "busy", "cores", "found"),
    [
        ({}, 0.1, 2, {"GOMP_SPINCOUNT": str(SPINS)}),
        ({}, 1.0, 2, {"OMP_WAIT_POLICY": "PASSIVE"}),
        ({}, 1.0, 16, {"OMP_WAIT_POLICY": "PASSIVE"}),  # all sixteen would wait for the one that shares a core
        ({}, None, 1, {"OMP_WAIT_POLICY": "PASSIVE"}),  # nobody to wait for
        *(({name: value}, 0.0, 2, {name: value}) for name, value in zip(WAITING, ("ACTIVE", "7", "2"), strict=True)),
    ],
)
def test_threads_wait_awake_where_the_machine_is_idle(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], busy: float | None, cores: int, found: dict[str, str]
) -> None:
    for name in WAITING:
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    choose_waiting(busy, cores)
    assert {name: os.environ[name] for name in WAITING if name in os.environ} == found


def test_a_tiny_model_has_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(2)
    try:
        for device, elements, threads in (("cpu", 256 * 768, 1), ("cpu", LARGE, 2), ("cuda", 256 * 768, 2)):
            with fitting_threads(device, elements):
                assert torch.get_num_threads() == threads
            assert torch.get_num_threads() == 2
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        with fitting_threads("cpu", 1):
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
