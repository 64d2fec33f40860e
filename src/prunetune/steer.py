"""Deciding between rounds: how far the next one goes, with which share of the budget, and whether the last one stands.

    while decision := decide(bench):          # RUN/decisions/NN[-aK].json: what was measured, what follows
        one_round(bench, decision)            # asks `judge` for the verdict that its stage.json carries

With `budget: equal`, a fixed order and no conditions this is the paper's schedule (`schedule.next_step`), and nothing
is measured. Otherwise the current model is probed (survey.py) and the arithmetic is budget.py's.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunetune import budget, survey
from prunetune.bench import Bench, free, samples_of
from prunetune.evaluate import read_samples
from prunetune.recipe import StopConfig
from prunetune.run import Record, Timed
from prunetune.schedule import FinalShape, PruneConfig, Step, align_of, next_step
from prunetune.stats import kept_share
from prunetune.store import model_sha, once, read_json, write_json
from prunetune.tasks import Task, TaskConfig, build_task

LEAST_STEPS = 20
"""`rounds: auto`: optimiser steps that a round must get at least."""
MOST_ROUNDS = 6
"""`rounds: auto`: no more than this, unless `max_rounds` says so."""
UNCONDITIONAL = "the schedule's step; no condition was set on its accuracy"


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
    if rejected is not None:
        return _again(bench, rejected)
    if not bench.recipe.probed:
        planned = next_step(bench.recipe.prune, bench.sizes, bench.run.history)
        if planned is None:
            return None
        return _capped(bench, Decision(planned, bench.rounds, None, _is_last(bench, planned), {}))
    if _arrived(bench):
        return None
    index = len(bench.run.accepted) + 1
    if index > (bench.recipe.prune.max_rounds or index):
        return None
    path = bench.run.decisions / f"{index:02d}.json"
    current = bench.run.current
    key = {
        "model": current["model_sha"],
        "prune": bench.recipe.prune.model_dump(mode="json"),
        "compensate": bench.recipe.compensate,
        "data": bench.stream.sha,
    }

    def make(tmp: Path) -> None:
        start = time.monotonic()
        found = _probe(bench, index)
        write_json(tmp, {**found, "seconds": round(time.monotonic() - start, 3)})

    found = read_json(once(path, key, make))
    bench.watch.line(f"  round {index}: {found['why']}")
    step = Step(**found["step"])
    return _capped(bench, Decision(step, found["rounds"], found["share"], _is_last(bench, step), found))


def _now(bench: Bench) -> budget.Place:
    current = bench.run.current
    return current["depth"], current["width"]


def _arrived(bench: Bench) -> bool:
    prune, now = bench.recipe.prune, _now(bench)
    if prune.order == "auto":
        return bench.sizes.params(*now) <= budget.target_params(prune, bench.sizes)
    return next_step(prune, bench.sizes, bench.run.history) is None


def _is_last(bench: Bench, step: Step) -> bool:
    if bench.recipe.prune.by_threshold:
        return False
    depth, width = _now(bench)
    left = bench.sizes.params(depth - (step.layers or 0), width - (step.neurons or 0))
    return left <= budget.target_params(bench.recipe.prune, bench.sizes)


# ------------------------------------------------------------------------------------------------------- by damage


def _probe(bench: Bench, index: int) -> dict[str, Any]:
    """Measure, and decide the round: its shape, its share of the tokens that are left, the rounds in all."""
    run, prune, sizes = bench.run, bench.recipe.prune, bench.sizes
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
    probes = survey.probe(bench, at, source, scores, [way[i] for i in budget.places(way, sizes, now)])
    curve = budget.damages(way, sizes, now, loss, probes)
    rounds = max(_rounds(bench, curve[-1]), index)
    chosen = budget.equal_damage(curve, rounds - index + 1)
    step = budget.step_to(index, now, way[chosen])
    share = curve[chosen] / curve[-1] if curve[-1] > 0 else 1.0
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
        if method.per == "round":
            continue
        sequences = method.tokens / mean if method.tokens else method.samples
        if sequences is None:
            sequences = (len(bench.stream) - bench.reserved) / len(bench.recipe.recover)
        rounds.append(int(sequences * method.epochs / method.batch_size / LEAST_STEPS))
    return max(1, min(rounds))


# ------------------------------------------------------------------------------------------------ conditions, verdicts


def _capped(bench: Bench, decision: Decision) -> Decision:
    """After a round that stood only when halved, the next is no larger."""
    before = bench.run.accepted[-1:]
    if not before or before[0]["attempt"] == 1:
        return decision
    most, step = before[0]["removed"], decision.step
    if step.neurons is None or step.layers is None:
        return decision
    width = _now(bench)[1]
    align = align_of(bench.recipe.prune, bench.sizes)
    neurons = min(step.neurons, max(most["neurons"], width - (width - 1) // align * align)) if step.neurons else 0
    layers = min(step.layers, max(1, len(most["layers"]))) if step.layers else 0
    smaller = dataclasses.replace(step, neurons=neurons, layers=layers)
    return dataclasses.replace(decision, step=smaller, last=_is_last(bench, smaller))


def _again(bench: Bench, rejected: Record) -> Decision | None:
    """Half of the round that was rejected, from the state before it; None if there is no half."""
    step = budget.halved(Step(**rejected["step"]), _now(bench)[1], align_of(bench.recipe.prune, bench.sizes))
    if step is None:
        bench.watch.line(f"  {rejected['name']} was rejected, and no smaller step is left: finished")
        return None
    share = rejected.get("share")
    return Decision(
        step, rejected["rounds"], None if share is None else share / 2, False, {"after": rejected["verdict"]["why"]}
    )


def judge(bench: Bench, record: Record, model: Any, at: Path) -> Record:
    """The verdict on a finished round, and what it rests on: {accepted, why, ...}."""
    before, recipe = bench.run.current, bench.recipe
    reasons = []
    if recipe.tolerance is not None:
        rise = record["held_out_loss"] - before["held_out_loss"]
        if rise > recipe.tolerance:
            why = f"the held-out loss rose by {rise:.3f} nats; the tolerance is {recipe.tolerance:g}"
            return {"accepted": False, "why": why}
        reasons.append(f"the held-out loss changed by {rise:+.3f} nats (tolerance {recipe.tolerance:g})")
    if recipe.stop_at is None:
        return {"accepted": True, "why": "; ".join(reasons) or UNCONDITIONAL}
    return _promise(bench, recipe.stop_at, model, record["model_sha"], at, reasons)


def _promise(bench: Bench, stop: StopConfig, model: Any, sha: str, at: Path, reasons: list[str]) -> Record:
    """Whether the model keeps the wanted accuracy on fresh problems, by the lower end of an interval."""
    task = validation(bench, stop)
    original = bench.run.folder("original")
    if not (original / "validation.json").is_file():
        untouched = bench.load(bench.run.source)
        _validate(bench, task, untouched, model_sha(bench.run.source), original)
        del untouched
        free()
    theirs, ours = _verdicts(original, task), _validate(bench, task, model, sha, at)
    pairs = [(theirs[i], ours[i]) for i in theirs]
    kept, lower = kept_share(pairs, stop.accuracy, fresh=stop.fresh)
    accuracy, before = sum(ours.values()) / len(ours), sum(theirs.values()) / len(theirs)
    accepted = lower >= stop.accuracy
    told = (
        f"{accuracy:.1%} of {len(ours)} validation problems right, the original {before:.1%}: {kept:.1%} kept, "
        f"at least {lower:.1%} to be expected on {stop.fresh} fresh ones; wanted {stop.accuracy:.1%}"
    )
    return {
        "accepted": accepted,
        "why": "; ".join([*reasons, told]),
        "validation": {"n": len(ours), "accuracy": accuracy, "original": before, "kept": kept, "lower": lower},
    }


def validation(bench: Bench, stop: StopConfig) -> Task:
    """The problems that decide: not among those that are reported."""
    config = stop.task or bench.recipe.evaluate.judged or bench.recipe.evaluate.tasks[0]
    if stop.task is None:
        config = TaskConfig.model_validate({**config.model_dump(), "n": None, "seed": config.seed + 1})
        if config.path is None:  # generated: as many as are wanted, with some to spare
            config = config.model_copy(update={"n": stop.n + 200})
    task = build_task(config)
    reported = {p.question for t in bench.tasks for p in t.problems}
    fresh = tuple(p for p in task.problems if p.question not in reported)[: stop.n]
    return dataclasses.replace(task, name="validation", problems=fresh)


def _validate(bench: Bench, task: Task, model: Any, sha: str, at: Path) -> dict[str, bool]:
    result = bench.answer(task, model, sha, at)
    write_json(at / "validation.json", result.to_json())
    return _verdicts(at, task)


def _verdicts(at: Path, task: Task) -> dict[str, bool]:
    wanted = {p.id for p in task.problems}
    return {r["id"]: bool(r["correct"]) for r in read_samples(samples_of(at, task)) if r["id"] in wanted}


def prune_of(bench: Bench) -> PruneConfig:
    """The schedule of a control of the same size: the recipe's, or, where the loop chose the shape, that shape."""
    prune = bench.recipe.prune
    if not bench.recipe.probed and bench.recipe.stop_at is None and bench.recipe.tolerance is None:
        return prune
    depth, width = _now(bench)
    layers = prune.layers if isinstance(prune.layers, list) else "auto"
    target = FinalShape(width=width, depth=None if isinstance(layers, list) else depth)
    return prune.model_copy(update={"target": target, "order": "together", "layers": layers, "rounds": None})
