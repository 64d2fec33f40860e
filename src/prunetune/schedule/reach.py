"""What each axis of a model holds, and how small a model can become by axes: arithmetic on its shape alone.

held = holdings(cost, family, values)            # neurons: 1,536 of them, 79.6 M parameters
alone(cost, held[0], wanted)                     # 238: so many neurons stay if they alone make the size
smallest(cost, held[:2])                         # parameters where neurons and layers go as far as they may
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from prunetune.models.axes import axes
from prunetune.models.cost import Cost
from prunetune.models.families import Family

VOCABULARY = "vocabulary"
BYTES = 256
"""Every tokenizer keeps its single bytes: no vocabulary has fewer rows."""


@dataclass(frozen=True)
class Holding:
    """What an axis holds.

    Attributes:
        axis: Its name.
        units: How many there are.
        params: Parameters in them: layers hold their neurons and heads, too.
        least: So many stay, whatever the target.
        stays: Why none can go; None: some can.
    """

    axis: str
    units: int
    params: int
    least: int
    stays: str | None = None


def holdings(cost: Cost, family: Family, values: Mapping[str, Any], align: int) -> list[Holding]:
    """Every axis of a model, and its vocabulary.

    Args:
        cost: The model's.
        family: Its family.
        values: Its config, with its defaults filled in.
        align: The multiple that neurons are kept in.
    """
    found = []
    for name, units in cost.shape.counts().items():
        least, stays = 1, None
        if name == "neurons":
            least = min(units, math.ceil(max(align, units / 4) / align) * align)
        elif name == VOCABULARY:
            least = min(units, BYTES)
        else:
            fit = [n for n in range(1, units) if unfit(name, n, family, values) is None]
            least = min(fit, default=units)
            stays = None if fit else unfit(name, units - 1, family, values) if units > 1 else "there is one only"
        found.append(Holding(name, units, cost.params - at(cost, {name: 0}), least, stays))
    return found


def unfit(name: str, count: int, family: Family, values: Mapping[str, Any]) -> str | None:
    """Why no stock model of a family has so many units of an axis; None: it can have them."""
    axis = axes()[name]
    return axis.unfit(family, {**values, **axis.resized(values, count)})


def alone(cost: Cost, held: Holding, wanted: int) -> int | None:
    """The most units that may stay where this axis alone makes the size; None: it cannot."""
    if at(cost, {held.axis: held.least}) > wanted:
        return None
    low, high = held.least, held.units
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if at(cost, {held.axis: middle}) <= wanted else (low, middle - 1)
    return low


def smallest(cost: Cost, held: Iterable[Holding]) -> int:
    """Parameters left where all of these axes go as far as they may."""
    return at(cost, {h.axis: h.least for h in held})


def at(cost: Cost, shape: Mapping[str, int]) -> int:
    """Parameters of the model with so many units."""
    return replace(cost, shape=cost.shape.resized(shape)).params
