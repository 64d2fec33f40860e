"""Deciding between rounds: how far the next one goes, with which share of the budget, and what follows a rejected one.

    while decision := decide(bench):          # RUN/decisions/NN[-aK].json: what was measured, what follows
        one_round(bench, decision)            # its stage.json carries the verdict (verdict.py)

With `budget: equal`, a fixed order and no conditions this is the paper's schedule (`schedule.next_step`), and nothing
is measured. Otherwise the current model is probed (survey.py) and the arithmetic is budget.py's. After a rejected round
half of it is tried; where there is no half, its axis is closed for good and the other one goes on.
"""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunetune.common.files import once, read_json, write_json
from prunetune.loop import probe as survey
from prunetune.loop.bench import Bench
from prunetune.runs.folder import Record, Timed
from prunetune.schedule import damage as budget
from prunetune.schedule.steps import Axis, Step, next_step
from prunetune.schedule.target import FinalShape, PruneConfig, align_of

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
        evidence: What was measured, for the run folder.
    """

    step: Step
    rounds: int
    share: float | None
    last: bool
    evidence: dict[str, Any]


def decide(bench: Bench) -> Decision | None:
    """The next round, or None when the loop is finished: target reached, or no smaller step would be accepted."""
    stages = bench.run.stages
    rejected = stages[-1] if stages and not stages[-1]["verdict"]["accepted"] else None
    if rejected is None:
        decision = _scheduled(bench, 1)
    else:
        decision = _again(bench, rejected)
        if decision is None and not bench.recipe.prune.by_threshold:
            decision = _scheduled(bench, rejected["attempt"] + 1)
        if decision is None:
            bench.watch.line(f"  {rejected['name']} was rejected, and no smaller step is left: finished")
    if decision is not None and _used_up(bench):
        bench.watch.line("  after what was rejected, too few data are left for another round: finished")
        return None
    return decision


def _scheduled(bench: Bench, attempt: int) -> Decision | None:
    """The schedule's next round, on the axes that are open; None if it has reached its end."""
    prune, told = _schedule(bench), _told(bench)
    if not bench.recipe.probed:
        planned = next_step(prune, bench.sizes, bench.run.history)
        if planned is None:
            return None
        if told:
            bench.watch.line(f"  round {planned.index}: {told}")
        planned, evidence = dataclasses.replace(planned, attempt=attempt), {"why": told} if told else {}
        return _capped(bench, Decision(planned, bench.rounds, None, _is_last(bench, planned), evidence))
    if _arrived(bench):
        return None
    index = len(bench.run.accepted) + 1
    if index > (prune.max_rounds or index):
        return None
    path = bench.run.decisions / (f"{index:02d}.json" if attempt == 1 else f"{index:02d}-a{attempt}.json")
    current = bench.run.current
    key = {
        "model": current["model_sha"],
        "prune": prune.model_dump(mode="json"),
        "compensate": bench.recipe.compensate,
        "data": bench.stream.sha,
    }

    def make(tmp: Path) -> None:
        start = time.monotonic()
        found = _probe(bench, index)
        found["step"]["attempt"] = attempt
        if told:
            found |= {"why": f"{told}; {found['why']}", "closed": _closed(bench)}
        write_json(tmp, {**found, "seconds": round(time.monotonic() - start, 3)})

    found = read_json(once(path, key, make))
    bench.watch.line(f"  round {index}: {found['why']}")
    step = Step(**found["step"])
    return _capped(bench, Decision(step, found["rounds"], found["share"], _is_last(bench, step), found))


def _closed(bench: Bench) -> dict[Axis, str]:
    return budget.closed(bench.run.history, align_of(bench.recipe.prune, bench.sizes))


def _told(bench: Bench) -> str:
    """Why an axis is closed, in words; empty if none is."""
    return "; ".join(f"no more {axis} go, for {name} was rejected" for axis, name in _closed(bench).items())


def _schedule(bench: Bench) -> PruneConfig:
    """The recipe's schedule, as far as its axes are open."""
    prune, protect, width = bench.recipe.prune, bench.recipe.protect, _now(bench)[1]
    align = align_of(prune, bench.sizes)
    guarded = math.ceil(width * protect.share) if protect else 0
    least = max(1, math.ceil(guarded / align)) * align
    return budget.remaining(prune, bench.sizes, _now(bench), _closed(bench), least)


def _now(bench: Bench) -> budget.Place:
    current = bench.run.current
    return current["depth"], current["width"]


