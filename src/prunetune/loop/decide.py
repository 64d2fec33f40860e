"""Deciding between rounds: how far the next one goes, with which share of the budget, and what follows a rejected one.

    decision = decide(case, probed)          # Decision, or End with the reason; pure but for `probed`

With `budget: equal`, a fixed order and no conditions this is the paper's schedule (`schedule.next_step`), and nothing
is measured. Otherwise `probed` measures the current model (probe.py) and `by_damage` is the arithmetic on it. After a
rejected round half of it is tried; where there is no half, its axis is closed for good and the other one goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from prunetune.recipe.schema import Recipe
from prunetune.runs.records import DecisionRecord, StageRecord, Waypoint, known
from prunetune.schedule import damage as budget
from prunetune.schedule.sizes import Sizes
from prunetune.schedule.steps import Done, Step, next_step, plan_ahead
from prunetune.schedule.target import FinalShape, PruneConfig, final_shape
from prunetune.schedule.way import Place, path, rungs_left, stops

LEAST_STEPS = 20
"""`rounds: auto`: optimiser steps that a round must get at least."""
TRIES = 6
"""`stop_at`: each try gets this part of the recovery budget; failed ones beyond that get theirs on top."""
MOST_ROUNDS = 6
"""`rounds: auto`: no more than this, unless `max_rounds` says so."""


@dataclass(frozen=True)
class Decision:
    """What the next round does.

    Attributes:
        step: What goes.
        rounds: Rounds in all, as things stand.
        share: Share of the recovery budget that is left; None: an equal share of the whole.
        last: Whether it reaches the target, or a rung of the ladder: all methods run.
        why: Why so far, for people; None: the schedule says so.
        seconds: Spent on measuring for it.
    """

    step: Step
    rounds: int
    share: float | None
    last: bool
    why: str | None = None
    seconds: float = 0.0
    rungs: int = 1
    """Rungs that were not reached before it; without a ladder the target alone."""


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
        start: The record of what the first round starts from, where that is not the original.
    """

    recipe: Recipe
    sizes: Sizes
    original: StageRecord
    stages: tuple[StageRecord, ...]
    sequences: int
    start: StageRecord | None = None

    @property
    def accepted(self) -> tuple[StageRecord, ...]:
        """The finished rounds that the loop went on from."""
        return tuple(s for s in self.stages if s.accepted)

    @property
    def current(self) -> StageRecord:
        """The newest accepted stage, or what the first round starts from."""
        return self.accepted[-1] if self.accepted else self.start or self.original

    @property
    def final(self) -> StageRecord:
        """What the run ends with if no round follows; a search of which nothing stood ends with the original."""
        return self.original if self.recipe.stop and not self.accepted else self.current

    @property
    def now(self) -> Place:
        """Its depth and width."""
        return self.current.place

    @property
    def target(self) -> Place:
        """The depth and width of the target."""
        return final_shape(self.recipe.prune, self.sizes)

    @property
    def history(self) -> list[Done]:
        """The rounds as the schedule takes them."""
        return [Done(known(s.step, "step"), *s.place, s.accepted) for s in self.stages]

    @property
    def cursor(self) -> int:
        """Where the next round goes on in the data stream."""
        taken = (known(s.samples, "samples")[1] for s in self.stages)
        return max(taken, default=self.recipe.reserved)

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

    losses: Callable[[Sequence[Place]], list[budget.Probe]]
    affordable: Callable[[], int]


Probed = Callable[[int, int], DecisionRecord]
"""(index, attempt) -> the round by damage, measured once."""


def planned_rounds(recipe: Recipe, sizes: Sizes) -> int:
    """Rounds of equal steps to the target; 0 with thresholds. OutOfReach if it cannot be reached."""
    prune = recipe.prune
    rounds = 1 if prune.rounds == "auto" else prune.rounds
    if prune.open:
        return rounds or 1
    return len(plan_ahead(prune.model_copy(update={"rounds": rounds}), sizes))


def shared_rounds(recipe: Recipe, sizes: Sizes, stages: Sequence[StageRecord]) -> int:
    """T: the rounds that the budget is shared out over; kept from the run's first start."""
    if stages:
        return known(stages[0].rounds, "rounds")
    if recipe.searches:
        return recipe.prune.max_rounds or TRIES
    return max(1, recipe.prune.max_rounds or planned_rounds(recipe, sizes))


def decide(case: Case, probed: Probed) -> Decision | End:
    """The next round, or End: target reached, or nothing smaller keeps what `stop_at` asks for."""
    if case.recipe.searches:
        return _sought(case, probed)
    if case.stages and not case.stages[-1].accepted:
        return End(f"{case.stages[-1].name} was rejected: finished")
    prune, index = case.recipe.prune, len(case.accepted) + 1
    step = next_step(prune, case.sizes, case.history)
    if step is None or index > (prune.max_rounds or index):
        return End()
    left = rungs_left(prune, case.sizes, case.now) if prune.ladder else 1
    if not case.recipe.probed:
        return Decision(step, case.rounds, None, _is_last(case, step), rungs=left)
    found = probed(index, 1)
    step = known(found.step, "step")
    return Decision(step, found.rounds, found.share, _is_last(case, step), found.why, found.seconds, left)


def _sought(case: Case, probed: Probed) -> Decision | End:
    """The next try of a search; the tries of one index start from the same model."""
    prune, index = case.recipe.prune, len(case.accepted) + 1
    if index > (prune.max_rounds or index):
        return End(f"max_rounds: {prune.max_rounds} rounds stand: finished")
    found = probed(index, 1 + sum(not s.accepted and s.index == index for s in case.stages))
    if found.step is None:
        return End(f"the search is over: {found.why}")
    if _used_up(case):
        return End("the search is over: too few data are left for another try")
    return Decision(found.step, found.rounds, found.share, False, found.why, found.seconds)


