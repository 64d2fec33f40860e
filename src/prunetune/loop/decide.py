"""Deciding between rounds: how far the next one goes, with which share of the budget, and what follows a rejected one.

    decision = decide(case, probed)          # Decision, or End with the reason; pure but for `probed`

With `budget: equal`, a fixed order and no conditions this is the paper's schedule (`schedule.next_step`), and nothing
is measured. Otherwise `probed` measures the current model (probe.py) and `by_damage` is the arithmetic on it. After a
rejected round half of it is tried; where there is no half, its axis is closed for good and the other one goes on.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prunetune.recipe.schema import Recipe
from prunetune.runs.records import DecisionRecord, Removed, StageRecord, Waypoint, known
from prunetune.schedule import damage as budget
from prunetune.schedule.steps import Axis, Done, Step, next_step, plan_ahead
from prunetune.schedule.target import FinalShape, PruneConfig, Sizes, align_of, period_in

LEAST_STEPS = 20
"""`rounds: auto`: optimiser steps that a round must get at least."""
MOST_ROUNDS = 6
"""`rounds: auto`: no more than this, unless `max_rounds` says so."""


@dataclass(frozen=True)
class Decision:
    """What the next round does.

    Attributes:
        step: What goes.
        rounds: Rounds in all, as things stand.
        share: Share of the recovery budget that is left; None: an equal share of the whole.
        last: Whether it reaches the target.
        why: Why so far, for people; None: the schedule says so.
        seconds: Spent on measuring for it.
    """

    step: Step
    rounds: int
    share: float | None
    last: bool
    why: str | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class End:
    """The loop is finished; `why` is empty where the target is reached."""

    why: str = ""


@dataclass(frozen=True)
class Case:
    """What a decision rests on.

    Attributes:
        recipe: What is wanted.
        sizes: The untouched model's parameters by depth and width.
        original: Its record.
        stages: All finished rounds, rejected attempts too, in order.
        sequences: Length of the recipe's data stream.
    """

    recipe: Recipe
    sizes: Sizes
    original: StageRecord
    stages: tuple[StageRecord, ...]
    sequences: int

    @property
    def accepted(self) -> tuple[StageRecord, ...]:
        """The finished rounds that the loop went on from."""
        return tuple(s for s in self.stages if s.accepted)

    @property
    def current(self) -> StageRecord:
        """The newest accepted stage, or the original."""
        return self.accepted[-1] if self.accepted else self.original

    @property
    def now(self) -> budget.Place:
        """Its depth and width."""
        return self.current.place

    @property
    def history(self) -> list[Done]:
        """The rounds as the schedule takes them."""
        return [Done(known(s.step, "step"), *s.place, s.accepted) for s in self.stages]

    @property
    def cursor(self) -> int:
        """Where the next round goes on in the data stream."""
        score = self.recipe.score
        taken = (known(s.samples, "samples")[1] for s in self.stages)
        return max(taken, default=score.samples + score.held_out)

    @property
    def rounds(self) -> int:
        """T: the rounds that the budget is shared out over."""
        return shared_rounds(self.recipe, self.sizes, self.stages)


@dataclass(frozen=True)
class Probing:
    """What a decision by damage may measure of the current model.

    Attributes:
        losses: Cuts it to each shape, as a round would, and takes the held-out loss.
        affordable: Rounds that get `LEAST_STEPS` optimiser steps each from the recipe's budget.
    """

    losses: Callable[[Sequence[budget.Place]], list[budget.Probe]]
    affordable: Callable[[], int]


Probed = Callable[[int, int], DecisionRecord]
"""(index, attempt) -> the round by damage, measured once."""


def planned_rounds(recipe: Recipe, sizes: Sizes) -> int:
    """Rounds of equal steps to the target; 0 with thresholds. OutOfReach if it cannot be reached."""
    prune = recipe.prune
    rounds = 1 if prune.rounds == "auto" else prune.rounds
    return len(plan_ahead(prune.model_copy(update={"rounds": rounds}), sizes))


def shared_rounds(recipe: Recipe, sizes: Sizes, stages: Sequence[StageRecord]) -> int:
    """T: the rounds that the budget is shared out over; kept from the run's first start."""
    if stages:
        return known(stages[0].rounds, "rounds")
    return max(1, recipe.prune.max_rounds or planned_rounds(recipe, sizes))


