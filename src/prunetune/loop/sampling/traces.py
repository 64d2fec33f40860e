"""Own traces as data of a run: sampled before they are used, kept in RUN/traces, and read like any file from there.

    recipe = sampled(recipe, run, source, watch)        # what is sampled once, before the run reads its data
    context = renewed_for(context, run, case, index)    # what is sampled anew before round `index`

A file is made once, batch by batch, so that a killed run goes on in the midst of it (`tune/traces.py`).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

from prunetune.common.files import is_made, json_sha, read_json, write_json
from prunetune.common.progress import Watch
from prunetune.data.sources import Sampling
from prunetune.data.stream import Example, FileData, TracesData, load_stream
from prunetune.loop.context import Context, free
from prunetune.loop.decide import Case
from prunetune.models.folders import model_sha
from prunetune.recipe.schema import Recipe
from prunetune.recipe.traces import judge_of, renewed, replaced, traces_of
from prunetune.runs.folder import RunFolder
from prunetune.tune.traces import TraceJob, Traces, make_traces

TRACES = "traces"
"""Folder of a run: NAME.jsonl, or NAME-ROUND.jsonl where they are renewed."""


def sampled(recipe: Recipe, run: RunFolder, source: Path, watch: Watch) -> Recipe:
    """The recipe with files in the place of traces that are sampled once; those that rounds renew stand as they are."""
    return replaced(recipe, lambda t: t if t.renew else _file(recipe, run, t, source, watch, None))


def as_sampled(recipe: Recipe, run: RunFolder) -> Recipe | None:
    """The same of a run that has sampled them, by what lies in its folder; None: some are not there yet."""
    once = [t for t in traces_of(recipe) if not t.renew]
    if not all(once_sampled(run, t).is_file() for t in once):
        return None
    return replaced(recipe, lambda t: t if t.renew else FileData(path=str(once_sampled(run, t))))


def once_sampled(run: RunFolder, traces: TracesData) -> Path:
    """The file of traces that are sampled once."""
    return run.path / TRACES / f"{_name(traces)}.jsonl"


def renewed_for(context: Context, run: RunFolder, case: Case, index: int) -> Context:
    """The context of a round, with what is sampled before it; the same context where nothing is."""
    recipe = context.recipe
    if not any(t.renew for t in traces_of(recipe)):
        return context

    def file(traces: TracesData) -> FileData:
        model = context.source if traces.of == "original" else run.model_of(case.current)
        return _file(recipe, run, traces, model, context.watch, index)

    fresh = replaced(recipe, file)
    again = {i for i, method in enumerate(recipe.recover) if renewed(method.data)}
    own = {
        i: load_stream(fresh.recover[i].data or (), recipe.seed) if i in again else s for i, s in context.own.items()
    }
    scores = load_stream(fresh.score.data, recipe.seed) if fresh.score.data else None
    return dataclasses.replace(context, recipe=fresh, own=own, fresh=frozenset(again), scores=scores)


def _name(traces: TracesData) -> str:
    return json_sha(traces.model_dump(mode="json"))[:8]


def _file(recipe: Recipe, run: RunFolder, traces: TracesData, model: Path, watch: Watch, index: int | None) -> FileData:
    """Sample, once; `index`: of the round, which gives the seed and the questions."""
    name = f"{_name(traces)}{'' if index is None else f'-{index:02d}'}.jsonl"
    first, end = 0, traces.n
    if index is not None and traces.n is not None:
        whole = len(load_stream([traces.source], recipe.seed))
        first = (index - 1) * traces.n % max(1, whole)
        end = min(whole, first + traces.n)
    job = TraceJob(
        model=model,
        out=run.path / TRACES / name,
        sources=(traces.source,),
        task=judge_of(recipe, traces),
        data_seed=recipe.seed,
        start=first,
        end=end,
        seed=recipe.seed + (index or 0),
        fmt=recipe.prompt,
        device=recipe.device,
        **traces.model_dump(include=set(Sampling.model_fields)),
    )
    key = [job.model_dump(mode="json", exclude={"model", "out", "device"}), model_sha(model)]
    if not is_made(job.out, key):
        begin = time.monotonic()
        with watch.bar(f"sample traces of the {traces.of} model") as bar:
            made = make_traces(job, bar, key)
        write_json(job.out.with_name(f".{name}.seconds"), round(time.monotonic() - begin, 3))
        watch.line(f"  traces: {_told(made)}")
        free()
    return FileData(path=str(job.out))


def _told(made: Traces) -> str:
    """What sampling gave, in words."""
    return (
        f"{made.kept:,} verified answers to {made.solved:,} of {made.questions:,} questions "
        f"({made.correct:.0%} of the samples were right)"
    )


def renewed_rows(recipe: Recipe, run: RunFolder) -> Iterator[Example]:
    """All rows that rounds have sampled anew, for the check against the evaluation's questions."""
    for traces in traces_of(recipe):
        if traces.renew:
            for path in sorted((run.path / TRACES).glob(f"{_name(traces)}-*.jsonl")):
                yield from load_stream([FileData(path=str(path))], recipe.seed).examples


def sampling_seconds(run: RunFolder) -> float:
    """How long sampling took in all rounds."""
    return sum(float(read_json(note)) for note in (run.path / TRACES).glob(".*.seconds"))
