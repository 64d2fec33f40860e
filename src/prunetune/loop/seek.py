"""The next try of a search with `stop_at`: the run's records as `schedule.tries` takes them, and back.

found = seek(case, index, losses, known)      # DecisionRecord; its step is None where nothing is left to try
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from prunetune.loop.decide import Case
from prunetune.runs.records import DecisionRecord, StageRecord, known
from prunetune.schedule import tries
from prunetune.schedule.damage import Probe, step_to, target_params
from prunetune.schedule.target import FinalShape, align_of, final_shape, period_in
from prunetune.schedule.tries import HOPELESS, Shape, Space, Tried
from prunetune.schedule.way import Place

LAYERS, NEURONS = "layers", "neurons"


def seek(
    case: Case, index: int, losses: Callable[[Sequence[Place]], list[Probe]] | None, found: Sequence[Probe] = ()
) -> DecisionRecord:
    """The next try, with what it rests on.

    Args:
        case: The run so far.
        index: Of the next round.
        losses: Probes the current model; None: the size alone decides.
        found: Probes of it that were made already.
    """
    loss, space = case.current.held_out_loss or 0.0, space_of(case)

    def measured(shapes: Sequence[Shape]) -> list[float]:
        return [] if losses is None else [p.loss for p in losses([_place(s) for s in shapes])]

    made = tuple((_shape(p.depth, p.width), p.loss) for p in found)
    probing = tries.Probing(loss, measured if losses else None, made)
    chosen = tries.next_try(space, _shape(*case.now), tried(case), probing, case.recipe.damage_per_round)
    probes = tuple(Probe(*_place(s), case.sizes.params(*_place(s)), x) for s, x in chosen.probes)
    rest = {"index": index, "rounds": case.rounds, "share": None, "why": chosen.why, "loss": loss, "probes": probes}
    if isinstance(chosen, tries.Over):
        return DecisionRecord(step=None, kind="over", **rest)
    return DecisionRecord(step=step_to(index, case.now, _place(chosen.shape)), kind=chosen.kind, **rest)


def space_of(case: Case) -> Space:
    """What may be tried: down to the recipe's target; a width that it does not name is a quarter at least."""
    prune, sizes, protect = case.recipe.prune, case.sizes, case.recipe.protect
    depth, width = final_shape(prune, sizes)
    align, period = align_of(prune, sizes), period_in(prune, sizes)
    least = width
    if not isinstance(prune.target, FinalShape | str):
        least = max(align, math.ceil(sizes.width / 4), math.ceil(case.now[1] * protect.share) if protect else 0)
    widths = [sizes.width, *(w for w in range((sizes.width - 1) // align * align, 0, -align) if w >= least)]
    values = {NEURONS: widths, LAYERS: list(range(sizes.depth, depth - 1, -period))}
    if prune.order == "layers-then-neurons":
        values = {LAYERS: values[LAYERS], NEURONS: widths}
    smallest = 0 if isinstance(prune.target, FinalShape | str) else target_params(prune, sizes)
    return Space(values, lambda s: sizes.params(*_place(s)), _largest_within(case, values, smallest))


def _largest_within(case: Case, values: dict[str, list[int]], wanted: int) -> int:
    """The size that a target asks for, met from below: the grid has it a little smaller."""
    if not wanted:
        return 0
    grid = (case.sizes.params(d, w) for d in values[LAYERS] for w in values[NEURONS])
    return max((n for n in grid if n <= wanted), default=0)


def tried(case: Case) -> list[Tried]:
    """The finished rounds as tries."""
    found, loss = [], case.original.held_out_loss
    for stage in case.stages:
        damage = None if stage.pruned_loss is None or loss is None else stage.pruned_loss - loss
        axis = known(stage.step, "step").axis
        shape = _shape(*stage.place)
        found.append(Tried(stage.name, shape, axis, stage.accepted, _hopeless(case, stage), damage))
        loss = stage.held_out_loss if stage.accepted else loss
    return found


def _hopeless(case: Case, stage: StageRecord) -> bool:
    verdict, stop = stage.verdict, case.recipe.stop_at
    if verdict is None or verdict.validation is None or stop is None:
        return False
    return verdict.validation.kept < HOPELESS * stop.accuracy


def _shape(depth: int, width: int) -> Shape:
    return {LAYERS: depth, NEURONS: width}


def _place(shape: Shape) -> Place:
    return shape[LAYERS], shape[NEURONS]
