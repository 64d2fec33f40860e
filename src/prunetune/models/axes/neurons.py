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


def _units(values: Values) -> int:
    return int(values.get(MOE_WIDTH) or values["intermediate_size"])


def _resized(values: Values, count: int) -> dict[str, Any]:
    return {MOE_WIDTH if values.get(MOE_WIDTH) else "intermediate_size": count}


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
    units=_units,
    resized=_resized,
    slices=_slices,
    called=("neuron", "neurons"),
    readout=lambda family: family.down,
    grain=_grain,
    within="experts",
)
