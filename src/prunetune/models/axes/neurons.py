"""The axis `neurons`: rows of the gate and up projections, columns of the down projection (method, section 1)."""

from __future__ import annotations

from collections.abc import Mapping

from prunetune.models.axes.axis import Axis, Slice, Values
from prunetune.models.families import Family


def _slices(family: Family, shape: Mapping[str, int]) -> tuple[Slice, ...]:
    return tuple(Slice(cut.suffix, cut.dim, (1,) * cut.copies) for cut in family.cuts)


def _grain(values: Values) -> int:
    """Tensor cores like multiples of 64; a small model has too few for that."""
    return 64 if int(values["hidden_size"]) > 1024 else 8


NEURONS = Axis(
    name="neurons",
    units=lambda values: int(values["intermediate_size"]),
    resized=lambda values, count: {"intermediate_size": count},
    slices=_slices,
    called=("neuron", "neurons"),
    readout=lambda family: family.down,
    grain=_grain,
)