def _is_last(case: Case, step: Step) -> bool:
    if case.recipe.prune.by_threshold:
        return False
    prune, sizes = case.recipe.prune, case.sizes
    if prune.ladder:
        return rungs_left(prune, sizes, _after(case, step)) < rungs_left(prune, sizes, case.now)
    return case.sizes.params(*_after(case, step)) <= budget.target_params(case.recipe.prune, case.sizes)


def _after(case: Case, step: Step) -> Place:
    depth, width = case.now
    return depth - (step.layers or 0), width - (step.neurons or 0)


# ------------------------------------------------------------------------------------------------------- by damage


def by_damage(case: Case, index: int, probing: Probing) -> DecisionRecord:
    """The round by predicted damage: its shape, its share of the tokens that are left, the rounds in all.

    On a ladder a round ends at the next rung at the latest. Each rung gets an equal share of the tokens, for each is a
    model that somebody may take; damage shares them out between a rung's own rounds.
    """
    prune, sizes, now = case.recipe.prune, case.sizes, case.now
    fixed = _fixed_rounds(case)
    way = path(prune, sizes, now)
    ends = stops(prune, sizes, now, way)
    least = index + len(ends) - 1  # a round for each rung that is left
    if fixed is not None and least >= fixed:
        return _rest(case, index, way[ends[0]], len(ends))
    loss = case.current.loss
    probes = probing.losses([way[-1]])
    whole = probes[0].loss - loss
    rounds = max(_rounds(case, whole, probing), least)
    if rounds > least and whole > 0:  # the way there matters only if it is to be divided
        probes = probing.losses([way[i] for i in budget.places(way, sizes, now)[:-1]]) + probes
    curve = budget.damages(way, sizes, now, loss, probes)
    to_go, end = rounds - index + 1, ends[0]
    chosen = budget.equal_damage(curve, to_go, exact=isinstance(prune.rounds, int))
    chosen = end if rounds == least else min(chosen, end)
    step = _step(case, index, way[chosen])
    share = curve[chosen] / curve[end] if curve[end] > 0 else 1 / (to_go - len(ends) + 1)
    share = (1.0 if chosen == end else share) * _rungs_part(case, len(ends))
    why = (
        f"the whole cut would add {curve[-1]:.3f} nats to the held-out loss; {step.name} adds {curve[chosen]:.3f} "
        f"(predicted), round {index} of {rounds}, {share:.0%} of the budget left"
        f"{_to_rung(prune, len(ends), chosen == end)}"
    )
    shapes = tuple(Waypoint(depth=d, width=w, damage=c) for (d, w), c in zip(way, curve, strict=True))
    return DecisionRecord(
        index=index, rounds=rounds, step=step, share=share, why=why, loss=loss, probes=tuple(probes), path=shapes
    )


def _rungs_part(case: Case, left: int) -> float:
    """Share of the tokens left that is the current rung's: an equal part of what there was at its start, less what its
    rounds before this one took; `left` rungs share them. Without a ladder all.
    """
    prune, sizes, kept = case.recipe.prune, case.sizes, 1.0
    for before, stage in pairwise([case.original, *case.accepted]):
        if all(rungs_left(prune, sizes, s.place) == left for s in (before, stage)):
            kept *= 1 - (stage.share or 0.0)
    return 1.0 if left == 1 else max(0.0, (1 / left - 1 + kept) / kept)


def _to_rung(prune: PruneConfig, left: int, ends: bool) -> str:
    """Which rung a round ends at, or is on its way to."""
    if not prune.ladder:
        return ""
    return f", {'to' if ends else 'on the way to'} the rung {prune.ladder[-left]:g}"


def _rest(case: Case, index: int, end: Place, rungs: int) -> DecisionRecord:
    """A round that goes to the next rung, or to the target, whatever it costs: nothing needs to be measured."""
    step = _step(case, index, end)
    last = index + rungs - 1
    why = f"{step.name} is the last of {index} rounds: all that is left goes, with all of the budget left"
    if rungs > 1:
        why = f"{step.name}, round {index} of {last}: each ends a rung, with an equal share of the budget left"
    return DecisionRecord(
        index=index, rounds=last, step=step, share=_rungs_part(case, rungs), why=why, loss=case.current.loss, probes=()
    )


def _step(case: Case, index: int, to: Place) -> Step:
    """The round to a shape; the first one takes what `prune.cut` names, too."""
    step = budget.step_to(index, case.now, to)
    return replace(step, more=case.recipe.prune.cut) if index == 1 else step


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


def _used_up(case: Case) -> bool:
    """Whether tries that failed, for which nothing was planned, left less than a batch for each method."""
    left = case.sequences - case.cursor
    batches = sum(m.batch_size for m in case.recipe.recover if not m.data)
    return len(case.accepted) < len(case.stages) and left < batches


def prune_of(case: Case) -> PruneConfig:
    """The schedule of a control of the same size: the recipe's, or, where the loop chose the shape, that shape."""
    prune = case.recipe.prune
    if not case.recipe.probed and case.recipe.stop is None:
        return prune.model_copy(update={"ladder": None})
    depth, width = case.now
    layers = prune.layers if isinstance(prune.layers, list) else "auto"
    target = FinalShape(width=width, depth=None if isinstance(layers, list) else depth)
    return prune.model_copy(
        update={"target": target, "order": "together", "layers": layers, "rounds": None, "ladder": None}
    )
