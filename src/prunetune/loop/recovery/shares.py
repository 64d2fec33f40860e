"""What each recovery method gets in a round: whether it runs, which data, how much of its budget.

parts = parts_of(context, stages, rounds=4, share=None, last=False)     # of the round after `stages`
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prunetune.common.units import count
from prunetune.data.stream import Stream
from prunetune.errors import OutOfReach
from prunetune.loop.context import Context
from prunetune.loop.decide import LEAST_STEPS, MOST_ROUNDS
from prunetune.loop.inputs import LOOKED_AT
from prunetune.models.prompt import encode
from prunetune.recipe.schema import Recipe
from prunetune.runs.records import StageRecord, known
from prunetune.tune.methods import TuneConfig


@dataclass(frozen=True)
class Part:
    """What one method may take in one round.

    Attributes:
        place: Of the method in the recipe.
        method: With its settings.
        samples: Examples; None: as many as it takes for `tokens`.
        tokens: Tokens; None: all of the examples.
        seconds: Of training, at most; None: as long as it takes.
    """

    place: int
    method: TuneConfig
    samples: int | None
    tokens: int | None
    seconds: float | None = None


def active(recipe: Recipe, *, last: bool) -> list[tuple[int, TuneConfig]]:
    """The methods of a round with their places in the recipe: all in the last one, else those of every round."""
    return [(i, m) for i, m in enumerate(recipe.recover) if last or m.when == "every"]


def used(recipe: Recipe, stages: Sequence[StageRecord], i: int) -> tuple[int, int]:
    """Samples and tokens of data that method `i` has taken so far, each once, in rejected rounds too."""
    samples = tokens = 0
    for stage in stages:
        ran = [j for j, _ in active(recipe, last=len(stage.tune) == len(recipe.recover))]
        if stage.tune and i in ran:
            taken = stage.tune[ran.index(i)]
            samples += known(taken.samples, "samples")
            tokens += taken.data_tokens or known(taken.tokens, "tokens") // recipe.recover[i].epochs
    return samples, tokens


def source_of(context: Context, stages: Sequence[StageRecord], i: int, cursor: int) -> tuple[Stream, int]:
    """The stream of method `i` and its first example of this round: its own, or the recipe's from the cursor on."""
    if i not in context.own:
        return context.stream, cursor
    return context.own[i], 0 if i in context.fresh else used(context.recipe, stages, i)[0]


def parts_of(
    context: Context,
    stages: Sequence[StageRecord],
    cursor: int,
    *,
    rounds: int,
    share: float | None,
    last: bool,
    rungs: int = 1,
) -> list[Part]:
    """What the methods of a round get: an equal share of the whole budget, or a share of what is left of it.

    Args:
        context: The run.
        stages: The finished rounds.
        cursor: First example of the recipe's stream that this round may take.
        rounds: Rounds in all; a method of the last round has its whole budget there.
        share: Share of what is left; None: equal shares of the whole.
        last: Whether this is the last round, or the last one before a rung of a ladder.
        rungs: Rungs that are left: a method of the last round has an equal share of its budget at each.
    """
    found = []
    for i, method in active(context.recipe, last=last):
        late = method.when == "last" and context.recipe.prune.ladder is not None
        samples, tokens = _budget(context, stages, i, cursor, rounds, 1 / rungs if late else share)
        found.append(Part(i, method, samples, tokens))
    return found


