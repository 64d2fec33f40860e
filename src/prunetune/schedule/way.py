"""The way to the target, shape by shape, and where a ladder stops on it: pure arithmetic on sizes.

    way = path(prune, sizes, now)                 # every shape from the one after `now` to the target
    stops(prune, sizes, now, way)                 # places of it where a rung ends; without a ladder: its last one
    leg(prune, sizes, done)                       # the part of a ladder that is being walked, as a schedule of its own

A rung is the first shape on the way whose parameters do not exceed its share; the last one is the target's shape.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from prunetune.errors import OutOfReach
from prunetune.schedule.sizes import Sizes
from prunetune.schedule.target import FinalShape, PruneConfig, align_of, final_shape, period_in

Place = tuple[int, int]
"""(depth, width)."""


def path(prune: PruneConfig, sizes: Sizes, now: Place) -> list[Place]:
    """All shapes from the one after `now` to the target, one aligned width, or one layer (or period) after another.

    Where nothing but other axes goes (`prune.cut`) that is `now` itself.
    """
    depth, width = now
    final_depth, final_width = final_shape(prune, sizes)
    align = align_of(prune, sizes)
    first = (width - 1) // align * align
    widths = [w for w in range(first, final_width, -align) if w > final_width] + [final_width] * (width > final_width)
    period = period_in(prune, sizes)
    depths = list(range(depth - period, final_depth - 1, -period))
    if prune.cut and not widths and not depths:
        return [now]
    if prune.order == "together":
        gone = [round(len(depths) * (i + 1) / len(widths)) * period for i in range(len(widths))]
        shapes = [(depth - n, w) for n, w in zip(gone, widths, strict=True)]
        return shapes or [(d, width) for d in depths]
    if prune.order == "layers-then-neurons":
        return [(d, width) for d in depths] + [(final_depth, w) for w in widths]
    return [(depth, w) for w in widths] + [(d, final_width) for d in depths]


def limits(prune: PruneConfig, sizes: Sizes) -> list[int]:
    """The most parameters that each rung may have."""
    return [math.floor(share * sizes.original) for share in prune.ladder or ()]


def rungs_left(prune: PruneConfig, sizes: Sizes, now: Place) -> int:
    """Rungs that a shape has not reached; without a ladder the target is the only one."""
    if now == final_shape(prune, sizes):
        return 0
    return 1 + sum(sizes.params(*now) > most for most in limits(prune, sizes)[:-1])


def stops(prune: PruneConfig, sizes: Sizes, now: Place, way: Sequence[Place]) -> list[int]:
    """The places of a way from `now` where the rungs that are left end; the last is the way's end.

    Raises:
        OutOfReach: Two rungs are the same shape.
    """
    left = rungs_left(prune, sizes, now)
    most = limits(prune, sizes)[-left:][:-1]
    found = [next(i for i, at in enumerate(way) if sizes.params(*at) <= n) for n in most] + [len(way) - 1]
    for which, (one, other) in enumerate(pairwise(found)):
        if one == other:
            upper, lower = (prune.ladder or [])[-left:][which : which + 2]
            depth, width = way[one]
            raise OutOfReach(
                "two rungs of this ladder are the same shape",
                value=f"{upper:g} and {lower:g}: {depth} layers of width {width}",
                valid=f"widths are multiples of {align_of(prune, sizes)}, and layers go whole",
                fix="leave one of them out, or choose them further apart",
            )
    return found


def rungs(prune: PruneConfig, sizes: Sizes) -> list[Place]:
    """The shape of each rung, from the original on. OutOfReach as `stops` and `final_shape`."""
    start = (sizes.depth, sizes.width)
    way = path(prune, sizes, start)
    return [way[i] for i in stops(prune, sizes, start, way)]


@dataclass(frozen=True)
class Leg:
    """The part of a ladder from one rung to the next.

    Attributes:
        before: Rounds that were done before it.
        prune: The schedule of it alone.
        sizes: The model that it starts from, as if that were the original.
    """

    before: int
    prune: PruneConfig
    sizes: Sizes


def leg(prune: PruneConfig, sizes: Sizes, done: Sequence[Place]) -> Leg:
    """The leg that is being walked.

    Args:
        prune: With a ladder whose end is not reached.
        sizes: Of the untouched model.
        done: The shapes that the rounds so far left.
    """
    shapes = [(sizes.depth, sizes.width), *done]
    left = [rungs_left(prune, sizes, at) for at in shapes]
    before = left.index(left[-1])
    start = shapes[before]
    depth, width = rungs(prune, sizes)[-left[-1]]
    if depth > start[0] or width > start[1]:  # the ladder was made longer, and its way is another one now
        way = path(prune, sizes, start)
        depth, width = way[stops(prune, sizes, start, way)[0]]
    small = replace(sizes, depth=start[0], width=start[1])
    changes: dict[str, object] = {"ladder": None, "target": FinalShape(depth=depth, width=width), "max_rounds": None}
    if isinstance(prune.layers, list):  # which ones go is decided; how many is the leg's depth
        changes["whole_periods"] = False
    if isinstance(prune.step, float):
        changes["step"] = prune.step * sizes.original / small.original
    if isinstance(prune.rounds, int):
        changes["rounds"] = _allotted(prune.rounds, prune.ladder or [])[-left[-1]]
    return Leg(before, prune.model_copy(update={**changes, "layers": "auto"}), small)


def _allotted(rounds: int, ladder: Sequence[float]) -> list[int]:
    """Rounds of each leg: one at least, each further one where a round would remove most."""
    gaps = [a - b for a, b in zip([1.0, *ladder], ladder, strict=False)]
    found = [1] * len(gaps)
    for _ in range(rounds - len(gaps)):
        found[max(range(len(gaps)), key=lambda i: (gaps[i] / found[i], -i))] += 1
    return found
