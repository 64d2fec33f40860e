"""Steps and tokens by damage: pure arithmetic on the held-out losses that probing found (docs/method.md).

    way = path(prune, sizes, now)                           # every shape to the target, in the recipe's order (way.py)
    probes = [measure(way[i]) for i in places(way, sizes)]  # elsewhere (loop/probe.py): prune, compensate, loss
    curve = damages(way, sizes, loss, probes)               # the loss that each shape would cost, interpolated
    i = equal_damage(curve, rounds)                         # the next round goes to way[i]

Damage grows faster than the cut: the first neurons cost nothing, the last ones a lot. Steps of equal size therefore
spend tokens where nothing is to be healed; steps of equal damage do not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from prunetune.schedule.sizes import Sizes
from prunetune.schedule.steps import Step
from prunetune.schedule.target import PruneConfig, final_shape
from prunetune.schedule.way import Place

PROBED = (0.6, 0.85, 1.0)
"""Where the damage is measured: shares of the parameters that are still to go."""


@dataclass(frozen=True)
class Probe:
    """What a cut to a shape does, straight after pruning (and compensation), before any training.

    Attributes:
        depth: Layers left.
        width: Neurons left in each.
        params: Parameters left.
        loss: Held-out loss (nats a token).
    """

    depth: int
    width: int
    params: int
    loss: float


def places(way: Sequence[Place], sizes: Sizes, now: Place) -> list[int]:
    """Where to probe a path: the places nearest to `PROBED`, without repeats; the last always."""
    start, end = sizes.start(*now), sizes.params(*way[-1])
    gone = [(start - sizes.params(*at)) / max(start - end, 1) for at in way]
    return sorted({min(range(len(way)), key=lambda i: abs(gone[i] - share)) for share in PROBED})


def damages(way: Sequence[Place], sizes: Sizes, now: Place, loss: float, probes: Sequence[Probe]) -> list[float]:
    """The loss that each shape of the path would add, linear in the parameters between probes, never falling.

    Args:
        way: The path.
        sizes: Parameters by shape.
        now: The shape before the path.
        loss: Held-out loss before the cut.
        probes: Measured places of the path, in its order.
    """
    xs, ys = [float(sizes.start(*now))], [0.0]
    for p in probes:
        xs.append(float(p.params))
        ys.append(max(ys[-1], p.loss - loss))
    found = []
    for at in way:
        x = sizes.params(*at)
        j = next((j for j in range(1, len(xs)) if xs[j] <= x), len(xs) - 1)
        share = (xs[j - 1] - x) / max(xs[j - 1] - xs[j], 1.0)
        found.append(ys[j - 1] + min(1.0, share) * (ys[j] - ys[j - 1]))
    return found


def equal_damage(curve: Sequence[float], rounds: int, *, exact: bool = False) -> int:
    """The place of a damage curve where the first of `rounds` rounds of equal damage ends.

    Args:
        curve: The loss that each place would add.
        rounds: Rounds to go.
        exact: Their number is a wish: where nothing hurts they are of equal size, and each later one has a place left.
            Else what does not hurt goes at once.
    """
    if rounds <= 1 or (curve[-1] <= 0 and not exact):
        return len(curve) - 1
    wanted = curve[-1] / rounds
    even = math.ceil(len(curve) / rounds) - 1
    chosen = even if curve[-1] <= 0 else min(range(len(curve)), key=lambda i: (abs(curve[i] - wanted), -i))
    return max(0, min(chosen, len(curve) - rounds)) if exact else chosen


def rounds_for(damage: float, bearable: float, affordable: int, most: int) -> int:
    """As many rounds as keep the predicted damage of each at what one round heals, if the tokens last for so many.

    Args:
        damage: Predicted for the whole cut at once (nats).
        bearable: What one round may do (nats).
        affordable: Rounds that the recovery budget can serve with enough optimiser steps each.
        most: Upper limit.
    """
    return max(1, min(math.ceil(damage / bearable), affordable, most))


def step_to(index: int, now: Place, to: Place, attempt: int = 1) -> Step:
    """The round that goes from one shape to another."""
    return Step(index, now[1] - to[1], now[0] - to[0], attempt)


def target_params(prune: PruneConfig, sizes: Sizes) -> int:
    """The largest number of parameters that meets the target."""
    if isinstance(prune.target, float) and prune.target <= 1:
        return math.floor(prune.target * sizes.original)
    if isinstance(prune.target, float | int):
        return int(prune.target)
    return sizes.params(*final_shape(prune, sizes))
