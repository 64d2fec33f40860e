"""Algorithm 1: prune a little, tune a little, until the target size. Running it again continues.

    score -> plan -> (patch) -> prune -> recover -> measure        one round, each arrow a file in the run folder

Deciding is elsewhere (`schedule.next_step`, `steer.decide`, `plan.make_plan`); here things are made, once.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from prunetune.common.files import once, remove, write_json
from prunetune.common.progress import Watch
from prunetune.data.stream import Example
from prunetune.loop.bench import Bench, samples_of
from prunetune.loop.decide import decide, prune_of
from prunetune.loop.round import one_round
from prunetune.loop.shares import used as used_by
from prunetune.loop.summary import Summary, leaks, per_question, summarise
from prunetune.models.cost import cost_of
from prunetune.models.folders import load_config, resolve_model
from prunetune.recipe.schema import Recipe
from prunetune.report.write import write_report
from prunetune.runs.folder import Record, RunFolder, link_or_copy
from prunetune.schedule.steps import once as once_only


def prune_tune_loop(recipe: Recipe, out: Path | str, watch: Watch | None = None) -> Summary:
    """Compact a model by the Prune-Tune Loop (Algorithm 1). Running it again continues where it was.

    Args:
        recipe: What to do.
        out: The run folder; made if it is not there.
        watch: Shows lines and bars; the default writes to stderr.

    Returns:
        What RUN/summary.json holds.
    """
    out, watch = Path(out), watch or Watch()
    source = resolve_model(recipe.model)
    with RunFolder.open(out, recipe, source) as run:
        bench = Bench(recipe, run, watch)
        bench.check()
        bench.original()
        if run.stages:
            bench.watch.line(f"continuing after {run.stages[-1]['name']}: finished rounds are kept")
        while decision := decide(bench):
            one_round(bench, decision)
        _control(bench)
        return _finish(bench)


def _finish(bench: Bench) -> Summary:
    """final/, summary.json and the report."""
    run, stage = bench.run, bench.run.current
    source = run.model_of(stage)
    final = run.path / "final"
    if source != final:
        key = {"model": stage["model_sha"]}
        once(final, key, lambda tmp: shutil.copytree(source, tmp, copy_function=link_or_copy))
    at = run.folder(stage["name"])
    if _measured_on_less(bench, stage):
        model = bench.load(final)
        stage["evals"] = [e.to_json() for e in bench.measure(model, stage["model_sha"], at, None)]
        cost = cost_of(load_config(final))
        stage["cost"]["flops"] = {t.name: per_question(cost, samples_of(at, t)) for t in bench.tasks}
        del model
        write_json(at / "stage.json", stage)  # the final model answers all n problems, not round_n
    latency = bench.latency(final) if bench.run.accepted else None
    used = [e for s in run.stages for e in bench.stream.take(*s["samples"])] + own_examples(bench)
    leaked = leaks(used, bench.tasks, run.folder("original"))
    for task, found in leaked.items():
        if found["normalised"]:
            seen = f"{found['normalised']:,} of the {found['questions']:,} questions of {task}"
            bench.watch.line(f"warning: the recovery data hold {seen}; read its figures with care")
    summary = summarise(run, bench.recipe, stage, latency, leaked)
    write_json(run.path / "summary.json", summary)
    write_report(run.path)
    if promise := summary["promise"]:
        bench.watch.line(
            f"stop_at {promise['wanted']:.0%}: {'kept' if promise['kept'] else 'NOT kept'}; {promise['why']}"
        )
    return summary


def own_examples(bench: Bench) -> list[Example]:
    """What methods with data of their own have trained on."""
    own = [(i, bench.stream_of(m.data)) for i, m in enumerate(bench.recipe.recover) if m.data is not None]
    return [e for i, stream in own for e in stream.take(0, used_by(bench, i, "samples"))]


def _measured_on_less(bench: Bench, stage: Record) -> bool:
    have = {e["task"]: e for e in stage["evals"]}
    return any(
        t.name not in have
        or have[t.name]["n"] < len(t.problems)
        or (t.harness is not None and have[t.name].get("limit") != t.harness.limit)
        for t in bench.tasks
    )


def _control(bench: Bench) -> None:
    """The same size in one round with the same recovery budget, as a run of its own: RUN/control."""
    if bench.recipe.control == "none" or not bench.run.accepted:
        return
    recipe, run = bench.recipe, bench.run
    spent = sum(s["tokens"] for s in run.stages)
    bench.watch.line(f"control: the same size in one round, with the same budget ({spent:,} tokens)")
    methods = [m.changed(**_whole_budget(m, bench)) for m in recipe.recover]
    alone = recipe.changed(
        prune=once_only(prune_of(bench), bench.sizes),
        control="none",
        recover=methods,
        budget="equal",
        stop_at=None,
        tolerance=None,
        anneal="every",
    )
    original = run.path / "control" / "original"
    if not (original / "stage.json").is_file():
        remove(original)
        once(original, {"of": run.original["model_sha"]}, lambda tmp: shutil.copytree(run.path / "original", tmp))
    prune_tune_loop(alone, run.path / "control", bench.watch)


def _whole_budget(method: Any, bench: Bench) -> dict[str, Any]:
    """The budget of all rounds, for one round."""
    rounds = len(bench.run.accepted) if method.per == "round" and method.when == "every" else 1
    return {"per": "run", **{k: v * rounds for k in ("samples", "tokens") if (v := getattr(method, k)) is not None}}