def _budget(
    context: Context, stages: Sequence[StageRecord], i: int, cursor: int, rounds: int, share: float | None
) -> tuple[int | None, int | None]:
    method = context.recipe.recover[i]
    if method.per == "round":
        return method.samples, method.tokens
    rounds = 1 if method.when == "last" else rounds
    if is_scarce(context, i):  # every round must find some
        return _fair(context, stages, i, cursor, rounds, share), None
    spent = used(context.recipe, stages, i)
    whole = (method.samples, method.tokens)
    if share is None:
        samples, tokens = (b and max(1, b // rounds) for b in whole)
    else:
        samples, tokens = (b and max(1, round((b - s) * share)) for b, s in zip(whole, spent, strict=True))
    if samples is None and context.clock is not None:  # the clock may give more tokens than were planned
        samples = _fair(context, stages, i, cursor, rounds, share)
    return samples, tokens


def _fair(
    context: Context, stages: Sequence[StageRecord], i: int, cursor: int, rounds: int, share: float | None
) -> int:
    """Examples of a round that leave those after it theirs: an equal part of all, or a share of what is left."""
    stream, start = source_of(context, stages, i, cursor)
    if i in context.fresh:
        return len(stream)
    if share is None:
        return max(1, available(context, i) // rounds)
    return max(1, round((len(stream) - start) * share) // _beside(context, i))


def _beside(context: Context, i: int) -> int:
    """Methods that take their examples from the same stream."""
    return 1 if i in context.own else sum(m.data is None for m in context.recipe.recover)


def available(context: Context, i: int) -> int:
    """Examples that the data hold for a method in the whole run."""
    if i in context.own:
        return len(context.own[i])
    return (len(context.stream) - context.reserved) // _beside(context, i)


def is_scarce(context: Context, i: int) -> bool:
    """Whether the data hold less than a method's budget: then all of them are its budget."""
    method = context.recipe.recover[i]
    asked = wanted_samples(context, i)
    return asked is None or (method.per == "run" and i not in context.fresh and asked > available(context, i))


def wanted_samples(context: Context, i: int) -> float | None:
    """Examples that a method's budget of the run comes to, about; None: all that the data hold."""
    method = context.recipe.recover[i]
    found = [float(method.samples)] if method.samples else []
    found += [method.tokens / _mean(context, i)] if method.tokens else []
    return min(found, default=None)


def _mean(context: Context, i: int) -> float:
    """Tokens of an example of a method's data, about."""
    stream, limit = context.own.get(i, context.stream), context.recipe.recover[i].max_length
    rows = stream.take(0, min(len(stream), LOOKED_AT))
    return sum(len(encode(context.tokenizer, e, context.recipe.prompt, limit).input_ids) for e in rows) / len(rows)


def held_tokens(context: Context) -> dict[int, int]:
    """Of each method whose budget is more than the data hold, by its place: the tokens that they hold, about."""
    methods = enumerate(context.recipe.recover)
    scarce = [i for i, m in methods if (m.samples or m.tokens) and is_scarce(context, i)]
    return {i: round(available(context, i) * _mean(context, i)) for i in scarce}


def scarce_notes(context: Context) -> list[str]:
    """Of each method whose budget is more than the data hold: how much that is."""
    notes = []
    for i, method in enumerate(context.recipe.recover):
        if context.recipe.within is None and (method.samples or method.tokens) and is_scarce(context, i):
            n = available(context, i)
            asked = f"{count(method.tokens)} tokens" if method.tokens else f"{method.samples:,} samples"
            held = f"{n:,} sequences, about {count(n * _mean(context, i))} tokens"
            notes.append(f"{method.type}: the data hold {held}, of the {asked} asked for: all of them are taken, once")
    return notes


def examples_of(stream: Stream, start: int, samples: int | None) -> tuple[int, int]:
    """The part [start, end) of a stream; OutOfReach if there is none."""
    end = len(stream) if samples is None else min(len(stream), start + samples)
    if start >= end:
        raise OutOfReach(
            "no recovery data are left for this round",
            value=f"{len(stream)} sequences, all used",
            fix="more data or a smaller budget a round, in a new --out",
        )
    return start, end


def affordable(context: Context) -> int:
    """Rounds that get `LEAST_STEPS` optimiser steps each from the recipe's budget (of the methods' scarcest)."""
    recipe = context.recipe
    rounds = [MOST_ROUNDS * 10]
    for i, method in enumerate(recipe.recover):
        if method.per == "round" or method.when == "last":
            continue
        asked, held = wanted_samples(context, i), available(context, i)
        sequences = held if asked is None else min(asked, held)
        rounds.append(int(sequences * method.epochs / method.batch_size / LEAST_STEPS))
    return max(1, min(rounds))
