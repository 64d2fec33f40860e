"""Which shape a target should have: pure arithmetic on the held-out losses of a few shapes that were really cut.

    shapes = frontier(units, grains, fits)         # every shape that meets the target, each with all the neurons it may
    found = search(shapes, units, lost, most=12)   # `lost(shape)` cuts, compensates and takes the loss, elsewhere

A shape that meets the target and could keep more neurons is never the best, so that for each choice of the other axes
one shape is left. Damage is taken to add up over the axes: that of the neurons is a power of their share that goes,
fitted to two cuts of neurons alone; that of another axis is what a cut adds to it. Each next shape that is cut is the
one with the least predicted loss, until none is predicted to be better than the best one measured. An axis whose
curve is not known yet is drawn on in a straight line, which is hopeful where damage grows faster than the cut: a shape
is left out only for what was measured, never for what nobody looked at.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Counts = Mapping[str, int]
"""How many there are of each axis."""
Lost = Callable[[Counts], float]

NEURONS = "neurons"
MOST = 12
"""Shapes that are cut for one search, at most."""
FLAT = 1.0
"""The power of the neurons' damage where two cuts give none: a straight line."""


@dataclass(frozen=True)
class Candidate:
    """A shape and what is known of it.

    Attributes:
        shape: Units left, by axis.
        predicted: The loss that the surrogate gave it when the search ended (nats a token).
        measured: Its held-out loss straight after the cut; None: it was not cut.
    """

    shape: dict[str, int]
    predicted: float
    measured: float | None


@dataclass(frozen=True)
class Found:
    """What a search has found: the shape with the least measured loss, and every candidate, the best first."""

    shape: dict[str, int]
    candidates: tuple[Candidate, ...]


