"""A prune plan: what goes, before anything goes. Frozen, validated, reviewable JSON.

Indices always mean the model that the plan was made for. Every kept layer loses the same number of units of an axis, so
that the result keeps one number for all layers (`intermediate_size`, …) and stays a stock architecture.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    StrictInt,
    model_serializer,
    model_validator,
)

from prunetune.common.files import json_sha, write_json
from prunetune.common.reading import read_model
from prunetune.errors import NotFinite, OutOfReach, PlanError, shown
from prunetune.models.axes import axes, axis_of
from prunetune.pruning.blocks.choose import Others

MOST_LAYERS, MOST_NEURONS = 10_000, 10_000_000
"""Some hundred times the deepest and the widest model there is."""


def _layer_numbers(value: object) -> object:
    """JSON has text as keys: only that of a number as it is written, so that no layer is named twice."""
    if isinstance(value, Mapping):
        for key in value:
            if isinstance(key, bool) or not (isinstance(key, int) or re.fullmatch("0|[1-9][0-9]{0,8}", str(key))):
                raise ValueError(f"{shown(key)} is not the number of a layer")
    return value


Units = Annotated[dict[int, tuple[StrictInt, ...]], BeforeValidator(_layer_numbers)]
"""Layer -> units."""


class PrunePlan(BaseModel):
    """What is removed from one model.

    Attributes:
        model_sha: `store.model_sha` of the model that the plan is for.
        depth: Layers of that model.
        width: FFN width (`intermediate_size`) of that model, or of one of its experts.
        drop_layers: Layers to remove, ascending.
        drop_neurons: Layer -> neurons to remove, ascending; the same number in every kept layer, or empty. Where the
            model has experts (and `sizes` says how many): in each kept expert of it, counted expert after expert.
        sizes: How many units that model has of every other axis that `drop` names, and of those that they are in.
        drop: Axis -> layer -> units to remove, as `drop_neurons`; of an axis within another (query heads in key/value
            groups) as many in each kept unit of that. Not written where it is empty, as before there were other axes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model_sha: str = Field(max_length=200)
    depth: StrictInt = Field(gt=0, le=MOST_LAYERS)
    width: StrictInt = Field(gt=0, le=MOST_NEURONS)
    drop_layers: tuple[StrictInt, ...] = Field(default=(), max_length=MOST_LAYERS)
    drop_neurons: Units = Field(default_factory=dict, max_length=MOST_LAYERS)
    sizes: dict[str, Annotated[int, Field(strict=True, gt=0, le=MOST_NEURONS)]] = Field(default_factory=dict)
    drop: dict[str, Annotated[Units, Field(max_length=MOST_LAYERS)]] = Field(default_factory=dict)

    @model_serializer(mode="wrap")
    def _without_empty(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {k: v for k, v in handler(self).items() if v or k not in ("sizes", "drop")}

    @model_validator(mode="after")
    def _check(self) -> PrunePlan:
        """Costs as much as the plan's own lists, whatever depth and width it claims."""
        _ascending("drop_layers", self.drop_layers, self.depth)
        if len(self.drop_layers) >= self.depth:
            raise ValueError("drop_layers leaves no layer")
        if taken := {"layers", "neurons"} & {*self.drop, *self.sizes}:
            raise ValueError(f"{min(taken)} have keys of their own (drop_layers, drop_neurons; depth, width)")
        if unknown := {*self.drop, *self.sizes} - set(axes()):
            raise ValueError(f"{shown(min(unknown))} is no axis; there are {', '.join(axes())}")
        for name in self.drop:
            if lost := set(axis_of(name).counts) - set(self.sizes):
                raise ValueError(f"sizes does not say how many {min(lost)} the model has")
        for name in ("neurons", *self.drop):
            self._check_units(name)
        return self

    def _check_units(self, name: str) -> None:
        axis, gone = axis_of(name), set(self.drop_layers)
        key = "drop_neurons" if name == "neurons" else f"drop.{name}"
        counts = {0} if len(self.drops(name)) < self.new_depth else set[int]()
        for layer, units in self.drops(name).items():
            if layer in gone or not 0 <= layer < self.depth:
                raise ValueError(f"{key} names layer {layer}, which is not kept")
            _ascending(f"{key}[{layer}]", units, axis.places(self.shape))
            if axis.within is None or axis.within not in self.shape:
                counts.add(len(units))
                continue
            each = self.shape[name]
            found = Counter(unit // each for unit in units)
            whole = self.drops(axis.within).get(layer, ())
            if wrong := set(found) & set(whole):
                raise ValueError(f"{key}[{layer}] names {name} of {axis.within} {min(wrong)}, which goes as a whole")
            counts |= set(found.values()) | ({0} if len(found) < self.shape[axis.within] - len(whole) else set())
        if len(counts) > 1:
            each_of = f" in each of its {axis.within}" if axis.within in self.shape else ""
            raise ValueError(f"every kept layer must lose the same number of {name}{each_of}, not {sorted(counts)}")
        if counts == {self.shape[name]}:
            raise ValueError(f"{key} leaves no {axis.called[0]}")

    @property
    def shape(self) -> dict[str, int]:
        """How many there are of each axis that the plan knows of, in the source."""
        return {"layers": self.depth, "neurons": self.width, **self.sizes}

    @property
    def new_shape(self) -> dict[str, int]:
        """The same of the result."""
        return {"layers": self.new_depth, "neurons": self.new_width} | {
            name: count - self._lost(name) for name, count in self.sizes.items()
        }

    def _lost(self, name: str) -> int:
        units, axis = next(iter(self.drops(name).values()), ()), axis_of(name)
        if not units or axis.within not in self.shape:
            return len(units)
        return sum(unit // self.shape[name] == units[0] // self.shape[name] for unit in units)

    def drops(self, name: str) -> Mapping[int, tuple[int, ...]]:
        """Layer -> the units of an axis that go."""
        return self.drop_neurons if name == "neurons" else self.drop.get(name, {})

    @property
    def kept_layers(self) -> tuple[int, ...]:
        """The layers that stay, ascending, as numbered in the source."""
        gone = set(self.drop_layers)
        return tuple(i for i in range(self.depth) if i not in gone)

    def kept(self, name: str, layer: int) -> tuple[int, ...]:
        """The units of an axis in a kept source layer that stay, ascending; of those that go as a whole none."""
        axis, gone = axis_of(name), set(self.drops(name).get(layer, ()))
        whole = set(self.drops(axis.within).get(layer, ())) if axis.within else set[int]()
        each = self.shape[name]
        return tuple(j for j in range(axis.places(self.shape)) if j not in gone and j // each not in whole)

    @property
    def new_depth(self) -> int:
        """Layers of the result."""
        return self.depth - len(self.drop_layers)

    @property
    def new_width(self) -> int:
        """FFN width of the result."""
        return self.width - self._lost("neurons")

    @property
    def removes_nothing(self) -> bool:
        """Whether the result is the source itself."""
        return self.new_shape == self.shape

    @property
    def sha(self) -> str:
        """Hash of what the plan says: a patch names the plan that it was made for."""
        return json_sha(self.model_dump(mode="json"))

    def check_model(self, sha: str, source: Path) -> None:
        """PlanError unless the plan is for this model."""
        if sha != self.model_sha:
            raise PlanError(
                "this plan is for another model (their hashes differ)",
                value=f"plan: {self.model_sha}, {source}: {sha}",
                fix="make the plan for this model with `prunetune plan`",
            )

    def write(self, path: Path) -> None:
        """Write as JSON, atomically."""
        write_json(path, self.model_dump(mode="json"))

    @staticmethod
    def read(path: Path) -> PrunePlan:
        """Read and validate; PlanError names what is wrong, MissingPath says that it is not there."""
        return read_model(path, PrunePlan, "plan", error=PlanError, fix="make it anew with `prunetune plan`")


def _ascending(name: str, indices: tuple[int, ...], size: int) -> None:
    if (bad := next((i for i in indices if not 0 <= i < size), None)) is not None:
        raise ValueError(f"{name} has {bad}, an index outside 0..{size - 1}")
    if any(a >= b for a, b in itertools.pairwise(indices)):
        raise ValueError(f"{name} must be ascending, without repeats")


# --------------------------------------------------------------------------------------------------- scores -> plan

Row = Sequence[float]


def make_plan(
    neurons: Sequence[Row],
    layers: Row,
    model_sha: str,
    *,
    n_neurons: int = 0,
    n_layers: int = 0,
    which_layers: Collection[int] | None = None,
    period: int = 1,
    protected: Sequence[Row] | None = None,
    protect_share: float = 0.0,
    others: Others | None = None,
    experts: int = 0,
) -> PrunePlan:
    """The plan that removes the lowest scores: counts of neurons in every layer, of layers, of other axes' units. Pure.

    Args:
        neurons: Neuron scores, [layers][width]; low = redundant. Of a mixture of experts [layers][experts x width].
        layers: Layer scores, [layers].
        model_sha: The model that was scored.
        n_neurons: Neurons that every kept layer loses, or every kept expert of it.
        n_layers: Layers that go.
        which_layers: Only these may go (an explicit choice of layers).
        period: Layers go in runs of so many neighbours, which keeps the place of the others in a pattern of that period
            (`families.period_of`); 1: each alone.
        protected: Neuron scores on the protected corpus; the top share of each layer is not eligible.
        protect_share: That share of the current width.
        others: What goes of other axes, and its scores.
        experts: How many experts a layer has; 0: it has one FFN.

    Raises:
        OutOfReach: So many cannot go. NotFinite: A score is NaN or infinite, which has no order.
    """
    _check_finite(neurons, layers, protected or ())
    depth, width = len(neurons), len(neurons[0]) // (experts or 1)
    candidates = sorted(range(depth) if which_layers is None else which_layers, key=lambda i: (layers[i], i))
    chosen = candidates[:n_layers] if period == 1 or which_layers is not None else _runs(layers, n_layers, period)
    drop_layers = tuple(sorted(chosen))
    if len(drop_layers) < n_layers or n_layers >= depth:
        raise OutOfReach("this many layers cannot go", value=n_layers, valid=f"0 to {min(len(candidates), depth - 1)}")
    kept = [i for i in range(depth) if i not in drop_layers]
    more = _others(others, kept)
    drop: dict[int, tuple[int, ...]] = {}
    if n_neurons:
        for i in kept:
            whole = more["drop"].get("experts", {}).get(i, ()) if more else ()
            safe = protected[i] if protected is not None else None
            stay = [e for e in range(experts or 1) if e not in whole]
            drop[i] = tuple(j for e in stay for j in _lowest(neurons[i], safe, e, width, n_neurons, protect_share))
        if experts:
            more = {**more, "sizes": {**more.get("sizes", {}), "experts": experts}}
    return PrunePlan(model_sha=model_sha, depth=depth, width=width, drop_layers=drop_layers, drop_neurons=drop, **more)


def _lowest(row: Row, protected: Row | None, expert: int, width: int, count: int, share: float) -> list[int]:
    """The neurons with the lowest scores, of one FFN (of `width`) of a layer, as numbered in the layer."""
    at = slice(expert * width, (expert + 1) * width)
    own = row[at]
    free = _eligible(width, protected[at] if protected is not None else None, share)
    if count > len(free) or count >= width:
        raise OutOfReach(
            "this many neurons cannot go",
            value=count,
            valid=f"at most {min(len(free), width - 1)} of {width} a layer",
            fix="a smaller step, or a smaller protect.share",
        )
    return [at.start + j for j in sorted(sorted(free, key=lambda j: (own[j], j))[:count])]


def _others(others: Others | None, layers: Sequence[int]) -> dict[str, Any]:
    """`sizes` and `drop` of a plan."""
    if others is None:
        return {}
    for name, rows in others.scores.items():
        _check_finite(rows, (), (), what=f"{name} scores")
    return {"sizes": others.used, "drop": others.drops(layers)}


def _runs(layers: Row, n_layers: int, period: int) -> list[int]:
    """The layers of the runs of `period` neighbours with the lowest sum, one run after another; neighbours are those of
    what is left.
    """
    left, gone = list(range(len(layers))), list[int]()
    while len(gone) < n_layers and len(left) >= period:
        start = min(range(len(left) - period + 1), key=lambda s: (sum(layers[i] for i in left[s : s + period]), s))
        gone += left[start : start + period]
        del left[start : start + period]
    return gone


def threshold_counts(
    neurons: Sequence[Row],
    layers_max: Row,
    *,
    sigma_neuron: float | None,
    sigma_layer: float | None,
    align: int,
    protected: Sequence[Row] | None = None,
    protect_share: float = 0.0,
    experts: int = 0,
) -> tuple[int, tuple[int, ...]]:
    """How many neurons a layer, and which layers, the thresholds call redundant (Eq. 4, 6).

    One width for all layers: the smallest common count is removed, and the width left is rounded up to `align`. At
    least one layer and one neuron stay.

    Returns:
        (neurons every kept layer loses, layers that go).
    """
    _check_finite(neurons, layers_max, protected or ())
    depth, width = len(neurons), len(neurons[0]) // (experts or 1)
    gone: list[int] = []
    if sigma_layer is not None:
        gone = sorted((i for i in range(depth) if layers_max[i] <= sigma_layer), key=lambda i: (layers_max[i], i))
        gone = gone[: depth - 1]
    if sigma_neuron is None:
        return 0, tuple(sorted(gone))
    counts = []
    for i in (i for i in range(depth) if i not in gone):
        for start in range(0, len(neurons[i]), width):
            own = neurons[i][start : start + width]
            safe = protected[i][start : start + width] if protected is not None else None
            counts.append(sum(own[j] <= sigma_neuron for j in _eligible(width, safe, protect_share)))
    left = max(1, math.ceil((width - min(counts)) / align) * align)
    return max(0, width - left), tuple(sorted(gone))


def _check_finite(neurons: Sequence[Row], layers: Row, protected: Sequence[Row], what: str = "neuron scores") -> None:
    """A sort by NaN is an arbitrary order, and `inf <= sigma` is false of a layer that nobody measured."""
    kinds = ((what, neurons), ("layer score", [[x] for x in layers]), ("protected scores", protected))
    for kind, rows in kinds:
        for layer, row in enumerate(rows):
            if not all(map(math.isfinite, row)):
                bad = next(x for x in row if not math.isfinite(x))
                raise NotFinite(
                    f"no plan can be made: the {kind} of layer {layer} hold {bad}",
                    fix="score the model anew; `prunetune score` says where it overflows",
                )


def _eligible(width: int, protected: Row | None, share: float) -> list[int]:
    if protected is None or not share:
        return list(range(width))
    safe = set(sorted(range(width), key=lambda j: (-protected[j], j))[: math.ceil(share * width)])
    return [j for j in range(width) if j not in safe]
