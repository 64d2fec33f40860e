"""What each axis of a model holds, how far it may go, and how small that makes a model: arithmetic on its shape alone.

held = holdings(cost, family, values)            # neurons: 1,536 of them, 79.6 M parameters
alone(cost, held[0], wanted)                     # 238: so many neurons stay if they alone make the size
smallest(cost, held[:2])                         # parameters where neurons and layers go as far as they may
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from prunetune.errors import OutOfReach, UnsupportedModel
from prunetune.models.axes import axes, axis_of, resized
from prunetune.models.cost import Cost
from prunetune.models.families import Family

VOCABULARY = "vocabulary"
BYTES = 256
"""Every tokenizer keeps its single bytes: no vocabulary has fewer rows."""


MANY_LAYERS = 8
"""From so many on one layer is no large part of a model."""


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


def narrowest(width: int, depth: int, align: int) -> int:
    """The width below which layers go in place of neurons: a quarter; where a layer is much of a model, a sixteenth.

    Both were measured at a size that either way reaches (docs/log.md): of SmolLM2's 30 layers five cost less than the
    neurons beyond a quarter, of the demo's four a single one cost everything.
    """
    return max(align, math.ceil(width / (4 if depth >= MANY_LAYERS else 16)))


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
            lowest = narrowest(units, cost.shape.depth, align)
            least = min(units, math.ceil(lowest / align) * align)
        elif name == VOCABULARY:
            least = min(units, BYTES)
        else:
            fit = able(name, units, family, values)
            least = min(fit, default=units)
            stays = None if fit else why_none(name, units, family, values)
        found.append(Holding(name, units, cost.params - at(cost, {name: 0}), least, stays))
    return found


def unfit(shape: Mapping[str, int], family: Family, values: Mapping[str, Any]) -> str | None:
    """Why no stock model of a family has a shape; None: one can have it. Axes that it does not name stay.

    Args:
        shape: How many units of each axis.
        family: The family.
        values: The model's config, with its defaults filled in.
    """
    shape = {name: count for name, count in shape.items() if name != VOCABULARY}
    changed = [name for name, count in shape.items() if axis_of(name).units(values) != count]
    config = {**values, **resized(values, shape)}
    return next((told for name in changed if (told := axis_of(name).unfit(family, config))), None)


def able(name: str, units: int, family: Family, values: Mapping[str, Any]) -> list[int]:
    """The numbers of units of an axis, fewer than there are, that a stock model can have, descending."""
    return [n for n in range(units - 1, 0, -1) if unfit({name: n}, family, values) is None]


def why_none(name: str, units: int, family: Family, values: Mapping[str, Any]) -> str:
    """Why no unit of an axis can go."""
    return unfit({name: units - 1}, family, values) or "" if units > 1 else "there is one only"


def in_blocks() -> list[str]:
    """The axes beside neurons and layers that a round can cut: those with a readout to score and fold at."""
    return [name for name, axis in axes().items() if axis.readout is not None and name != "neurons"]


def left(
    shape: Mapping[str, int], gone: Mapping[str, int], family: Family, values: Mapping[str, Any]
) -> dict[str, int]:
    """The units of each axis of `gone` that are left where so many go.

    Raises:
        OutOfReach: There are not so many. UnsupportedModel: No stock model has what is left.
    """
    for name, count in gone.items():
        if not 0 < count < shape[name]:
            called = axis_of(name).called[1]
            raise OutOfReach(f"this many {called} cannot go", value=count, valid=f"0 to {shape[name] - 1}")
    found = {name: shape[name] - count for name, count in gone.items()}
    if told := unfit(found, family, values):
        valid = {n: able(n, shape[n], family, values) for n in found}
        raise UnsupportedModel(
            f"no stock model of this family has this shape: {told}",
            value=found,
            valid="; ".join(f"{n}: {', '.join(map(str, fit)) or 'all stay'}" for n, fit in valid.items()),
            fix="other numbers in prune.cut",
        )
    return found


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
