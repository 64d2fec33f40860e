"""Whether a shape meets a target: parameters, bytes of weights (and cache), or milliseconds a token.

enough = fits("4GB", cost, context=8192)       # {"neurons": 1024, ...} -> True or False
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from prunetune.models.cost import Cost
from prunetune.schedule.wanted import bytes_of, times_of

Counts = Mapping[str, int]

_ITEM = {"float32": 4, "float": 4, "float16": 2, "half": 2, "bfloat16": 2, "float64": 8}


def stored_bytes(config: Any) -> int:
    """Bytes of a weight as the model is stored, from its config; 2 (bf16) where it does not say."""
    values = config if isinstance(config, dict) else config.to_dict()
    said = str(values.get("dtype") or values.get("torch_dtype") or "bfloat16")
    return _ITEM.get(said.removeprefix("torch."), 2)


def bytes_at(cost: Cost, shape: Counts, context: int | None) -> int:
    """Bytes of the weights at a shape, and of the cache of a context if there is one."""
    at = replace(cost, shape=cost.shape.resized(shape))
    return at.weight_bytes + at.kv_bytes(context or 0)


def fits(
    target: float | int | str, cost: Cost, *, context: int | None = None, ms: Callable[[Counts], float] | None = None
) -> Callable[[Counts], bool]:
    """What a target asks of a shape: {axis: count} -> whether it is small, or fast, enough.

    Args:
        target: A share, parameters, bytes (`4GB`), or a speed-up (`2x`).
        cost: The untouched model's.
        context: With bytes: tokens whose cache counts, too.
        ms: Milliseconds a token by shape, for a speed-up.
    """
    if isinstance(target, str):
        if (limit := bytes_of(target)) is not None:
            return lambda shape: bytes_at(cost, shape, context) <= limit
        times = times_of(target)
        if ms is None or times is None:
            raise TypeError("a speed-up needs the time of a shape")
        most_ms = ms(cost.shape.counts()) / times
        return lambda shape: ms(shape) <= most_ms
    most = math.floor(target * cost.params) if isinstance(target, float) and target <= 1 else int(target)
    return lambda shape: replace(cost, shape=cost.shape.resized(shape)).params <= most
