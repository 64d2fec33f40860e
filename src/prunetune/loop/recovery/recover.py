"""Recovery of one round (Algorithm 1, lines 9-10), the loop's and every baseline's: methods one after another.

records = recover(context, timed, pruned, parts, stages, cursor, key)     # the model is then in `timed.at / "tuned"`
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from prunetune.common.files import remove, write_json
from prunetune.data.stream import Stream
from prunetune.loop.context import Context, free
from prunetune.loop.recovery.harmless import no_worse
from prunetune.loop.recovery.shares import Part, examples_of, source_of, used
from prunetune.models.folders import copy_files
from prunetune.runs.folder import Timed, link_or_copy
from prunetune.runs.records import StageRecord, TuneRecord, known
from prunetune.tune.job import Telemetry, TuneJob, TuneResult
from prunetune.tune.launch import launch


def recover(
    context: Context,
    timed: Timed,
    before: Path,
    parts: Sequence[Part],
    stages: Sequence[StageRecord],
    cursor: int,
    key: Mapping[str, object],
    *,
    carry: Sequence[str] = (),
    origins: tuple[int, ...] | None = None,
) -> list[TuneRecord]:
    """Recover a model with each method in turn, each on its own part of the data; every step is made once.

    Args:
        context: The run.
        timed: The round's folder; the result is in its `tuned/`, what was done in `tune-N-METHOD.json`.
        before: Folder of the cut model.
        parts: What each method may take.
        stages: The finished rounds.
        cursor: First example of the recipe's stream that this round may take.
        key: All that the result comes from, beside the methods.
        carry: Files of `before` that the result has too.
        origins: Of each layer of the cut model, its place in the original; None: none went.

    Raises:
        OutOfReach: No data are left. TuneError: As the methods have it.
    """
    if not parts:  # a bare cut
        copied = partial(shutil.copytree, before, copy_function=link_or_copy)
        timed.once("tuned", "tune", {**key, "recover": []}, copied)
    model, records = before, list[TuneRecord]()
    done: list[object] = []
    for n, part in enumerate(parts, start=1):
        last, work = n == len(parts), timed.at / f".tuned-{part.place}"
        note = timed.at / f"tune-{part.place}-{part.method.type}.json"
        stream, first = source_of(context, stages, part.place, cursor)
        start, end = examples_of(stream, first, part.samples)
        job = _job(context, part, model, work, start, end).model_copy(update={"origins": origins})
        asked = context.recipe.recover[part.place].tokens
        whole = asked if part.tokens is None else None  # then all the data are the budget
        earlier = used(context.recipe, stages, part.place)[1] if whole else 0
        harmless = before if last and context.recipe.do_no_harm else None
        task = _Task(job, note, part.tokens or whole, earlier, stream, harmless, carry)
        done.append(part.method.model_dump(mode="json"))
        own = {"own": start} if part.place in context.own else {}
        step_key = {**key, "method": part.place, "recover": list(done), **own}
        model = timed.once("tuned" if last else f".step-{part.place}", "tune", step_key, partial(_run, context, task))
        records.append(TuneRecord.read(note))
        cursor += known(records[-1].samples, "samples") if part.place not in context.own else 0
        remove(work)
    return records


@dataclass(frozen=True)
class _Task:
    """One method's job, and what is done with its result; `harmless`: the cut model that it must not be worse than;
    `tokens` are those that it was to have, of which rounds before it took `earlier`.
    """

    job: TuneJob
    note: Path
    tokens: int | None
    earlier: int
    stream: Stream
    harmless: Path | None
    carry: Sequence[str]


def _run(context: Context, task: _Task, tmp: Path) -> None:
    """Do a job, with its result in `tmp`."""
    job = task.job.model_copy(update={"out": tmp})
    with context.watch.bar(f"tune {job.method.type}", told=job.telemetry is None) as bar:
        result = launch(job, context.recipe.launcher, bar)
    result = _stopped(context, _short(context, result, task))
    if task.harmless is not None:
        result = no_worse(context, task.harmless, tmp, job.work, result)
    copy_files(job.model, tmp, task.carry)
    write_json(task.note, result.to_json())
    free()


def taken(context: Context, parts: Sequence[Part], records: Sequence[TuneRecord]) -> int:
    """How many examples of the recipe's own stream a round took."""
    pairs = zip(parts, records, strict=True)
    return sum(known(r.samples, "samples") for p, r in pairs if p.place not in context.own)


def _job(context: Context, part: Part, model: Path, work: Path, start: int, end: int) -> TuneJob:
    """The job of one method; where its result goes is known when it is made."""
    recipe = context.recipe
    return TuneJob(
        model=model,
        out=work,
        work=work,
        method=part.method.changed(samples=None, tokens=None, per="round", when="every", data=None),
        sources=tuple(part.method.data or recipe.data),
        data_seed=recipe.seed,
        start=start,
        end=end,
        tokens=part.tokens,
        seconds=part.seconds,
        seed=recipe.seed,
        fmt=recipe.prompt,
        teacher=context.begins,
        device=recipe.device,
        task=recipe.evaluate.judged,
        telemetry=_telemetry(context),
    )


def _telemetry(context: Context) -> Telemetry | None:
    """Where the job tells of its steps."""
    if (journal := context.journal) is None:
        return None
    at = journal.path.absolute()
    return Telemetry(events=at, stage=journal.stage, run=at.parent.name, log=context.recipe.log)


def _stopped(context: Context, result: TuneResult) -> TuneResult:
    """Say so where the time ended it."""
    if result.steps >= result.planned:
        return result
    note = f"recovery ({result.method}) stopped after {result.steps:,} of {result.planned:,} steps: the time was up"
    context.watch.line(f"  {note}")
    return dataclasses.replace(result, notes=[*result.notes, note])


def _short(context: Context, result: TuneResult, task: _Task) -> TuneResult:
    """Say so where the data held fewer tokens than the round was to have."""
    had, wanted = task.earlier + (result.data_tokens or result.tokens), task.tokens
    if not wanted or had >= 0.9 * wanted or task.job.start + result.samples < len(task.stream):
        return result
    note = f"{result.method}: {had:,} of {wanted:,} tokens: the data hold no more"
    context.watch.line(f"  {note}")
    return dataclasses.replace(result, notes=[*result.notes, note])
