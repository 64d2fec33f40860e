"""What an axis is: where the units of a model are that can go, and what its config says of them. Values only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from prunetune.models.families import Family

Values = Mapping[str, Any]
"""A config as config.json has it, with the defaults of its class filled in."""


@dataclass(frozen=True)
class Slice:
    """One tensor that loses units.

    Attributes:
        suffix: Its name inside the layer, as the model has it; of an axis outside the layers the end of its name in
            the model.
        dim: The dimension that the units lie along.
        blocks: Rows of one unit in each of the parts that the dimension is made of, one part after another: (1, 1) is a
            fused pair whose halves are cut alike.
        rest: Rows behind those parts, which all stay.
        scaled: Blocks and rest are multiples of a number that the tensor's own size tells (`head_dim`).
        each: The tensor's first dimension are experts, and the units are those of each of them. `dim` counts from the
            tensor's end (-1), so that it holds for the tensor of one expert as well.
    """

    suffix: str
    dim: int
    blocks: tuple[int, ...] = (1,)
    rest: int = 0
    scaled: bool = False
    each: bool = False

    def rows(self, size: int, places: int) -> tuple[tuple[int, ...], int] | None:
        """(rows of one unit in each part, rows that all stay) of a dimension of this size; None if it does not fit."""
        whole = places * sum(self.blocks) + self.rest
        scale, odd = divmod(size, whole)
        if odd or not scale or (scale != 1 and not self.scaled):
            return None
        return tuple(scale * block for block in self.blocks), scale * self.rest


@dataclass(frozen=True)
class Axis:
    """Something that a model has so and so many of, and that can go.

    Attributes:
        name: Its key in recipes, shapes, plans, scores, records and folder names.
        units: How many there are.
        resized: The config keys that change where so many are left.
        slices: The tensors that lose units, in a model of the given shape; () where whole layers go.
        called: What one unit and several are called in messages.
        readout: The module inside a layer whose input columns are the units, block by block: where scores are taken,
            and into whose columns least squares folds. None: there is none.
        grain: The multiple that the number left should be of.
        within: Where the shape has this axis, units are counted in each unit of it (query heads in each key/value
            group, neurons in each expert), each of which loses as many.
        beside: Other axes whose counts `slices` and `within` need.
        unfit: Why a config cannot have what `resized` makes of it, since its class or stock code refuses; None: it can.
    """

    name: str
    units: Callable[[Values], int]
    resized: Callable[[Values, int], dict[str, Any]]
    slices: Callable[[Family, Mapping[str, int]], tuple[Slice, ...]]
    called: tuple[str, str]
    readout: Callable[[Family], str] | None = None
    grain: Callable[[Values], int] = lambda values: 1
    within: str | None = None
    beside: tuple[str, ...] = ()
    unfit: Callable[[Family, Values], str | None] = lambda family, values: None

    @property
    def counts(self) -> tuple[str, ...]:
        """The axes whose counts tell where its units are."""
        return (self.name, *self.beside)

    def places(self, shape: Mapping[str, int]) -> int:
        """How many indices there are in a layer: the units, in all the units that they are counted in."""
        return shape[self.name] * (shape.get(self.within, 1) if self.within else 1)
