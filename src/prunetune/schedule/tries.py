"""As small as a promise allows: which shape is tried next, from what stood, what did not, and what a cut would cost.

    found = next_try(space, now, tried, probing, bearable)      # -> Try, or Over with the reason

One axis after another. A try that stood is what the next one starts from; one that did not bounds every shape within
it. Between the two the next try lies where the loss that the cut adds, which a probe measures before any training, is
halfway (on a log scale) between what stood and what did not. An axis ends where less than `RESOLUTION` of the
parameters is left to be won on it. All but the first end after a hopeless try, and without one where their smallest
step would add more than what has failed already, or than what a first try may add.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Shape = Mapping[str, int]
"""Axis -> units."""
Probes = tuple[tuple[Shape, float], ...]
"""Shapes, and the held-out loss (nats) of the model cut to each, before any training."""
Kind = Literal["guess", "between", "further"]

RESOLUTION = 0.03
"""Share of the original's parameters: less is not worth a try."""
HOPELESS = 0.5
"""Of the share wanted: who keeps less is not near it."""
PROBED, MIDDLE, FIRST = (0.34, 0.67, 1.0), (0.5,), (0.0,)
"""Where a way is probed: shares of the parameters that it could still lose. A way that ends at what did not stand is
probed in its middle; another axis than the first with its smallest step before all else."""
LEAST = 1e-4
"""Nats: damage below this is none."""
CAUTIOUS, BOLDER = 0.1, 4.0
"""A first try adds this part of what is bearable; while nothing has failed, each that stood lets the next add more."""
INWARD = 0.2
"""Of a bracket: a try lies at least so far from both its ends."""
NEAR = 0.12
"""Of a way: no second probe so near to one that is known."""
MOST_TRIES = 16


@dataclass(frozen=True)
class Probing:
    """What may be measured of the model that the next try starts from.

    Attributes:
        loss: Its held-out loss (nats).
        losses: Cuts it to each shape, as a round would, and takes the held-out loss; None: the size alone decides.
        known: Probes of it that were made already.
    """

    loss: float
    losses: Callable[[Sequence[Shape]], list[float]] | None = None
    known: Probes = ()


@dataclass(frozen=True)
class Space:
    """What may be tried.

    Attributes:
        values: Axis -> its allowed units, from the original's down; axes in the order in which they are searched.
        params: Parameters of a shape.
        least: No shape has fewer parameters.
    """

    values: Mapping[str, Sequence[int]]
    params: Callable[[Shape], int]
    least: int = 0

    @property
    def original(self) -> int:
        """Parameters of the untouched model."""
        return self.params({axis: units[0] for axis, units in self.values.items()})


@dataclass(frozen=True)
class Tried:
    """A finished try.

    Attributes:
        name: Of its round.
        shape: What it left.
        axis: What it removed.
        stood: Whether the promise was kept.
        hopeless: Whether it came nowhere near.
        damage: Loss that its cut added, before any training (nats); None: not measured.
    """

    name: str
    shape: Shape
    axis: str
    stood: bool
    hopeless: bool = False
    damage: float | None = None


@dataclass(frozen=True)
class Try:
    """The next try: its shape and axis, what it is in a word and in words; `probes`: all that are known."""

    shape: Shape
    axis: str
    kind: Kind
    why: str
    probes: Probes = ()


@dataclass(frozen=True)
class Over:
    """Nothing is left that is worth a try."""

    why: str
    probes: Probes = ()


def next_try(space: Space, now: Shape, tried: Sequence[Tried], probing: Probing, bearable: float) -> Try | Over:
    """The next shape to try.

    Args:
        space: What may be tried.
        now: The shape that the next try starts from: the newest that stood, or the original's.
        tried: All finished tries, in order.
        probing: Measures cuts of its model.
        bearable: Damage that one try may do at most, as long as nothing is known (nats).
    """
    if len(tried) >= MOST_TRIES:
        return Over(f"{len(tried)} tries are enough")
    ended, probes = list[str](), probing.known
    for place, axis in enumerate(space.values):
        bad = [t for t in tried if not t.stood and t.axis == axis]
        if place and (hopeless := next((t for t in bad if t.hopeless), None)) is not None:
            ended.append(f"{axis}: {hopeless.name} was hopeless")
            continue
        way = _way(space, now, axis, tried)
        won = space.params(now) - space.params(way[-1]) if way else 0
        if won < RESOLUTION * space.original:
            ended.append(f"{axis}: less than {RESOLUTION:.0%} of the parameters is left to be won")
            continue
        shares = FIRST if place and not bad else MIDDLE if bad else PROBED
        curve, probes = _curve(space, now, way, dataclasses.replace(probing, known=probes), shares)
        failed = min([bearable, *(t.damage for t in tried if not t.stood and t.damage is not None)])
        if place and curve and curve[0] >= max(failed, LEAST):
            ended.append(f"{axis}: the least that can go would add {curve[0]:.3f} nats; less than {failed:.3f} may")
            continue
        if shares is FIRST:
            curve, probes = _curve(space, now, way, dataclasses.replace(probing, known=probes), PROBED)
        chosen = _aim(space, now, axis, tried, way, curve, bearable)
        kind, lead = _called(axis, tried, curve)
        told = f", its cut is to add {curve[chosen]:.4f} nats (predicted)" if curve else ""
        return Try(way[chosen], axis, kind, f"try {len(tried) + 1}, {lead}{told}", probes)
    return Over("; ".join(ended), probes)


