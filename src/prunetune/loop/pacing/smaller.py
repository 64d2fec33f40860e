"""What a run within a time may be cut down to, in the order in which it is. Pure.

    for tried in tries(context, pace, seconds): ...      # from the recipe as it is to the bare cut

Calibration goes before recovery: until a kept neuron has `SOME` tokens to be fitted to, recovery gets no more than its
least. From there on both grow: further sequences are scored as long as recovery keeps a `QUARTER` of the time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from prunetune.loop.context import Context
from prunetune.loop.pacing.minutes import minutes
from prunetune.loop.pacing.pace import Pace
from prunetune.models.calibration import SOME
from prunetune.recipe.schema import Recipe
from prunetune.tune.methods import Local, TuneConfig

LEAST_ASKED, LEAST_SCORED = 50, 32
BATCHES = (16, 8)
FINER = 1.3
"""Scored sequences, and problems of a bare cut, fall by this factor: more of the time is used than by halves."""
OVERHEAD = 0.25
"""Share of the time that rounds beyond the first may cost beside their recovery."""
QUARTER = 0.25
"""Share of the time that recovery keeps where more sequences are scored than give `SOME` tokens a kept neuron."""


@dataclass(frozen=True)
class Tried:
    """A recipe that may fit.

    Attributes:
        recipe: With what it was cut down to.
        asked: Problems of each task; None: all.
        cuts: What was cut, in words.
        keeps: Share of the time that recovery is to have at least.
    """

    recipe: Recipe
    asked: int | None = None
    cuts: tuple[str, ...] = ()
    keeps: float = 0.0


def tries(context: Context, pace: Pace, seconds: float) -> Iterator[Tried]:
    """The recipe and what it may be cut down to, in order."""
    recipe = _in_rounds(context, pace, seconds)
    enough, scarce = _counts(context)
    for n in enough[:-1]:
        yield Tried(scored := _scoring(recipe, n), None, _fewer(scored, recipe), QUARTER)
    whole, recipe = recipe, _scoring(recipe, enough[-1])
    less, most = _fewer(recipe, whole), max((len(t.problems) for t in context.tasks), default=0)
    yield Tried(recipe, None, less)
    asked, cuts = most, tuple[str, ...]()
    while asked > LEAST_ASKED:
        asked = max(LEAST_ASKED, asked // 2)
        cuts = (f"{asked} problems a task, not {most}",)
        yield Tried(recipe, asked, (*cuts, *less))
    few = len(cuts)
    if recipe.evaluate.latency_repeats:
        recipe = recipe.changed(evaluate=recipe.evaluate.model_copy(update={"latency_repeats": 0}))
        cuts = (*cuts, "no latency")
        yield Tried(recipe, asked or None, (*cuts, *less))
    if recipe.probed:
        recipe = recipe.changed(prune=recipe.prune.model_copy(update={"rounds": 1}))
        cuts = (*cuts, "no probes: one round")
        yield Tried(recipe, asked or None, (*cuts, *less))
    unbatched, small = recipe, tuple[str, ...]()
    for batch in BATCHES:
        smaller = unbatched.changed(recover=[_in_batches(m, batch) for m in unbatched.recover])
        if smaller not in (recipe, unbatched):
            recipe, small = smaller, (f"batches of {batch}",)
            yield Tried(recipe, asked or None, (*cuts, *less, *small))
    for n in scarce:
        yield Tried(scored := _scoring(recipe, n), asked or None, (*cuts, *_fewer(scored, whole), *small))
    if recipe.recover:
        recipes = [_scoring(unbatched.changed(recover=[]), n) for n in (*enough, *scarce)]
        yield from _bare(recipes, whole, (asked, most), cuts[few:])


def _in_rounds(context: Context, pace: Pace, seconds: float) -> Recipe:
    """The recipe with no more rounds than the time is good for."""
    recipe = context.recipe
    more = minutes(context, pace).more
    if not more:
        return recipe
    rungs = len(recipe.prune.ladder or ())  # each ends a round
    most = min(max(1 + int(OVERHEAD * seconds / more), rungs), recipe.prune.max_rounds or max(6, rungs))
    return recipe.changed(prune=recipe.prune.model_copy(update={"max_rounds": most}))


def _counts(context: Context) -> tuple[list[int], list[int]]:
    """Scored sequences, falling: those that are enough, down to `SOME` tokens a kept neuron; and those below."""
    most, found = context.recipe.score.count, context.calibration
    some = LEAST_SCORED
    if found is not None and context.recipe.compensate != "none":  # else there is nothing to fit
        some = max(some, found.samples_for(SOME))
    some = min(some, most)
    enough, scarce = [most], [some]
    while enough[-1] > some:
        enough.append(max(some, int(enough[-1] / FINER)))
    while scarce[-1] > LEAST_SCORED:
        scarce.append(max(LEAST_SCORED, int(scarce[-1] / FINER)))
    return enough, scarce[1:]


def _scoring(recipe: Recipe, n: int) -> Recipe:
    """The recipe with so many scored sequences."""
    if n == recipe.score.count:
        return recipe
    return recipe.changed(score=recipe.score.model_copy(update={"samples": n}))


def _fewer(tried: Recipe, recipe: Recipe) -> tuple[str, ...]:
    """How many sequences are scored, if fewer than the recipe's."""
    fewer = tried.score.count < recipe.score.count
    return (f"{tried.score.count} scored sequences, not {recipe.score.count}",) if fewer else ()


def _bare(recipes: list[Recipe], whole: Recipe, asked: tuple[int, int], cuts: tuple[str, ...]) -> Iterator[Tried]:
    """Without recovery: as many scored sequences as fit, and then problems between the least and the most."""
    least, most = asked
    cuts = (*cuts, "no recovery: the cut alone, compensated")
    for tried in recipes:
        n = most
        while True:
            fewer = (f"{n} problems a task, not {most}",) if n < most else ()
            yield Tried(tried, n or None, (*fewer, *cuts, *_fewer(tried, whole)))
            if n <= least:
                break
            n = max(least, int(n / FINER))


def _in_batches(method: TuneConfig, batch: int) -> TuneConfig:
    """A method with a smaller batch; `local` and those of a smaller one as they are."""
    if isinstance(method, Local) or method.batch_size <= batch:
        return method
    micro = method.micro_batch_size
    return method.changed(batch_size=batch, micro_batch_size=micro if micro and batch % micro == 0 else None)
