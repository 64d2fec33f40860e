"""What each recovery method gets in a round: whether it runs, which data, how much of its budget.

for i, method in active(recipe, last=decision.last): ...
samples, tokens = part(bench, i, rounds, share)          # of method i's budget
stream, start = place(bench, i, cursor)                  # its own data, or the recipe's from the run's cursor on
"""

from __future__ import annotations

from typing import Any

from prunetune.data.stream import Stream
from prunetune.loop.bench import Bench
from prunetune.recipe.schema import Recipe


def active(recipe: Recipe, *, last: bool) -> list[tuple[int, Any]]:
    """The methods of a round with their places in the recipe: all in the last one, else those of every round."""
    return [(i, m) for i, m in enumerate(recipe.recover) if last or m.when == "every"]


def used(bench: Bench, i: int, what: str) -> int:
    """Samples or tokens that method `i` has taken so far, in rejected rounds too."""
    total = 0
    for stage in bench.run.stages:
        whole = len(stage["tune"]) == len(bench.recipe.recover)
        ran = [j for j, _ in active(bench.recipe, last=whole)]
        if stage["tune"] and i in ran:
            total += stage["tune"][ran.index(i)][what]
    return total


def place(bench: Bench, i: int, cursor: int) -> tuple[Stream, int]:
    """The stream of method `i` and its first example of this round."""
    method = bench.recipe.recover[i]
    if method.data is None:
        return bench.stream, cursor
    return bench.stream_of(method.data), used(bench, i, "samples")


def part(bench: Bench, i: int, rounds: int, share: float | None) -> tuple[int | None, int | None]:
    """Samples and tokens of method `i` in this round: an equal share of the whole, or a share of what is left.

    Args:
        bench: The run.
        i: Place of the method in the recipe.
        rounds: Rounds in all; a method of the last round has its whole budget there.
        share: Share of what is left; None: equal shares of the whole.
    """
    method, recipe = bench.recipe.recover[i], bench.recipe
    if method.per == "round":
        return method.samples, method.tokens
    rounds = 1 if method.when == "last" else rounds
    whole = {"samples": method.samples, "tokens": method.tokens}
    if share is None:
        parts = {k: b and max(1, b // rounds) for k, b in whole.items()}
    else:
        parts = {k: b and max(1, round((b - used(bench, i, k)) * share)) for k, b in whole.items()}
    if parts["samples"] is None and parts["tokens"] is None:  # all that the data hold
        stream, start = place(bench, i, bench.run.cursor or bench.reserved)
        beside = 1 if method.data is not None else sum(m.data is None for m in recipe.recover)
        first = bench.reserved if method.data is None else 0
        left = len(stream) - (first if share is None else start)
        parts["samples"] = left // (rounds * beside) if share is None else round(left * share) // beside
    return parts["samples"], parts["tokens"]
