"""What can be cut: an axis a file. A shape is {axis: how many there are}; the units of an axis are counted from 0.

Others take `axes`, `axis_of`, `shape_of`, `resized`, and what an `Axis` says of a config.
To add an axis: one file here, its line in AXES, and its key in the recipe (`schedule/target.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunetune.common.plugins import joined, lookup
from prunetune.models.axes.axis import Axis, Slice, Values
from prunetune.models.axes.experts import EXPERTS
from prunetune.models.axes.heads import HEADS
from prunetune.models.axes.layers import LAYERS
from prunetune.models.axes.neurons import NEURONS
from prunetune.models.axes.query_heads import QUERY_HEADS

__all__ = ["AXES", "Axis", "Slice", "Values", "axes", "axis_of", "resized", "shape_of"]

AXES: dict[str, Axis] = {axis.name: axis for axis in (LAYERS, NEURONS, HEADS, QUERY_HEADS, EXPERTS)}


def axes() -> dict[str, Axis]:
    """All axes by name: ours, and what plugins add."""
    return joined("axis", AXES)


def axis_of(name: str) -> Axis:
    """One axis; UnknownName, with what there is, if nobody has it."""
    return lookup("axis", AXES, name, "axis")


def shape_of(values: Values) -> dict[str, int]:
    """How many there are of each axis in a model, from its config with its defaults filled in; what it lacks is not
    named (experts).
    """
    found = {name: axis.units(values) for name, axis in axes().items()}
    return {name: count for name, count in found.items() if count}


def resized(values: Values, shape: Mapping[str, int]) -> dict[str, Any]:
    """The config keys that change where a model becomes of this shape; axes that it does not name stay."""
    changed: dict[str, Any] = {}
    for name, count in shape.items():
        axis, now = axis_of(name), {**values, **changed}
        if axis.units(now) != count:
            changed |= axis.resized(now, count)
    return changed