def _way(space: Space, now: Shape, axis: str, tried: Sequence[Tried]) -> list[Shape]:
    """The shapes on one axis that may still stand, the largest first."""
    failed = [t.shape for t in tried if not t.stood]
    shapes = [{**now, axis: units} for units in space.values[axis] if units < now[axis]]
    return [
        s
        for s in shapes
        if space.params(s) >= space.least and not any(all(s[a] <= f[a] for a in space.values) for f in failed)
    ]


def _curve(
    space: Space, now: Shape, way: Sequence[Shape], probing: Probing, shares: Sequence[float]
) -> tuple[list[float], Probes]:
    """The loss that each shape of a way would add, and all probes.

    Probes are made at the places nearest to `shares`, unless one is known near there.
    """
    if probing.losses is None:
        return [], probing.known
    whole, end = space.params(now), space.params(way[-1])

    def gone(shape: Shape) -> float:
        return (whole - space.params(shape)) / (whole - end)

    here = [a for a in space.values if way[-1][a] != now[a]]
    known = [(s, x) for s, x in probing.known if [a for a in space.values if s[a] != now[a]] == here]
    places = {min(range(len(way)), key=lambda i: abs(gone(way[i]) - share)) for share in shares}
    shapes = [way[i] for i in sorted(places) if not any(abs(gone(way[i]) - gone(s)) < NEAR for s, _ in known)]
    made = tuple(zip(shapes, probing.losses(shapes), strict=True)) if shapes else ()
    points = [(0.0, 0.0)]
    for shape, after in sorted([*known, *made], key=lambda found: gone(found[0])):
        points.append((gone(shape), max(points[-1][1], after - probing.loss)))
    return [_between(points, gone(shape)) for shape in way], (*probing.known, *made)


def _between(points: Sequence[tuple[float, float]], x: float) -> float:
    """The value at x between points, geometric where there is any (damage grows by factors); level beyond the last."""
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x <= x1:
            low, high, share = max(y0, LEAST / 2), max(y1, LEAST / 2), (x - x0) / (x1 - x0) if x1 > x0 else 1.0
            return y1 if high <= LEAST else low * (high / low) ** share
    return points[-1][1]


def _aim(
    space: Space,
    now: Shape,
    axis: str,
    tried: Sequence[Tried],
    way: Sequence[Shape],
    curve: Sequence[float],
    bearable: float,
) -> int:
    """The place on a way where the next try lies."""
    bounded = any(not t.stood and t.axis == axis for t in tried)
    if not curve:
        return _halfway(space, now, way)
    aim = min(bearable, CAUTIOUS * bearable * BOLDER ** sum(t.stood for t in tried))
    bad = [t.damage for t in tried if not t.stood and t.damage is not None]
    if bad:
        highest = max(min(bad), LEAST)
        good = (t.damage for t in tried if t.stood and t.damage is not None and t.damage < highest)
        aim = math.sqrt(max(max(good, default=highest / 64), LEAST / 2) * highest)
    chosen = max((i for i, d in enumerate(curve) if d <= max(aim, LEAST)), default=0)
    return _inward(space, now, way, chosen) if bounded else chosen


def _called(axis: str, tried: Sequence[Tried], curve: Sequence[float]) -> tuple[Kind, str]:
    """What a try is, in a word and in words."""
    stood = next((t.name for t in reversed(tried) if t.stood), "the original")
    failed = [t.name for t in tried if not t.stood and t.axis == axis]
    if failed:
        return "between", f"between {stood}, which stood, and {failed[-1]}, which did not"
    if any(t.stood and t.axis == axis for t in tried):
        return "further", f"further on {axis}, for {stood} stood"
    return "guess", f"the first at {axis}, {'by the probes' if curve else 'halfway'}"


def _halfway(space: Space, now: Shape, way: Sequence[Shape]) -> int:
    middle = (space.params(now) + space.params(way[-1])) / 2
    return min(range(len(way)), key=lambda i: abs(space.params(way[i]) - middle))


def _inward(space: Space, now: Shape, way: Sequence[Shape], chosen: int) -> int:
    """A place that is not at an end of the bracket, as far as there is another: the bracket must shrink."""
    start, end = space.params(now), space.params(way[-1])
    gone = [(start - space.params(s)) / (start - end) for s in way]
    inside = [i for i, g in enumerate(gone) if INWARD <= g <= 1 - INWARD] or [_halfway(space, now, way)]
    return min(max(chosen, inside[0]), inside[-1])
