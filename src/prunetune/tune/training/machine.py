"""What the machine is and holds: device, compute type, memory, and the rate of a plain matrix product."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from prunetune.common.device import device_of, memory_bytes, multiplies_bf16
from prunetune.models.cost import Cost, state_bytes
from prunetune.models.head_loss import chunk_tokens
from prunetune.models.shape import Shape
from prunetune.tune.methods.base import Method


def pick_device(name: str) -> torch.device:
    """The device of a job; RecipeError if it is asked for and not there."""
    name = device_of(name)
    if name == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
        return device
    return torch.device(name)


def is_sharded() -> bool:
    """Whether weights are spread over devices (FSDP, ZeRO-3), so that the head cannot be read from outside."""
    return os.environ.get("ACCELERATE_USE_FSDP") == "true" or os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"


def compute_type(precision: str, device: torch.device) -> torch.dtype:
    """bf16 where the device multiplies faster in it (GPUs; CPUs with units for it), else fp32."""
    if precision == "auto":
        cuda = device.type == "cuda"
        fast = torch.cuda.is_bf16_supported() if cuda else device.type == "cpu" and multiplies_bf16()
        return torch.bfloat16 if fast else torch.float32
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]


def total_bytes(device: torch.device) -> int:
    """Memory of the device (a container's limit counts). Not what is free now: a resumed stage must decide alike."""
    return memory_bytes(device)[0]


AUTOCAST = 2
"""Bytes a parameter of the copies that autocast makes for the products."""


def pick_memory_plan(
    method: Method, *, config: Any, params: int, longest: int, compute: torch.dtype, device: torch.device, share: int
) -> tuple[int, bool]:
    """Micro-batch size and whether to checkpoint activations.

    Args:
        method: The settings; whatever they name is taken.
        config: The model's.
        params: Trained parameters.
        longest: Tokens of the longest row.
        compute: Type of the products.
        device: Where.
        share: Sequences of one optimiser step on this device.

    Returns:
        The largest divisor of `share` (on CPU of at most 4096 tokens, beyond which nothing is gained) whose activations
        fit beside weights, gradients and optimiser; without checkpointing if even a quarter of a step fits so.
    """
    held = state_bytes(average=bool(method.average)) + AUTOCAST
    room = (0.6 if device.type == "cpu" else 0.85) * total_bytes(device) - held * params
    cost, item = Cost(Shape.loose(config)), torch.finfo(compute).bits // 8
    cap = 4096 if device.type == "cpu" else 65536
    fits: dict[bool, int] = {}
    for checkpointing in (False, True):
        sizes = [
            m
            for m in range(1, share + 1)
            if share % m == 0
            and (m == 1 or m * longest <= cap)
            and cost.activation_bytes(m * longest, item=item, checkpointing=checkpointing, logits=False) <= max(room, 0)
        ]
        fits[checkpointing] = max(sizes, default=0)
    chosen = method.gradient_checkpointing
    if chosen is None:
        chosen = 4 * fits[False] < fits[True] or not fits[False]
    return method.micro_batch_size or max(1, fits[chosen]), chosen


HEAD_CHUNKS = 3
"""Chunks of fp32 logits that the loss holds at once: the logits, their gradient, what is between the two."""


def training_bytes(
    method: Method, *, config: Any, params: int, longest: int, compute: torch.dtype, device: torch.device, share: int
) -> int:
    """What training adds at its highest to what the process holds before the model is loaded.

    Weights, gradients, optimiser (`state_bytes`), autocast's copies, the activations of the micro-batch that
    `pick_memory_plan` picks, what adapters keep besides, and the loss's chunks of logits. Arguments as there.
    """
    ways: dict[str, Any] = {"config": config, "params": params, "longest": longest, "compute": compute}
    micro, checkpointing = pick_memory_plan(method, **ways, device=device, share=share)
    cost, low, places = Cost(Shape.loose(config)), compute != torch.float32, micro * longest
    held = state_bytes(lora=method.lora is not None, average=bool(method.average)) + (AUTOCAST if low else 0)
    item, shape = 2 if low else 4, cost.shape
    inside = cost.activation_bytes(places, item=item, checkpointing=checkpointing, logits=False)
    if method.lora is not None:  # each adapter keeps a copy of its matrix's input
        copies = 6 * shape.hidden + shape.width * max(1, shape.active)
        inside += places * item * copies * (1 if checkpointing else shape.depth)
    logits = 4 * shape.vocab * min(places, chunk_tokens(shape.vocab, device))
    return round(held * params) + inside + HEAD_CHUNKS * logits


def reset_peak(device: torch.device) -> None:
    """Start a new measurement of the highest memory."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        except OSError:  # not allowed in some containers: then the peak is the process's own so far
            return


def peak_bytes(device: torch.device) -> int:
    """Highest memory since `reset_peak`: of the GPU, or resident memory of this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    status = Path(f"/proc/{os.getpid()}/status")
    if status.exists():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def product_flops(device: torch.device, compute: torch.dtype, size: int = 1024) -> float:
    """FLOP/s of a plain square matrix product, the best of three: the yardstick of utilisation on any device."""
    size = size if device.type == "cpu" else 8192
    a = torch.ones(size, size, dtype=compute, device=device)
    best = float("inf")
    for _ in range(4):  # the first one warms up
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        begin = time.perf_counter()
        (a @ a)[0, 0].item()
        best = min(best, time.perf_counter() - begin)
    return 2.0 * size**3 / best


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


@contextmanager
def kept_memory() -> Iterator[bool]:
    """Inside, glibc keeps freed memory for the next step instead of returning it and faulting it in anew.

    Saves about 4 % of the CPU time of a SmolLM2 step (docs/performance.md). Yields whether it works here: elsewhere
    than on glibc nothing is done. On leaving, the memory goes back to the system.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is None or not hasattr(libc, "gnu_get_libc_version"):
        yield False
        return
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield True
    finally:
        libc.mallopt(M_MMAP_MAX, 65536)
        libc.mallopt(M_TRIM_THRESHOLD, 128 * 1024)
        libc.malloc_trim(0)