def _arrived(bench: Bench) -> bool:
    prune, now = _schedule(bench), _now(bench)
    if prune.order == "auto":
        return bench.sizes.params(*now) <= budget.target_params(prune, bench.sizes)
    return next_step(prune, bench.sizes, bench.run.history) is None


def _is_last(bench: Bench, step: Step) -> bool:
    if bench.recipe.prune.by_threshold:
        return False
    depth, width = _now(bench)
    left = bench.sizes.params(depth - (step.layers or 0), width - (step.neurons or 0))
    return left <= budget.target_params(_schedule(bench), bench.sizes)


# ------------------------------------------------------------------------------------------------------- by damage


def _probe(bench: Bench, index: int) -> dict[str, Any]:
    """Measure, and decide the round: its shape, its share of the tokens that are left, the rounds in all."""
    run, prune, sizes = bench.run, _schedule(bench), bench.sizes
    current, now = run.current, _now(bench)
    fixed = _fixed_rounds(bench)
    if prune.order != "auto" and fixed is not None and index >= fixed:
        return _rest(bench, index, budget.path(prune, sizes, now)[-1])
    source, at = run.model_of(current), run.decisions / f"{index:02d}"
    at.mkdir(parents=True, exist_ok=True)
    scores = survey.take_scores(bench, Timed(at), source, current["model_sha"])
    loss = current["held_out_loss"]
    if prune.order == "auto":
        return _by_axis(bench, index, scores, at)
    way = budget.path(prune, sizes, now)
    probes = survey.probe(bench, at, source, scores, [way[-1]])
    whole = probes[0].loss - loss
    rounds = max(_rounds(bench, whole), index)
    if rounds > index and whole > 0:  # the way there matters only if it is to be divided
        probes = survey.probe(bench, at, source, scores, [way[i] for i in budget.places(way, sizes, now)[:-1]]) + probes
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
    return {
        "index": index,
        "rounds": rounds,
        "step": vars(step).copy(),
        "share": share,
        "why": why,
        "loss": loss,
        "probes": [vars(p).copy() for p in probes],
        "path": [{"depth": d, "width": w, "damage": c} for (d, w), c in zip(way, curve, strict=True)],
    }


def _rest(bench: Bench, index: int, end: budget.Place) -> dict[str, Any]:
    """The last round goes to the target whatever it costs: nothing needs to be measured."""
    step = budget.step_to(index, _now(bench), end)
    why = f"{step.name} is the last of {index} rounds: all that is left goes, with all of the budget left"
    loss = bench.run.current["held_out_loss"]
    return {
        "index": index,
        "rounds": index,
        "step": vars(step).copy(),
        "share": 1.0,
        "why": why,
        "loss": loss,
        "probes": [],
    }


def _by_axis(bench: Bench, index: int, scores: Any, at: Path) -> dict[str, Any]:
    """`order: auto`: neurons or layers, whichever costs least predicted loss for what it saves."""
    run, prune, sizes, now = bench.run, bench.recipe.prune, bench.sizes, _now(bench)
    current = run.current
    source, loss = run.model_of(current), current["held_out_loss"]
    rounds = max(_fixed_rounds(bench) or _auto_rounds(bench, scores, at), index)
    shapes = budget.axis_candidates(prune, sizes, now, rounds - index + 1)
    probes = survey.probe(bench, at, source, scores, shapes)
    best = budget.cheapest(probes, loss)
    step = budget.step_to(index, now, (best.depth, best.width))
    gap = sizes.params(*now) - budget.target_params(prune, sizes)
    share = min(1.0, (sizes.params(*now) - best.params) / gap)
    told = "; ".join(
        f"{p.depth} layers of {p.width}: {p.loss - loss:+.3f} nats for {p.saved:.3g} {prune.save}" for p in probes
    )
    return {
        "index": index,
        "rounds": rounds,
        "step": vars(step).copy(),
        "share": share,
        "why": f"{step.name} costs least loss for what it saves ({told}); {share:.0%} of the budget left",
        "loss": loss,
        "probes": [vars(p).copy() for p in probes],
    }


def _fixed_rounds(bench: Bench) -> int | None:
    """The number of rounds that the recipe fixes, by `rounds` or by the size of a step; None: `auto`."""
    prune, first = bench.recipe.prune, bench.run.decisions / "01.json"
    if isinstance(prune.rounds, int):
        return prune.rounds
    if prune.rounds is None:
        return bench.paper_rounds
    return int(read_json(first)["rounds"]) if bench.run.accepted and first.is_file() else None