def decide(case: Case, probed: Probed) -> Decision | End:
    """The next round, or End: target reached, or no smaller step would be accepted."""
    rejected = case.stages[-1] if case.stages and not case.stages[-1].accepted else None
    if rejected is None:
        decision = _scheduled(case, 1, probed)
    else:
        decision = _again(case, rejected)
        if decision is None and not case.recipe.prune.by_threshold:
            decision = _scheduled(case, rejected.attempt + 1, probed)
        if decision is None:
            return End(f"{rejected.name} was rejected, and no smaller step is left: finished")
    if decision is None:
        return End()
    if _used_up(case):
        return End("after what was rejected, too few data are left for another round: finished")
    return decision


def _scheduled(case: Case, attempt: int, probed: Probed) -> Decision | None:
    """The schedule's next round, on the axes that are open; None if it has reached its end."""
    prune = schedule_of(case)
    if not case.recipe.probed:
        planned = next_step(prune, case.sizes, case.history)
        if planned is None:
            return None
        planned = dataclasses.replace(planned, attempt=attempt)
        return _capped(case, Decision(planned, case.rounds, None, _is_last(case, planned), why_closed(case) or None))
    if _arrived(case):
        return None
    index = len(case.accepted) + 1
    if index > (prune.max_rounds or index):
        return None
    found = probed(index, attempt)
    last = _is_last(case, found.step)
    return _capped(case, Decision(found.step, found.rounds, found.share, last, found.why, found.seconds))


def closed(case: Case) -> dict[Axis, str]:
    """The axes on which no more goes, with the rejected round that closed them."""
    prune = case.recipe.prune
    return budget.closed(case.history, align_of(prune, case.sizes), period_in(prune, case.sizes))


def why_closed(case: Case) -> str:
    """Why an axis is closed, in words; empty if none is."""
    return "; ".join(f"no more {axis} go, for {name} was rejected" for axis, name in closed(case).items())


def schedule_of(case: Case) -> PruneConfig:
    """The recipe's schedule, as far as its axes are open."""
    prune, protect = case.recipe.prune, case.recipe.protect
    align = align_of(prune, case.sizes)
    guarded = math.ceil(case.now[1] * protect.share) if protect else 0
    least = max(1, math.ceil(guarded / align)) * align
    return budget.remaining(prune, case.sizes, case.now, closed(case), least)


def _arrived(case: Case) -> bool:
    return next_step(schedule_of(case), case.sizes, case.history) is None


def _is_last(case: Case, step: Step) -> bool:
    if case.recipe.prune.by_threshold:
        return False
    return case.sizes.params(*_after(case, step)) <= budget.target_params(schedule_of(case), case.sizes)


def _after(case: Case, step: Step) -> budget.Place:
    depth, width = case.now
    return depth - (step.layers or 0), width - (step.neurons or 0)


# ------------------------------------------------------------------------------------------------------- by damage


def by_damage(case: Case, index: int, probing: Probing) -> DecisionRecord:
    """The round by predicted damage: its shape, its share of the tokens that are left, the rounds in all."""
    prune, sizes, now = schedule_of(case), case.sizes, case.now
    fixed = _fixed_rounds(case)
    if fixed is not None and index >= fixed:
        return _rest(case, index, budget.path(prune, sizes, now)[-1])
    loss, way = case.current.loss, budget.path(prune, sizes, now)
    probes = probing.losses([way[-1]])
    whole = probes[0].loss - loss
    rounds = max(_rounds(case, whole, probing), index)
    if rounds > index and whole > 0:  # the way there matters only if it is to be divided
        probes = probing.losses([way[i] for i in budget.places(way, sizes, now)[:-1]]) + probes
    curve = budget.damages(way, sizes, now, loss, probes)
    to_go = rounds - index + 1
    chosen = budget.equal_damage(curve, to_go, exact=isinstance(prune.rounds, int))
    step = budget.step_to(index, now, way[chosen])
    share = curve[chosen] / curve[-1] if curve[-1] > 0 else 1 / to_go
    share = 1.0 if chosen == len(way) - 1 else share
    why = (
        f"the whole cut would add {curve[-1]:.3f} nats; {step.name} adds {curve[chosen]:.3f} (predicted), "
        f"round {index} of {rounds}, {share:.0%} of the budget left"
    )
    shapes = tuple(Waypoint(depth=d, width=w, damage=c) for (d, w), c in zip(way, curve, strict=True))
    return DecisionRecord(
        index=index, rounds=rounds, step=step, share=share, why=why, loss=loss, probes=tuple(probes), path=shapes
    )


