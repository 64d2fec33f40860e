"""What a run takes on this machine: its amounts, times the seconds that `pace.py` has measured. Pure.

found = minutes(context, pace)      # Minutes; found.parts["recovery"], found.total, found.text()
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from prunetune.common.units import duration
from prunetune.data.stream import load_stream
from prunetune.loop.context import Context
from prunetune.loop.pacing.beside import latency_range
from prunetune.loop.pacing.pace import Pace
from prunetune.recipe.schema import Recipe
from prunetune.recipe.traces import traces_of
from prunetune.tune.methods import TuneConfig

NOTABLE = 0.1
"""Of the whole: a range is told where it is wider."""
TRIES, SIZED = 4, 6
"""Tries of a search, as is usual; each takes this part of the recovery budget."""


@dataclass(frozen=True)
class Minutes:
    """Seconds by kind of work, and what they rest on.

    Attributes:
        parts: Kind -> seconds.
        rounds: That were counted.
        more: Seconds that each further round would add.
        untimed: What is not in it.
        longer: Seconds more that it takes where timings are noisy: latency is timed until its interval is narrow.
    """

    parts: Mapping[str, float]
    rounds: int
    more: float
    untimed: tuple[str, ...] = ()
    longer: float = 0.0

    @property
    def total(self) -> float:
        """Seconds in all."""
        return sum(self.parts.values())

    def text(self) -> str:
        """In words."""
        large = sorted(self.parts.items(), key=lambda part: -part[1])
        told = ", ".join(f"{name} {duration(s)}" for name, s in large if s >= 0.01 * self.total)
        most = f" to {duration(self.total + self.longer)}" if self.longer > NOTABLE * self.total else ""
        lines = [f"on this machine: about {duration(self.total)}{most} ({told})"]
        if most:
            lines.append("the longer one on a busy machine: latency is timed until its interval is narrow")
        if self.more:
            each = f"each further one adds {duration(self.more)}"
            lines.append(f"counted: {self.rounds} round{'s' if self.rounds > 1 else ''}; {each}")
        if self.untimed:
            lines.append(f"not counted: {', '.join(self.untimed)}")
        return "\n".join(lines)


def minutes(context: Context, pace: Pace) -> Minutes:
    """The seconds of a run of the recipe.

    Where measurements decide on the rounds, one is counted, and of a search four tries.
    """
    recipe = context.recipe
    rounds = rounds_of(context)
    probes = _probes(recipe, rounds)
    everything = sum(pace.ask[t.name].time(len(t.problems)) for t in context.tasks if t.name in pace.ask)
    n = recipe.evaluate.round_n
    some = sum(pace.ask[t.name].time(min(n or 10**9, len(t.problems))) for t in context.tasks if t.name in pace.ask)
    rungs = len(recipe.prune.ladder or ()) or 1
    again = rungs * everything if n is not None and any(n < len(t.problems) for t in context.tasks) else 0.0
    losses = 2 * (pace.load + pace.loss)  # straight after the cut, after recovery
    losses += 2 * (pace.load + pace.loss) if recipe.do_no_harm and recipe.recover else 0.0
    tuned = training(context, pace, rounds)
    beside = sum(t.beside for t in pace.tune if t is not None)
    judged = _judged(recipe, pace)
    patches = max(probes, 1) if recipe.compensate != "none" else 0
    scoring = pace.score + pace.load
    probing = patches * pace.compensate + probes * pace.loss + pace.load
    a_round = scoring + probing + pace.write + losses + some + judged + beside
    repeats = recipe.evaluate.latency_repeats
    least, most = latency_range(repeats, pace.latency) if repeats else (0.0, 0.0)
    latency = least + 2 * pace.load if repeats else 0.0
    parts = {
        "start": pace.start,
        "traces": _sampling(context, pace, rounds),
        "evaluation": everything + again + rounds * (some + losses + judged) + pace.load + pace.loss,
        "scoring": rounds * scoring,
        "probes and compensation": rounds * probing,
        "recovery": tuned + rounds * beside,
        "writing": rounds * pace.write,
        "latency": rungs * latency,
        "report": pace.report,
        "rivals": len(recipe.evaluate.rivals) * (everything + pace.load),
    }
    if recipe.control == "once":
        control = scoring + pace.write + losses + some + again + tuned + beside + latency + pace.report
        parts["control"] = control + (pace.compensate if rounds > 1 and recipe.compensate != "none" else 0.0)
    more = 0.0 if recipe.foreseen or recipe.prune.rounds == 1 else a_round
    longer = (most - least) * (rungs + (recipe.control == "once"))
    return Minutes({k: v for k, v in parts.items() if v}, rounds, more, pace.untimed, longer)


def _sampling(context: Context, pace: Pace, rounds: int) -> float:
    """Seconds of own traces that are not there yet."""
    total = 0.0
    for traces, each in zip(traces_of(context.recipe), pace.traces, strict=True):
        asked = len(load_stream([traces.source], context.recipe.seed))
        total += each * min(asked, traces.n or asked) * (rounds if traces.renew else 1)
    return total


def rounds_of(context: Context) -> int:
    """Rounds that are counted."""
    recipe = context.recipe
    if recipe.searches:
        return TRIES
    if recipe.prune.by_threshold:
        return recipe.prune.max_rounds or 1
    from prunetune.loop.decide import planned_rounds

    return max(1, planned_rounds(recipe, context.sizes))


def _probes(recipe: Recipe, rounds: int) -> int:
    """Probes before a round, on the mean."""
    if recipe.searches:
        return 2 if recipe.probed else 0
    if not recipe.probed or recipe.prune.rounds == 1:
        return 0
    return 1 if rounds == 1 else 3


def _judged(recipe: Recipe, pace: Pace) -> float:
    """The verdict of a search: a third of the problems, of both models in the mean half again."""
    if recipe.stop is None or not pace.ask:
        return 0.0
    asked = next(iter(pace.ask.values()))
    return 1.3 * asked.time(round(0.5 * recipe.stop.n))


def training(context: Context, pace: Pace, rounds: int) -> float:
    """Seconds of training in all rounds."""
    total = 0.0
    for i, (method, timed) in enumerate(zip(context.recipe.recover, pace.tune, strict=True)):
        if timed is not None:
            total += timed.each * tokens_of(context, i, method, timed.tokens_a_sample, rounds)
    return total * (TRIES / SIZED if context.recipe.searches else 1.0)


def tokens_of(context: Context, place: int, method: TuneConfig, a_sample: float, rounds: int) -> float:
    """Tokens that a method trains in the whole run, all epochs."""
    if place in context.own:
        stream = float(len(context.own[place]))
    else:
        beside = sum(m.data is None for m in context.recipe.recover)
        stream = (len(context.stream) - context.reserved) / max(1, beside)
    times = rounds if method.per == "round" else 1
    found = [stream * a_sample]
    found += [times * method.tokens] if method.tokens else []
    found += [times * method.samples * a_sample] if method.samples else []
    return method.trained(min(found), a_sample, rounds)