def frontier(
    units: Counts, levels: Mapping[str, Sequence[int]], fits: Callable[[Counts], bool], least: int, grain: int
) -> list[dict[str, int]]:
    """The shapes that meet a target: for each choice of the other axes the most neurons with which it is met.

    Args:
        units: What the model has of each axis.
        levels: What may be left of each axis other than the neurons, the untouched number first.
        fits: Whether a shape meets the target. More of an axis never makes it fit better.
        least: No fewer neurons than this.
        grain: Neurons left are a multiple of this, or all of them.
    """
    names = [name for name in levels if name != NEURONS]
    widths = [units[NEURONS], *(w for w in range((units[NEURONS] - 1) // grain * grain, 0, -grain) if w >= least)]
    found = []
    for choice in itertools.product(*(levels[name] for name in names)):
        shape = {**units, **dict(zip(names, choice, strict=True))}
        at = _first(widths, lambda width, shape=shape: fits({**shape, NEURONS: width}))  # type: ignore[misc]
        if at is not None:
            found.append({**shape, NEURONS: widths[at]})
    return found


def _first(descending: Sequence[int], fits: Callable[[int], bool]) -> int | None:
    """The first place that fits, by bisection: what is smaller fits as well."""
    if not descending or not fits(descending[-1]):
        return None
    low, high = 0, len(descending) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(descending[middle]) else (middle + 1, high)
    return low


def search(shapes: Sequence[Counts], units: Counts, before: float, lost: Lost, most: int = MOST) -> Found:
    """The shape with the least loss, from at most `most` that are cut.

    Args:
        shapes: All that meet the target (`frontier`).
        units: The untouched model's.
        before: The untouched model's held-out loss (nats a token).
        lost: The held-out loss of a shape, cut and compensated: the dear part. Called once a shape.
        most: Calls of `lost`. Of a single shape it is not called.
    """
    known: dict[tuple[int, ...], float] = {}
    order = sorted(units)
    if len(shapes) == 1:  # nothing to choose
        return Found(dict(shapes[0]), (Candidate(dict(shapes[0]), math.nan, None),))

    def measure(shape: Counts) -> None:
        known[_key(shape, order)] = lost(shape)

    for shape in first_shapes(shapes, units)[:most]:
        measure(shape)
    while len(known) < most:
        surrogate = Surrogate.of(known, order, units, before)
        best = min((loss for key, loss in known.items() if _among(key, shapes, order)), default=math.inf)
        open_ = [s for s in shapes if _key(s, order) not in known]
        chosen = min(open_, key=surrogate.loss, default=None)
        if chosen is None or surrogate.loss(chosen) >= best:
            break
        measure(chosen)
    surrogate = Surrogate.of(known, order, units, before)
    candidates = [Candidate(dict(s), surrogate.loss(s), known.get(_key(s, order))) for s in shapes]
    measured = [c for c in candidates if c.measured is not None]
    ranked = sorted(candidates, key=lambda c: (c.measured is None, c.predicted if c.measured is None else c.measured))
    return Found(min(measured, key=lambda c: c.measured or 0.0).shape, tuple(ranked))


def first_shapes(shapes: Sequence[Counts], units: Counts) -> list[dict[str, int]]:
    """What is cut in any case: neurons alone (all of the way and half of it), then the least of each other axis."""
    alone = [s for s in shapes if all(s[name] == units[name] for name in units if name != NEURONS)]
    found = [dict(s) for s in alone[:1]]
    if found and (half := (units[NEURONS] + found[0][NEURONS]) // 2) not in (units[NEURONS], found[0][NEURONS]):
        found.append({**found[0], NEURONS: half})
    for name in (name for name in units if name != NEURONS):
        others = [other for other in units if other not in (name, NEURONS)]
        single = [s for s in shapes if s[name] < units[name] and all(s[o] == units[o] for o in others)]
        if single:
            found.append(dict(max(single, key=lambda s: s[name])))
    return found or [dict(s) for s in shapes[:1]]


@dataclass(frozen=True)
class Surrogate:
    """Loss by shape: damages that add up.

    Attributes:
        units: The untouched model's.
        before: Its loss.
        scale: Damage where all neurons go.
        power: How it grows with the share that goes.
        curves: Of each other axis, (units gone, damage), ascending and never falling; from (0, 0).
        known: Measured losses by shape, which are taken as they are.
        order: The axes in the order of the keys of `known`.
    """

    units: Counts
    before: float
    scale: float
    power: float
    curves: Mapping[str, Sequence[tuple[int, float]]]
    known: Mapping[tuple[int, ...], float]
    order: Sequence[str]

    @staticmethod
    def of(known: Mapping[tuple[int, ...], float], order: Sequence[str], units: Counts, before: float) -> Surrogate:
        """Fitted to what is measured."""
        at = [(dict(zip(order, key, strict=True)), max(0.0, loss - before)) for key, loss in known.items()]
        alone = [(_gone(shape, units), damage) for shape, damage in at if _cut(shape, units) <= {NEURONS}]
        scale, power = _power_law([(share, damage) for share, damage in alone if share > 0])
        curves = {}
        for name in (name for name in order if name != NEURONS):
            single = [(s, damage) for s, damage in at if _cut(s, units) in ({name}, {name, NEURONS})]
            points = {
                units[name] - s[name]: max(0.0, damage - scale * _gone(s, units) ** power) for s, damage in single
            }
            rising = itertools.accumulate((damage for _, damage in sorted(points.items())), max)
            curves[name] = [(0, 0.0), *zip(sorted(points), rising, strict=True)]
        return Surrogate(units, before, scale, power, curves, known, order)

    def loss(self, shape: Counts) -> float:
        """Nats a token: as measured, or as predicted from cuts of one axis and what such predictions missed so far."""
        key = _key(shape, self.order)
        return self.known[key] if key in self.known else self._added(shape) + self._missed(shape)

    def _added(self, shape: Counts) -> float:
        damage = float(self.scale * _gone(shape, self.units) ** self.power)
        return self.before + damage + sum(_along(c, self.units[n] - shape[n]) for n, c in self.curves.items())

    def _missed(self, shape: Counts) -> float:
        """By how much the nearest measured shape of several axes that keeps no less was worse than its prediction."""
        found = []
        for key, loss in self.known.items():
            other = dict(zip(self.order, key, strict=True))
            cut = _cut(other, self.units) - {NEURONS}
            if len(cut) > 1 and all(other[name] >= shape[name] for name in self.curves):
                found.append((sum(other[name] for name in self.curves), loss - self._added(other)))
        return max(0.0, min(found)[1]) if found else 0.0


def _power_law(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """(scale, power) of damage = scale * share ** power through the least and the most; a line through one point."""
    if not points:
        return 0.0, FLAT
    (low, less), (high, more) = min(points), max(points)
    if low == high or less <= 0 or more <= less:
        power = 2.0 if low < high and less <= 0 else FLAT
        return more / high**power, power
    power = max(FLAT, math.log(more / less) / math.log(high / low))
    return more / high**power, power


def _along(curve: Sequence[tuple[int, float]], gone: int) -> float:
    """Damage after so many units: straight between points and, with the last slope, behind them."""
    if len(curve) == 1:
        return 0.0
    j = next((j for j in range(1, len(curve)) if curve[j][0] >= gone), len(curve) - 1)
    (x0, y0), (x1, y1) = curve[j - 1], curve[j]
    return y0 + (y1 - y0) * (gone - x0) / (x1 - x0)


def _gone(shape: Counts, units: Counts) -> float:
    return 1 - shape[NEURONS] / units[NEURONS]


def _cut(shape: Counts, units: Counts) -> set[str]:
    return {name for name, count in shape.items() if count < units[name]}


def _key(shape: Counts, order: Sequence[str]) -> tuple[int, ...]:
    return tuple(shape[name] for name in order)


def _among(key: tuple[int, ...], shapes: Sequence[Counts], order: Sequence[str]) -> bool:
    return any(_key(shape, order) == key for shape in shapes)