def _rest(case: Case, index: int, end: budget.Place) -> DecisionRecord:
    """The last round goes to the target whatever it costs: nothing needs to be measured."""
    step = budget.step_to(index, case.now, end)
    why = f"{step.name} is the last of {index} rounds: all that is left goes, with all of the budget left"
    return DecisionRecord(index=index, rounds=index, step=step, share=1.0, why=why, loss=case.current.loss, probes=())


def _fixed_rounds(case: Case) -> int | None:
    """The number of rounds that the recipe fixes, by `rounds` or by the size of a step; None: `auto`."""
    prune = case.recipe.prune
    if isinstance(prune.rounds, int):
        return prune.rounds
    if prune.rounds is None:
        return planned_rounds(case.recipe, case.sizes)
    return case.stages[0].rounds if case.accepted else None


def _rounds(case: Case, damage: float, probing: Probing) -> int:
    fixed = _fixed_rounds(case)
    if fixed is not None:
        return fixed
    most = case.recipe.prune.max_rounds or MOST_ROUNDS
    return budget.rounds_for(damage, case.recipe.damage_per_round, probing.affordable(), most)


# ------------------------------------------------------------------------------------------------ after a verdict


def _capped(case: Case, decision: Decision) -> Decision:
    """After a round that stood only when halved, the next is no larger; its share of the budget shrinks with it."""
    before, step, width = case.accepted[-1:], decision.step, case.now[1]
    if not before or step.neurons is None or step.layers is None:
        return decision
    most = _removed(before[0])
    undone = [_removed(s) for s in case.stages if s.index == before[0].index and not s.accepted]
    if not any(u.neurons >= most.neurons and len(u.layers) >= len(most.layers) for u in undone):
        return decision
    align = align_of(case.recipe.prune, case.sizes)
    neurons = min(step.neurons, max(most.neurons, width - (width - 1) // align * align)) if step.neurons else 0
    layers = min(step.layers, max(1, len(most.layers))) if step.layers else 0
    smaller = dataclasses.replace(step, neurons=neurons, layers=layers)
    whole = case.sizes.params(*case.now)
    gone, planned = (whole - case.sizes.params(*_after(case, s)) for s in (smaller, step))
    share = None if decision.share is None else decision.share * (gone / planned)
    return dataclasses.replace(decision, step=smaller, share=share, last=_is_last(case, smaller))


def _removed(stage: StageRecord) -> Removed:
    return known(stage.removed, "removed")


def _again(case: Case, rejected: StageRecord) -> Decision | None:
    """Half of the round that was rejected, from the state before it; None if there is no half."""
    prune = case.recipe.prune
    grain = align_of(prune, case.sizes), period_in(prune, case.sizes)
    step = budget.halved(known(rejected.step, "step"), case.now[1], *grain)
    if step is None:
        return None
    share = None if rejected.share is None else rejected.share / 2
    return Decision(step, known(rejected.rounds, "rounds"), share, last=False)


def _used_up(case: Case) -> bool:
    """Whether rejected rounds, for which nothing was planned, left less than a batch for each method."""
    left = case.sequences - case.cursor
    batches = sum(m.batch_size for m in case.recipe.recover if not m.data)
    return len(case.accepted) < len(case.stages) and left < batches


def prune_of(case: Case) -> PruneConfig:
    """The schedule of a control of the same size: the recipe's, or, where the loop chose the shape, that shape."""
    prune = case.recipe.prune
    if not case.recipe.probed and case.recipe.stop_at is None:
        return prune
    depth, width = case.now
    layers = prune.layers if isinstance(prune.layers, list) else "auto"
    target = FinalShape(width=width, depth=None if isinstance(layers, list) else depth)
    return prune.model_copy(update={"target": target, "order": "together", "layers": layers, "rounds": None})
