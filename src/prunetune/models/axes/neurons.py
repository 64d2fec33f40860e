"""The axis `neurons`: rows of the gate and up projections, columns of the down projection (method, section 1).

Where the FFN is a mixture of experts they are those of each expert; the number is that of one of them, and each loses
as many. Indices then run over all neurons of a layer, expert after expert.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunetune.models.axes.axis import Axis, Slice, Values
from prunetune.models.families import Family

MOE_WIDTH = "moe_intermediate_size"
"""FFN width of an expert, where `intermediate_size` is that of layers without experts."""


ADJUSTED = "block_auto_adjust_ff_dim"
"""Where it is set (LFM2), the FFN's width is two thirds of `intermediate_size`, times a factor, rounded up."""


def neurons(values: Values) -> int:
    """FFN width of a config's layers, or of each of their experts."""
    width = int(values.get(MOE_WIDTH) or values["intermediate_size"])
    if not values.get(ADJUSTED):
        return width
    width, factor, step = int(2 * width / 3), values.get("block_ffn_dim_multiplier"), int(values["block_multiple_of"])
    return -(-(width if factor is None else int(factor * width)) // step) * step


def _resized(values: Values, count: int) -> dict[str, Any]:
    changed: dict[str, Any] = {MOE_WIDTH if values.get(MOE_WIDTH) else "intermediate_size": count}
    return changed | {ADJUSTED: False} if values.get(ADJUSTED) else changed


def _slices(family: Family, shape: Mapping[str, int]) -> tuple[Slice, ...]:
    if (found := family.experts) is None:
        return tuple(Slice(cut.suffix, cut.dim, (1,) * cut.copies) for cut in family.cuts)
    rows, columns = (-1, -2) if found.transposed else (-2, -1)
    blocks = (2,) if found.alternating else (1, 1)
    fused = (Slice(found.gate_up, rows, blocks, each=True), Slice(found.down, columns, each=True))
    return (*fused, Slice(f"{found.gate_up}_bias", -1, blocks, each=True)) if found.bias else fused


def _grain(values: Values) -> int:
    """Tensor cores like multiples of 64; a small model has too few for that."""
    return 64 if int(values["hidden_size"]) > 1024 else 8


NEURONS = Axis(
    name="neurons",
    units=neurons,
    resized=_resized,
    slices=_slices,
    called=("neuron", "neurons"),
    readout=lambda family: family.down,
    grain=_grain,
    within="experts",
)
