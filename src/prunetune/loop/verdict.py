"""Whether a finished round stands: `stop_at`, by an interval on fresh problems.

judge(context, run, model, sha, at)      # -> Verdict: stage.json's
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from transformers import PreTrainedModel

from prunetune.common.files import write_json
from prunetune.common.stats import kept_share
from prunetune.evaluation.evaluate import read_samples
from prunetune.loop.context import Context, free
from prunetune.loop.measure import answer, samples_of
from prunetune.models.folders import model_sha
from prunetune.recipe.schema import Recipe, StopConfig
from prunetune.runs.folder import RunFolder
from prunetune.runs.records import Validation, Verdict
from prunetune.tasks.registry import Task, TaskConfig, build_task

UNCONDITIONAL = "the schedule's step; no condition was set on its accuracy"


def judge(context: Context, run: RunFolder, model: PreTrainedModel, sha: str, at: Path) -> Verdict:
    """The verdict on a finished round, and what it rests on.

    Args:
        context: The run.
        run: Its folder; the untouched model's answers to the problems that decide are kept in `original/`.
        model: The round's model.
        sha: Of that model.
        at: The round's folder.
    """
    recipe = context.recipe
    if recipe.stop_at is None:
        return Verdict(accepted=True, why=UNCONDITIONAL)
    task = validation(recipe, recipe.stop_at, context.tasks)
    original = run.folder("original")
    if not (original / "validation.json").is_file():
        untouched = context.load(context.source)
        _validate(context, task, untouched, model_sha(context.source), original)
        del untouched
        free()
    theirs, ours = _right(original, task), _validate(context, task, model, sha, at)
    return promised(recipe.stop_at, theirs, ours)


def promised(stop: StopConfig, theirs: dict[str, bool], ours: dict[str, bool]) -> Verdict:
    """Whether a model keeps the wanted accuracy on fresh problems, by the lower end of an interval.

    Args:
        stop: What is wanted.
        theirs: Problem -> whether the original solved it.
        ours: The same of the model that is judged.
    """
    kept, lower = kept_share([(theirs[i], ours[i]) for i in theirs], stop.accuracy, fresh=stop.fresh)
    accuracy, before = sum(ours.values()) / len(ours), sum(theirs.values()) / len(theirs)
    kept = (
        accuracy / before if before else kept
    )  # the bound is of shares that count half a question more; see kept_share
    told = (
        f"{accuracy:.1%} of {len(ours)} validation problems right, the original {before:.1%}: {kept:.1%} kept, "
        f"at least {lower:.1%} to be expected on {stop.fresh} fresh ones; wanted {stop.accuracy:.1%}"
    )
    return Verdict(
        accepted=lower >= stop.accuracy,
        why=told,
        validation=Validation(n=len(ours), accuracy=accuracy, original=before, kept=kept, lower=lower),
    )


def validation(recipe: Recipe, stop: StopConfig, tasks: tuple[Task, ...]) -> Task:
    """The problems that decide: not among those that are reported (`tasks`)."""
    config = stop.task or recipe.evaluate.judged or recipe.evaluate.tasks[0]
    if stop.task is None:
        config = TaskConfig.model_validate({**config.model_dump(), "n": None, "seed": config.seed + 1})
        if config.path is None:  # generated: as many as are wanted, with some to spare
            config = config.model_copy(update={"n": stop.n + 200})
    task = build_task(config)
    reported = {p.question for t in tasks for p in t.problems}
    fresh = tuple(p for p in task.problems if p.question not in reported)[: stop.n]
    return dataclasses.replace(task, name="validation", problems=fresh)


def _validate(context: Context, task: Task, model: PreTrainedModel, sha: str, at: Path) -> dict[str, bool]:
    result = answer(context, task, model, sha, at)
    write_json(at / "validation.json", result.to_json())
    return _right(at, task)


def _right(at: Path, task: Task) -> dict[str, bool]:
    wanted = {p.id for p in task.problems}
    return {r["id"]: bool(r["correct"]) for r in read_samples(samples_of(at, task)) if r["id"] in wanted}
