"""Whether a finished round stands: `tolerance` by the held-out loss, `stop_at` by an interval on fresh problems.

judge(bench, record, model, at)      # -> {accepted, why, ...}: stage.json's verdict
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from prunetune.common.files import write_json
from prunetune.common.stats import kept_share
from prunetune.evaluation.evaluate import read_samples
from prunetune.loop.bench import Bench, free, samples_of
from prunetune.models.folders import model_sha
from prunetune.recipe.schema import StopConfig
from prunetune.runs.folder import Record
from prunetune.tasks.registry import Task, TaskConfig, build_task

UNCONDITIONAL = "the schedule's step; no condition was set on its accuracy"


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
    kept = (
        accuracy / before if before else kept
    )  # the bound is of shares that count half a question more; see kept_share
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