def _rounds(bench: Bench, damage: float) -> int:
    fixed = _fixed_rounds(bench)
    if fixed is not None:
        return fixed
    most = bench.recipe.prune.max_rounds or MOST_ROUNDS
    return budget.rounds_for(damage, bench.recipe.damage_per_round, _affordable(bench), most)


def _auto_rounds(bench: Bench, scores: Any, at: Path) -> int:
    """From the damage of the whole cut by neurons (and layers, where neurons alone cannot do it)."""
    order = bench.recipe.prune.model_copy(update={"order": "neurons-then-layers"})
    now = _now(bench)
    end = budget.path(order, bench.sizes, now)[-1]
    source = bench.run.model_of(bench.run.current)
    whole = survey.probe(bench, at, source, scores, [end])[0]
    return _rounds(bench, whole.loss - bench.run.current["held_out_loss"])


def _affordable(bench: Bench) -> int:
    """Rounds that get `LEAST_STEPS` optimiser steps each from the recipe's budget (of the methods' scarcest)."""
    mean = sum(int(b["attention_mask"].sum()) for b in bench.scoring) / max(1, bench.recipe.score.samples)
    rounds = [MOST_ROUNDS * 10]
    for method in bench.recipe.recover:
        if method.per == "round" or method.when == "last":
            continue
        sequences = method.tokens / mean if method.tokens else method.samples
        if sequences is None:
            own = bench.stream_of(method.data) if method.data else None
            sequences = len(own) if own else (len(bench.stream) - bench.reserved) / len(bench.recipe.recover)
        rounds.append(int(sequences * method.epochs / method.batch_size / LEAST_STEPS))
    return max(1, min(rounds))


# ------------------------------------------------------------------------------------------------ after a verdict


def _capped(bench: Bench, decision: Decision) -> Decision:
    """After a round that stood only when halved, the next is no larger; its share of the budget shrinks with it."""
    before, step, (depth, width) = bench.run.accepted[-1:], decision.step, _now(bench)
    if not before or step.neurons is None or step.layers is None:
        return decision
    most = before[0]["removed"]
    index = before[0]["index"]
    undone = [s["removed"] for s in bench.run.stages if s["index"] == index and not s["verdict"]["accepted"]]
    if not any(u["neurons"] >= most["neurons"] and len(u["layers"]) >= len(most["layers"]) for u in undone):
        return decision
    align = align_of(bench.recipe.prune, bench.sizes)
    neurons = min(step.neurons, max(most["neurons"], width - (width - 1) // align * align)) if step.neurons else 0
    layers = min(step.layers, max(1, len(most["layers"]))) if step.layers else 0
    smaller = dataclasses.replace(step, neurons=neurons, layers=layers)
    gone, planned = (
        bench.sizes.params(depth, width) - bench.sizes.params(depth - (s.layers or 0), width - (s.neurons or 0))
        for s in (smaller, step)
    )
    share = None if decision.share is None else decision.share * (gone / planned)
    return dataclasses.replace(decision, step=smaller, share=share, last=_is_last(bench, smaller))


def _again(bench: Bench, rejected: Record) -> Decision | None:
    """Half of the round that was rejected, from the state before it; None if there is no half."""
    step = budget.halved(Step(**rejected["step"]), _now(bench)[1], align_of(bench.recipe.prune, bench.sizes))
    if step is None:
        return None
    share = rejected.get("share")
    return Decision(
        step, rejected["rounds"], None if share is None else share / 2, False, {"after": rejected["verdict"]["why"]}
    )


def _used_up(bench: Bench) -> bool:
    """Whether rejected rounds, for which nothing was planned, left less than a batch for each method."""
    run = bench.run
    left = len(bench.stream) - (run.cursor or bench.reserved)
    return len(run.accepted) < len(run.stages) and left < sum(m.batch_size for m in bench.recipe.recover if not m.data)


def prune_of(bench: Bench) -> PruneConfig:
    """The schedule of a control of the same size: the recipe's, or, where the loop chose the shape, that shape."""
    prune = bench.recipe.prune
    if not bench.recipe.probed and bench.recipe.stop_at is None and bench.recipe.tolerance is None:
        return prune
    depth, width = _now(bench)
    layers = prune.layers if isinstance(prune.layers, list) else "auto"
    target = FinalShape(width=width, depth=None if isinstance(layers, list) else depth)
    return prune.model_copy(update={"target": target, "order": "together", "layers": layers, "rounds": None})
