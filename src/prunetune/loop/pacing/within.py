"""A run within a time: what of it fits is planned from the measured pace, and each recovery from what time is left.

    context = within(context, run)                 # the recipe as it fits, told; the same when the run goes on
    parts = by_time_left(context, timed, parts, share, pruned)     # a round's recovery, as the clock has it

Recovery is what fills the time: its tokens are what is left over. What is cut down where even the least of them do not
fit, and how much is scored, says `smaller.py`; where even the bare cut does not fit, it is refused.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from prunetune.common.files import once, read_json, write_json
from prunetune.common.reading import read_model
from prunetune.common.units import count, duration
from prunetune.errors import OutOfReach
from prunetune.loop.context import Context
from prunetune.loop.pacing.clock import Clock
from prunetune.loop.pacing.minutes import Minutes, minutes, tokens_of
from prunetune.loop.pacing.pace import Pace, measured
from prunetune.loop.pacing.smaller import Tried, tries
from prunetune.loop.pacing.steps import tuning
from prunetune.loop.recovery.shares import Part
from prunetune.recipe.schema import Recipe
from prunetune.runs.folder import RunFolder, Timed
from prunetune.tune.methods import Local, TuneConfig

LEAST_STEPS = 10
"""Optimiser steps that each method gets at least."""
MOST_EPOCHS = 16
"""More passes over the same data hardly help (Muennighoff et al. 2023, https://arxiv.org/abs/2305.16264)."""
LATE = 1.15
"""Recovery is ended where it has taken so many times what it was given."""
LESS = 0.8
"""Of the planned tokens of a round: a share below this is told."""
PLAN = ".time.json"


class Fitted(BaseModel):
    """RUN/.time.json: the recipe as it fits, and what it rests on."""

    model_config = ConfigDict(frozen=True)

    recipe: Recipe
    asked: int | None
    each: tuple[float, ...]
    least: tuple[int, ...]
    after: float
    told: tuple[str, ...]
    rung: float = 0.0


def within(context: Context, run: RunFolder) -> Context:
    """The context with the recipe as it fits into its time. The first call measures, later ones read.

    Raises:
        OutOfReach: The time is too short for the least that a run does.
    """
    recipe, path = context.recipe, run.path / PLAN
    if recipe.within is None:
        return context
    spent = _spent(run)

    def make(tmp: Path) -> None:
        pace = measured(context)
        tmp.write_text(fitted(context, pace).model_dump_json(), encoding="utf-8")

    said = recipe.model_dump(mode="json", exclude={"evaluate": {"rivals"}} | _unsaid(recipe))
    once(path, {"recipe": said}, make)
    found = read_model(path, Fitted, "plan of the time", fix="start again in a new --out")
    for line in found.told:
        context.watch.line(line)
    rungs = len(recipe.prune.ladder or ()) or 1
    clock = Clock(recipe.within, spent, found.each, found.least, found.after, found.rung, rungs, context.began)
    tasks = tuple(t.first(found.asked) for t in context.tasks)
    return dataclasses.replace(context, recipe=found.recipe, tasks=tasks, clock=clock)


def planned_tokens(context: Context) -> int | None:
    """What recovery was to have in the whole run when its time was planned; None: it has none, or no such amount."""
    if context.clock is None:
        return None
    return sum((m.tokens or 0) * m.epochs for m in context.recipe.recover if not isinstance(m, Local)) or None


def _unsaid(recipe: Recipe) -> dict[str, set[str]]:
    """A ladder that is none: runs of before there were ladders go on."""
    return {} if recipe.prune.ladder else {"prune": {"ladder"}}


def _spent(run: RunFolder) -> float:
    """Seconds that earlier starts of this run have worked."""
    notes = sum(float(read_json(p)) for p in run.path.glob("[0-9]*-*/.*.seconds"))
    first = run.path / "original" / "stage.json"
    return notes + (sum(run.original.seconds.values()) if first.is_file() else 0.0)


def fitted(context: Context, pace: Pace) -> Fitted:
    """What of a recipe fits into its time. Pure but for the context's data."""
    seconds = float(context.recipe.within or 0)
    if pace.untimed:
        raise OutOfReach(
            "a run within a time needs work that can be timed",
            value=", ".join(pace.untimed),
            fix="leave it out, or leave out the budget of time",
        )
    seconds -= pace.spent
    for tried in tries(context, pace, seconds):
        recipe = tried.recipe
        scored = pace.scored(recipe.score.count / context.recipe.score.count)
        scored = scored if recipe.recover else dataclasses.replace(scored, tune=())
        less = dataclasses.replace(context, recipe=recipe, tasks=tuple(t.first(tried.asked) for t in context.tasks))
        found = minutes(less, scored)
        rest = found.total - found.parts.get("recovery", 0.0) + sum(t.beside for t in scored.tune if t)
        least = _least(less, scored)
        if rest + max(least, tried.keeps * seconds * bool(recipe.recover)) <= seconds:
            return _filled(less, scored, seconds - rest, tried, found)
    raise OutOfReach(
        "not even the least that a run does fits into this time, on this machine",
        value=duration(context.recipe.within),
        valid=f"at least {duration(math.ceil((rest + least + pace.spent) * 1.1))}",
        fix="more time, a smaller model, or another task",
    )


def _least(context: Context, pace: Pace) -> float:
    """Seconds of the least recovery."""
    pairs = zip(context.recipe.recover, pace.tune, strict=True)
    return sum(LEAST_STEPS * m.batch_size * t.tokens_a_sample * t.each for m, t in pairs if t is not None)


def _filled(context: Context, pace: Pace, seconds: float, tried: Tried, found: Minutes) -> Fitted:
    """The recipe with recovery that takes the seconds that are left, up to what the data are good for."""
    recipe, methods, told, cuts = context.recipe, list[TuneConfig](), list[str](), list(tried.cuts)
    timed, left = [t for t in pace.tune if t is not None], seconds
    for i, (method, t) in enumerate(zip(recipe.recover, timed, strict=True)):
        share = left / (len(timed) - i)
        if isinstance(method, Local):  # does what it does, or as much as fits: the rest is for the others
            amount = tokens_of(context, i, method, t.tokens_a_sample, found.rounds)
            fits = min(1.0, share / (amount * t.each)) if amount else 1.0
            whole = amount / found.rounds / (method.batch_size * t.tokens_a_sample)
            steps = method.steps if fits == 1.0 else max(LEAST_STEPS, int(fits * whole))
            methods.append(method.changed(steps=steps))
            told.append(f"local at most {steps} steps a block")
            left -= fits * amount * t.each
            continue
        left -= share
        bare = method.changed(samples=None, tokens=None, epochs=1, per="run")
        once_over = tokens_of(context, i, bare, t.tokens_a_sample, 1)
        wanted = share / t.each
        epochs = max(1, min(MOST_EPOCHS, math.ceil(wanted / once_over)))
        tokens = max(1, round(min(wanted / epochs, once_over)))
        methods.append(bare.changed(tokens=tokens, epochs=epochs))
        over = f" ({epochs} passes over {count(tokens)})" if epochs > 1 else ""
        told.append(f"{method.type} {count(tokens * epochs)} tokens{over}")
        if wanted > 1.1 * MOST_EPOCHS * once_over:
            cuts = [
                *cuts,
                f"the data hold {count(once_over)} tokens, of which {MOST_EPOCHS} passes are used: it ends earlier",
            ]
    problems = max((len(t.problems) for t in context.tasks), default=0)
    told += [f"{problems} problems a task"] if problems else []
    told += [_calibration(context)]
    rounds = (recipe.prune.max_rounds or 1) if found.more else found.rounds
    told += [f"{'at most ' if found.more else ''}{rounds} round{'s' if rounds > 1 else ''}"]
    lines = [f"within {duration(recipe.within)}, as measured here: {', '.join(told)}"]
    lines += [f"  cut down: {'; '.join(cuts)}"] if cuts else []
    after = sum(found.parts.get(k, 0.0) for k in ("latency", "writing", "rivals", "report")) + sum(
        t.beside for t in timed
    )
    after += sum(pace.ask[t.name].time(len(t.problems)) for t in context.tasks) + 4 * (pace.load + pace.loss)
    return Fitted(
        recipe=recipe.changed(recover=methods),
        asked=tried.asked,
        each=tuple(t.each for t in timed),
        least=tuple(
            round(LEAST_STEPS * m.batch_size * t.tokens_a_sample) for m, t in zip(recipe.recover, timed, strict=True)
        ),
        after=after,
        rung=found.parts.get("latency", 0.0) / (len(recipe.prune.ladder or ()) or 1),
        told=tuple(lines),
    )


def _calibration(context: Context) -> str:
    """How many sequences are scored, and what of them a kept neuron is fitted to."""
    n, found = context.recipe.score.count, context.calibration
    if found is None or context.recipe.compensate == "none":
        return f"{n} scored sequences"
    return f"{n} scored sequences ({n / found.samples * found.a_neuron:.0f} tokens a kept neuron)"


def by_time_left(
    context: Context, timed: Timed, parts: Sequence[Part], share: float | None, pruned: Path, rungs: int = 1
) -> list[Part]:
    """A round's recovery by the time that is left; decided once, and kept in the round's folder.

    A few steps of each method are timed again, now and on the model that is trained: its learning rate falls over the
    tokens that it is given, so that they must be those that it can reach.

    Args:
        context: The run.
        timed: The round's folder.
        parts: What each method may take.
        share: Of the time that is left, this round's; None: all.
        pruned: Folder of the cut model.
        rungs: Of the ladder, that are not reached yet.
    """
    clock = context.clock
    if clock is None or not parts:
        return list(parts)

    def make(tmp: Path) -> None:
        each = [_each(context, clock, part, pruned) for part in parts]
        whole, found = clock.left(rungs) * (1.0 if share is None else share), []
        fixed = {p.place: min(_own_seconds(clock, p), whole / len(parts)) for p in parts if isinstance(p.method, Local)}
        seconds = (whole - sum(fixed.values())) / max(1, len(parts) - len(fixed))
        for part, pace in zip(parts, each, strict=True):
            if part.place in fixed:
                found.append([part.tokens, LATE * max(1.0, fixed[part.place])])
                continue
            fits = seconds / pace
            epochs = _passes(part, fits)
            most = round(fits / epochs)
            tokens = max(1, clock.least[part.place] // epochs, min(most, 2 * (part.tokens or most)))
            found.append([tokens, LATE * max(seconds, clock.least[part.place] * pace), epochs])
            _tell_less(context, part, tokens * epochs, seconds)
        write_json(tmp, found)

    decided = read_json(once(timed.at / PLAN, {"parts": [p.tokens for p in parts]}, make))
    return [
        dataclasses.replace(
            p,
            tokens=p.tokens if tokens is None else int(tokens),
            seconds=float(seconds),
            method=p.method.changed(epochs=int(epochs[0])) if epochs else p.method,
        )
        for p, (tokens, seconds, *epochs) in zip(parts, decided, strict=True)
    ]


def _passes(part: Part, fits: float) -> int:
    """Over a round's data: no more than it takes for the tokens that fit, and no more than were planned."""
    return max(1, min(part.method.epochs, math.ceil(fits / part.tokens))) if part.tokens else part.method.epochs


def _tell_less(context: Context, part: Part, tokens: int, seconds: float) -> None:
    """Say so where a method gets clearly less than was planned, and why."""
    planned = (part.tokens or 0) * part.method.epochs
    if tokens < LESS * planned:
        left = f"{duration(seconds)} are left for it" if seconds else "no time is left for it"
        context.watch.line(
            f"  recovery ({part.method.type}): {count(tokens)} tokens, {count(planned)} were planned: {left}"
        )


def _own_seconds(clock: Clock, part: Part) -> float:
    """Seconds of a method that has an amount of its own."""
    a_sample = clock.least[part.place] / (LEAST_STEPS * part.method.batch_size)
    tokens = part.tokens or (part.samples or 0) * a_sample or float("inf")
    return clock.each[part.place] * part.method.trained(tokens, a_sample)


def _each(context: Context, clock: Clock, part: Part, pruned: Path) -> float:
    """Seconds a token of a method, as it is now; of one with an amount of its own as it was."""
    if isinstance(part.method, Local):
        return clock.each[part.place]
    with context.watch.bar("time this machine"), tempfile.TemporaryDirectory(prefix="prunetune-pace-") as at:
        found = tuning(context, part.place, part.method, pruned, Path(at) / "tune", ())
    return found.each if found else clock.each[part.place]
