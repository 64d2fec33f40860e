"""Deciding between rounds: how far the next one goes, with which share of the budget, and what follows a rejected one.

    decision = decide(case, probed)          # Decision, or End with the reason; pure but for `probed`

With `budget: equal`, a fixed order and no conditions this is the paper's schedule (`schedule.next_step`), and nothing
is measured. Otherwise `probed` measures the current model (probe.py) and `by_damage` is the arithmetic on it. After a
rejected round half of it is tried; where there is no half, its axis is closed for good and the other one goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prunetune.recipe.schema import Recipe
from prunetune.runs.records import DecisionRecord, StageRecord, Waypoint, known
from prunetune.schedule import damage as budget
from prunetune.schedule.steps import Done, Step, next_step, plan_ahead
from prunetune.schedule.target import FinalShape, PruneConfig, Sizes

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

    losses: Callable[[Sequence[budget.Place]], list[budget.Probe]]
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
    if not case.recipe.probed:
        return Decision(step, case.rounds, None, _is_last(case, step))
    found = probed(index, 1)
    step = known(found.step, "step")
    return Decision(step, found.rounds, found.share, _is_last(case, step), found.why, found.seconds)


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
    return case.sizes.params(*_after(case, step)) <= budget.target_params(case.recipe.prune, case.sizes)


def _after(case: Case, step: Step) -> budget.Place:
    depth, width = case.now
    return depth - (step.layers or 0), width - (step.neurons or 0)


# ------------------------------------------------------------------------------------------------------- by damage


def by_damage(case: Case, index: int, probing: Probing) -> DecisionRecord:
    """The round by predicted damage: its shape, its share of the tokens that are left, the rounds in all."""
    prune, sizes, now = case.recipe.prune, case.sizes, case.now
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


def _used_up(case: Case) -> bool:
    """Whether tries that failed, for which nothing was planned, left less than a batch for each method."""
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
