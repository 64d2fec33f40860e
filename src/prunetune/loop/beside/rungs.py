"""A stage as a finished model: copied out of its round and asked every question. At the end, and at each rung.

finish_rungs(context, run, case)      # RUN/final-0.8 … of every rung that is reached; what is made stays
rung_records(run, case, last)         # summary.json's `ladder`
"""

from __future__ import annotations

import shutil
from pathlib import Path

from prunetune.common.files import once, write_json
from prunetune.errors import OutOfReach
from prunetune.loop.context import Context, free, holding
from prunetune.loop.decide import Case
from prunetune.loop.measure import answers, flops_of, latency
from prunetune.loop.summary import accuracy
from prunetune.models.cost import cost_of
from prunetune.models.folders import load_config
from prunetune.report.pairs import ahead, keeps, read_samples
from prunetune.report.speed import speedups
from prunetune.runs.folder import RunFolder, link_or_copy
from prunetune.runs.records import FULL, FullRecord, StageRecord, known
from prunetune.runs.summary import RungRecord, Timings, rung_folder
from prunetune.schedule.way import limits


def finished(context: Context, run: RunFolder, stage: StageRecord, at: Path) -> Path:
    """The stage's model at `at`, with its answers to all questions beside its stage.json. Made once.

    Args:
        context: The run.
        run: Its folder.
        stage: The newest one, or one whose model is still there.
        at: The folder to make.
    """
    source = run.model_of(stage)
    if source != at:
        key = {"model": stage.model_sha}
        once(at, key, lambda tmp: shutil.copytree(source, tmp, copy_function=link_or_copy))
    if _measured_on_less(context, stage):
        _measure_all(context, run, stage, at)
    return at


def _measure_all(context: Context, run: RunFolder, stage: StageRecord, final: Path) -> None:
    """The finished model answers all n problems, not round_n: beside its stage.json, which stays as it is."""
    at, sha = run.folder(stage.name), known(stage.model_sha, "model_sha")

    def make(tmp: Path) -> None:
        with holding(context, final) as model:
            evals = answers(context, model, sha, at, None)
        flops = flops_of(context, cost_of(load_config(final)), at)
        write_json(tmp, FullRecord(evals=evals, flops=flops).to_json())
        free()

    asked = context.recipe.evaluate.model_dump(mode="json", exclude={"rivals"})
    once(at / FULL, {"model": sha, "evaluate": asked}, make)


def _measured_on_less(context: Context, stage: StageRecord) -> bool:
    for task in context.tasks:
        have = stage.eval_of(task.name)
        if have is None or (have.n or 0) < len(task.problems):
            return True
        if task.harness is not None and have.limit != task.harness.limit:
            return True
    return False


# ------------------------------------------------------------------------------------------------------------- rungs


def reached(case: Case) -> list[tuple[float, StageRecord]]:
    """The rungs that the run has reached, each with its stage: the first one that is no larger.

    Raises:
        OutOfReach: A rung was added to a run that had gone past it.
    """
    prune = case.recipe.prune
    found: list[tuple[float, StageRecord]] = []
    ends = [*limits(prune, case.sizes)[:-1], case.sizes.params(*case.target)] if prune.ladder else []
    for share, most in zip(prune.ladder or (), ends, strict=True):
        stage = next((s for s in case.accepted if case.sizes.params(*s.place) <= most), None)
        if stage is None:
            break
        if found and found[-1][1] is stage:
            raise OutOfReach(
                "this run has gone past a rung of its ladder",
                value=f"{found[-1][0]:g}: {stage.name} went on to {share:g} at once",
                valid="rungs below what is finished",
                fix="leave that rung out, or start again in a new --out",
            )
        found.append((share, stage))
    return found


def finish_rungs(context: Context, run: RunFolder, case: Case) -> None:
    """RUN/final-0.8 and so on of every rung that is reached, asked everything and timed. What is made stays."""
    journal = context.journal
    for share, stage in reached(case):
        at = run.path / rung_folder(share)
        if journal is not None:
            journal.stage = at.name
        new = not at.exists()
        finished(context, run, stage, at)
        if share != (context.recipe.prune.ladder or [share])[-1]:  # the last one is RUN/final, and timed as that
            latency(context, run, at, _timings(share))
        if new:
            context.watch.line(f"  the rung {share:g} is a finished model: {at}")


def rung_records(run: RunFolder, case: Case, last: Timings | None) -> tuple[RungRecord, ...]:
    """The rungs as summary.json has them.

    Args:
        run: The run folder.
        case: All rounds are done, and all rungs finished.
        last: Times of the original and the smallest model, if they were taken.
    """
    first, rungs = case.original, reached(case)
    base = known(first.params, "params")
    found = []
    for share, stage in rungs:
        file = run.path / _timings(share)
        timings = Timings.read(file) if share != rungs[-1][0] and file.is_file() else None
        timings = last if share == rungs[-1][0] else timings
        old, new = run.folder(first.name), run.folder(stage.name)
        pairs = {t: (read_samples(old, t), read_samples(new, t)) for t in _shares(first)}
        taken = case.stages[: 1 + case.stages.index(stage)]
        found.append(
            RungRecord(
                share=share,
                folder=rung_folder(share),
                stage=stage.name,
                params=stage.params,
                params_ratio=known(stage.params, "params") / base,
                weight_bytes=stage.cost.weight_bytes,
                recovery_tokens=sum(known(s.tokens, "tokens") for s in taken),
                accuracy=accuracy(first, stage),
                against={t: a for t, two in pairs.items() if (a := ahead(*two)) is not None},
                kept={t: k for t, two in pairs.items() if (k := keeps(*two)) is not None},
                speedup=speedups(timings or Timings(), first, stage),
                latency=timings,
            )
        )
    return tuple(found)


def _shares(stage: StageRecord) -> list[str]:
    return [e.task for e in stage.evals if e.is_share]


def _timings(share: float) -> str:
    """In the run folder: the times of the original and of a rung's model."""
    return f".latency-{share}.json"
