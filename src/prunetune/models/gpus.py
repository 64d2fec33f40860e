"""What GPUs hold and reach: a table of vendors' figures, for estimates before a run."""

from __future__ import annotations

from prunetune.errors import UnknownName

# Name -> (memory in GiB, dense bf16 TFLOP/s), from the vendors' data sheets.
GPUS: dict[str, tuple[int, float]] = {
    "L4": (24, 121),
    "RTX 3090": (24, 71),
    "RTX 4090": (24, 165),
    "A10": (24, 125),
    "A100-40G": (40, 312),
    "L40S": (48, 362),
    "A100-80G": (80, 312),
    "H100": (80, 989),
    "H200": (140, 989),
    "B200": (180, 2250),
}


def gpu_of(name: str) -> tuple[int, float]:
    """(memory in GiB, dense bf16 TFLOP/s) of a GPU of the table; UnknownName if it is not there."""
    if name not in GPUS:
        raise UnknownName("GPU", name, GPUS)
    return GPUS[name]
