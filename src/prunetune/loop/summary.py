"""RUN/summary.json made: original against final, from the records alone. Pure, but for the samples' questions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path

from pydantic import JsonValue

from prunetune.common import units as human
from prunetune.data.stream import Example, overlap
from prunetune.loop.control import name_of
from prunetune.loop.measure import LATENCY
from prunetune.models.cost import cost_of
from prunetune.models.folders import load_config
from prunetune.recipe.schema import Recipe
from prunetune.report.pairs import read_samples
from prunetune.report.speed import speedups
from prunetune.runs.folder import RunFolder, seconds_of
from prunetune.runs.records import ACTIONS, EvalRecord, StageRecord, known
from prunetune.runs.summary import Accuracy, ControlRecord, Leak, Promise, Summary, Timings
from prunetune.schedule.fitting import stored_bytes
from prunetune.schedule.target import FinalShape
from prunetune.schedule.wanted import SMALLEST, bytes_of
from prunetune.tasks.registry import Task


def leaks(used: Sequence[Iterable[Example]], tasks: Sequence[Task], measured: Path | None = None) -> dict[str, Leak]:
    """Evaluation questions that also occur in the recovery data, by task.

    Args:
        used: What was trained on, part after part.
        tasks: What is measured. A perplexity asks nothing, so it has no entry.
        measured: Folder of a stage that was measured: the questions of lm-eval's tasks are read from its samples.
    """
    found = {}
    for task in tasks:
        questions = [p.question for p in task.problems]
        if task.harness is not None and measured is not None:
            questions = [s.question for s in read_samples(measured, task.name).values()]
        if questions:
            found[task.name] = Leak.model_validate(asdict(overlap(chain.from_iterable(used), questions)))
    return found


def summarise(
    recipe: Recipe, run: RunFolder, final: StageRecord, latency: Timings | None, found_leaks: dict[str, Leak]
) -> Summary:
    """Everything that summary.json holds (the contract is in the README)."""
    original, stages = run.original, tuple(run.stages)
    everyone = [original, *stages]
    seconds = {a: round(sum(s.seconds.get(a, 0.0) for s in everyone), 3) for a in ACTIONS}
    seconds["plan"] += seconds.pop("compensate")  # as version 0.1 has it; stage.json has it apart
    seconds["latency"] = seconds_of(run.path, LATENCY) if latency else 0.0
    seconds["start"] = original.seconds.get("start", 0.0)
    ratio = known(final.params, "params") / known(original.params, "params")
    return Summary(
        original=original,
        stages=stages,
        final=final,
        params_ratio=ratio,
        flops_ratio=_flops_ratio(original, final),
        accuracy=accuracy(original, final),
        speedup=speedups(latency or Timings(), original, final),
        latency=latency,
        recovery_tokens=sum(known(s.tokens, "tokens") for s in stages),
        seconds=seconds,
        control=_control(run, original, recipe),
        promise=promise(recipe, stages, final),
        leaks=found_leaks,
        truncated=sum(t.truncated or 0 for s in stages for t in s.tune),
        environment=environment(),
        recipe=recipe.model_dump(mode="json"),
        shape=final.shape,
        asked=_asked(recipe),
        reached=_reached(recipe, run, final, latency),
    )


Target = float | int | str | dict[str, int | None] | None


def _asked(recipe: Recipe) -> Target:
    """The target as the recipe says it; None: no size was asked for."""
    target = recipe.prune.target
    if target == SMALLEST:
        return None
    return target.model_dump() if isinstance(target, FinalShape) else target


def _reached(recipe: Recipe, run: RunFolder, final: StageRecord, latency: Timings | None) -> Target:
    """What the final model has of what the target speaks of, in the target's unit; None: it was not measured."""
    target = recipe.prune.target
    if target is None or target == SMALLEST:
        return None
    if isinstance(target, FinalShape):
        return {"width": final.width, "depth": final.depth}
    if isinstance(target, str) and bytes_of(target) is None:
        decode = speedups(latency or Timings(), run.original, final).get("decode")
        return f"{decode:.2f}x" if isinstance(decode, float) else None
    if isinstance(target, str):
        config = load_config(run.model_of(final))
        cost = cost_of(config, dtype_bytes=stored_bytes(config))
        return human.size(cost.weight_bytes + cost.kv_bytes(recipe.prune.context or 0))
    size = known(final.params, "params")
    return size if target > 1 else size / known(run.original.params, "params")


def promise(recipe: Recipe, stages: Sequence[StageRecord], final: StageRecord) -> Promise | None:
    """What `stop_at` asked for, whether the final model keeps it, and on what evidence; None if nothing was asked."""
    if recipe.stop is None:
        return None
    wanted = recipe.stop.accuracy
    if final.index == 0:
        last = f" ({stages[-1].why})" if stages else ""
        return Promise(wanted=wanted, kept=False, why=f"no smaller model keeps it{last}")
    return Promise(wanted=wanted, kept=True, why=final.why)


def accuracy(original: StageRecord, final: StageRecord) -> dict[str, Accuracy]:
    """{task: original, final, their standard errors, n}; n is the smaller where they differ."""
    return {
        old.task: Accuracy(
            original=old.value,
            final=new.value,
            original_stderr=old.stderr,
            final_stderr=new.stderr,
            n=min(known(old.n, "n"), known(new.n, "n")),
        )
        for old, new in _both(original, final)
    }


def _both(original: StageRecord, final: StageRecord) -> list[tuple[EvalRecord, EvalRecord]]:
    """The results of both models on the tasks that both were asked."""
    pairs = ((old, final.eval_of(old.task)) for old in original.evals)
    return [(old, new) for old, new in pairs if new is not None]


def _flops_ratio(original: StageRecord, final: StageRecord) -> dict[str, float]:
    pairs = {t: (old, final.cost.flops.get(t)) for t, old in original.cost.flops.items()}
    return {t: new / old for t, (old, new) in pairs.items() if old and new}


def _control(run: RunFolder, original: StageRecord, recipe: Recipe) -> ControlRecord | None:
    """The control's figures, if it was asked for and is finished."""
    path = run.path / "control" / "summary.json"
    if not path.is_file():
        return None
    theirs = Summary.read(path)
    return ControlRecord(
        name=name_of(recipe.model_dump(mode="json"), theirs.recipe or {}),
        params_ratio=theirs.params_ratio,
        accuracy=accuracy(original, known(theirs.final, "final")),
        recovery_tokens=theirs.recovery_tokens,
        seconds=theirs.seconds,
    )


def environment() -> dict[str, JsonValue]:
    """What the figures were measured on."""
    import torch

    packages = ("prunetune", "torch", "transformers", "trl", "accelerate", "datasets")
    versions: dict[str, JsonValue] = {}
    for p in packages:
        try:
            versions[p] = importlib.metadata.version(p)
        except importlib.metadata.PackageNotFoundError:
            versions[p] = "not installed"
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        **versions,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
