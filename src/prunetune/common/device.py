"""Where to compute: the one place that turns `auto`, `cpu`, `cuda` or `mps` into a device that is there."""

from __future__ import annotations

from typing import Literal, get_args

from prunetune.errors import RecipeError, UnknownName

Device = Literal["auto", "cpu", "cuda", "mps"]

DEVICES: tuple[Device, ...] = get_args(Device)


def device_of(name: str = "auto") -> Device:
    """The device that a setting means: `auto` is a GPU if torch can use one, else the CPU.

    Raises:
        UnknownName: no such device. RecipeError: this machine has none of this kind.
    """
    import torch

    chosen = next((d for d in DEVICES if d == name), None)
    if chosen is None:
        raise UnknownName("device", name, DEVICES)
    there: dict[Device, bool] = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if chosen == "auto":
        return "cuda" if there["cuda"] else "cpu"
    if not there[chosen]:
        what = "GPU" if name == "cuda" else "Apple GPU"
        valid = ["auto", *(d for d, ok in there.items() if ok)]
        raise RecipeError(f"this machine has no {what} that torch can use", value=name, valid=valid, fix="device: cpu")
    return chosen


def free_device_memory() -> None:
    """Give back what torch keeps for later on a GPU; nothing on a CPU."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
