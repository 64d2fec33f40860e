"""Algorithm 1: prune a little, tune a little, until the target size. Running it again continues.

    score -> plan -> (patch) -> prune -> recover -> measure        one round, each arrow a file in the run folder

Deciding is elsewhere (`decide.decide`, `schedule.next_step`, `plan.make_plan`); here things are made, once.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from prunetune.common.files import once, remove, write_json
from prunetune.common.progress import Watch, watching
from prunetune.common.units import duration
from prunetune.common.yaml import read_yaml
from prunetune.data.stream import Example
from prunetune.errors import Declined
from prunetune.loop.beside.rivals import check_rivals, measure_rivals, rival_records
from prunetune.loop.beside.rungs import finish_rungs, finished, rung_records
from prunetune.loop.context import Context, few_threads, place, prepare
from prunetune.loop.control import ABOUT, control_recipe, name_of
from prunetune.loop.decide import Case, Decision, decide, shared_rounds
from prunetune.loop.measure import latency, original
from prunetune.loop.pacing.memory import check_memory
from prunetune.loop.pacing.within import planned_tokens, within
from prunetune.loop.probe import probed
from prunetune.loop.recovery.shares import scarce_notes, used
from prunetune.loop.round import one_round
from prunetune.loop.sampling.traces import renewed_rows, sampled, sampling_seconds
from prunetune.loop.shapes import shaped
from prunetune.loop.start.again import SAMPLES, check_again, pinned
from prunetune.loop.start.vocabulary import measured, started
from prunetune.loop.summary import leaks, summarise
from prunetune.loop.told import one_answer, quiet_libraries, tell_stage, telling
from prunetune.loop.verdict import hardly_provable
from prunetune.models.folders import resolve_model
from prunetune.recipe.schema import Recipe
from prunetune.recipe.traces import renewed, traces_of
from prunetune.report.conclusion import GOOD, doubts
from prunetune.report.sizes import recommended
from prunetune.report.write import write_report
from prunetune.runs.folder import RunFolder
from prunetune.runs.records import known
from prunetune.runs.summary import Summary


def prune_tune_loop(
    recipe: Recipe | Path | str,
    out: Path | str,
    watch: Watch | None = None,
    *,
    go_on: Callable[[], bool] | None = None,
    began: float | None = None,
) -> Summary:
    """Compact a model by the Prune-Tune Loop (Algorithm 1). Running it again continues where it was.

    Args:
        recipe: What to do: a recipe, the path of one, or the name of a shipped one.
        out: The run folder; made if it is not there.
        watch: Shows lines and bars; the default writes to stderr.
        go_on: Asked before any work if the original's own figures can tell nothing of what is lost; None: go on.
        began: When what the time is counted from began, as `time.monotonic` has it; None: with this call.

    Returns:
        What RUN/summary.json holds.

    Raises:
        Declined: `go_on` said no. The original's answers are kept. Others: see `check_again`, `RunFolder.open`.
    """
    out, watch, began = Path(out), watch or Watch(), time.monotonic() if began is None else began
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.read(recipe)
    source = resolve_model(recipe.model)
    check_rivals(recipe)
    with (
        RunFolder.open(out, recipe, source, partial(check_again, recipe, source, watch=watch)) as run,
        telling(run, recipe, watch) as (journal, told),
        watching(told),
        quiet_libraries(),
        few_threads(recipe, source),
    ):
        if traces_of(recipe):
            prepare(recipe, source, Watch(quiet=True))  # what can fail, before anything is sampled
        context = prepare(pinned(sampled(recipe, run, source, told), run), source, told, journal)
        _pin(recipe, context, run)
        context = within(dataclasses.replace(context, wanted=recipe, began=began), run)
        context = dataclasses.replace(context, opening=max(0.0, time.monotonic() - began - sampling_seconds(run)))
        check_memory(context)
        for note in () if go_on is _told else scarce_notes(context):
            watch.line(note)
        context = started(context, run)
        journal.stage = "original"
        case = begin(context, run)
        _doubt(context, run, go_on)
        context = shaped(context, run, case)
        case = _on(context, run)
        if run.stages:
            watch.line(f"continuing after {run.stages[-1].name}: finished rounds are kept")
        while decision := _next(context, run, case):
            journal.stage = decision.step.name
            tell_stage(journal, recipe, run, one_round(context, run, case, decision))
            case = _on(context, run)
        journal.stage = "control"
        _control(context, run, case)
        measure_rivals(context, run)
        journal.stage = "final"
        return _finish(context, run, case)


def _pin(recipe: Recipe, context: Context, run: RunFolder) -> None:
    """Keep that number, and tell it."""
    if recipe.score.samples == "auto" and (found := context.calibration) is not None:
        once(run.path / SAMPLES, "auto", lambda tmp: write_json(tmp, context.recipe.score.count))
        context.watch.line(found.text(place(context)))


def _told() -> bool:
    """Of a control: the run that it belongs to has told, and asked."""
    return True


def _doubt(context: Context, run: RunFolder, go_on: Callable[[], bool] | None) -> None:
    """A word on an original that is useless as a measure, before hours are spent on it."""
    found = list[str]()
    if not run.stages and go_on is not _told:
        for e in run.original.evals:
            said = [f"{text}; what this run loses will hardly be told" for text in doubts([e])]
            for line in [*(f"warning: {text}" for text in said), *(one_answer(run, e.task) if said else ())]:
                context.watch.line(line)
            found += said
        if text := hardly_provable(context, run.original.evals):
            found.append(text)
            context.watch.line(f"warning: {text}")
    if found and go_on is not None and not go_on():
        raise Declined(
            "stopped before any work, for you answered no",
            value="; ".join(found),
            fix="another task, more problems (--n), its chat template (--set prompt.template=chat), or --yes",
        )


def begin(context: Context, run: RunFolder) -> Case:
    """The untouched model measured, and what the first decision rests on."""
    hardly_provable(context)  # there are problems to decide with, and enough if the rows can be split so
    first = (run.folder("original") / "stage.json").is_file()
    record = original(context.untouched(), run, shared_rounds(context.recipe, context.sizes, run.stages))
    if context.start is not None:
        measured(context, run)
    if context.journal is not None and not first:
        tell_stage(context.journal, context.recipe, run, record)
    return case_of(context, run)


def case_of(context: Context, run: RunFolder) -> Case:
    """What the next decision rests on."""
    start = run.start if context.start is not None else None
    return Case(context.recipe, context.sizes, run.original, tuple(run.stages), len(context.stream), start)


def _on(context: Context, run: RunFolder) -> Case:
    """What the next decision rests on, once the rungs that are reached are finished models."""
    if context.recipe.prune.ladder:
        finish_rungs(context, run, case_of(context, run))
    return case_of(context, run)


def _next(context: Context, run: RunFolder, case: Case) -> Decision | None:
    """The decision on the next round, told; None at the end."""
    decision = decide(case, lambda index, attempt: probed(context, run, case, index, attempt))
    if isinstance(decision, Decision):
        if decision.why:
            context.watch.line(f"  round {decision.step.index}: {decision.why}")
        return decision
    if decision.why:
        context.watch.line(f"  {decision.why}")
    return None


def _finish(context: Context, run: RunFolder, case: Case) -> Summary:
    """final/, summary.json and the report."""
    watch = context.watch
    if case.final == case.original:
        context = context.untouched()
    final = finished(context, run, case.final, run.path / "final")
    case = case_of(context, run)
    timings = latency(context, run, final) if case.final != case.original else None
    trained = [context.stream.take(*known(s.samples, "samples")) for s in case.stages]
    scored = context.scored if context.scores else ()
    seen = [*trained, *own_examples(context, case), scored, renewed_rows(context.recipe, run)]
    leaked = leaks(seen, context.tasks, run.folder("original"))
    for task, found in leaked.items():
        if found.normalised:
            those = f"{found.normalised:,} of the {found.questions:,} questions of {task}"
            watch.line(f"warning: the recovery data hold {those}; read its figures with care")
    summary = _with_others(context, run, case, summarise(context.wanted, run, case.final, timings, leaked))
    if seconds := sampling_seconds(run):
        summary = summary.model_copy(update={"seconds": {**summary.seconds, "traces": round(seconds, 3)}})
    summary = summary.model_copy(update={"planned_tokens": planned_tokens(context)})
    write_json(run.path / "summary.json", summary.to_json())
    write_report(run.path)
    if promise := summary.promise:
        watch.line(f"keep {promise.wanted:.0%}: {'kept' if promise.kept else 'NOT kept'}; {promise.why}")
    if context.clock is not None:
        watch.line(f"within {duration(context.clock.within)}: {duration(context.clock.gone)} since the start")
    return summary


def _with_others(context: Context, run: RunFolder, case: Case, summary: Summary) -> Summary:
    """The summary with the rungs and the rivals, where the recipe has them."""
    recipe, more = context.recipe, dict[str, Any]()
    if recipe.prune.ladder:
        rungs = rung_records(run, case, summary.latency)
        more = {"ladder": rungs, "recommended": recommended(rungs, recipe.stop_at.accuracy if recipe.stop_at else GOOD)}
    if recipe.evaluate.rivals:
        more["rivals"] = rival_records(recipe, run, case.current)
    return summary.model_copy(update=more)


def own_examples(context: Context, case: Case) -> list[Sequence[Example]]:
    """What methods with data of their own have trained on."""
    recipe, stages = context.recipe, case.stages
    lasting = {i: stream for i, stream in context.own.items() if not renewed(recipe.recover[i].data)}
    return [stream.take(0, used(recipe, stages, i)[0]) for i, stream in lasting.items()]


def _control(context: Context, run: RunFolder, case: Case) -> None:
    """The same size made another way with the same recovery budget, as a run of its own: RUN/control."""
    if context.recipe.control == "none" or not case.accepted:
        return
    chosen, at = control_recipe(case), run.path / "control"
    if chosen is None:
        context.watch.line("control: none, for it would be this run again: one round, nothing compensated")
        return
    name, alone = chosen
    spent = sum(known(s.tokens, "tokens") for s in case.stages) if alone.recover else 0
    context.watch.line(f"control ({name}): {ABOUT[name]} ({spent:,} tokens)")
    ours = context.recipe.model_dump(mode="json")
    if (at / "recipe.yaml").is_file() and name_of(ours, read_yaml(at / "recipe.yaml")) != name:
        context.watch.line("control: the one that is there was of another kind; it is made anew")
        remove(at)
    first = at / "original"
    if not (first / "stage.json").is_file():
        remove(first)
        once(first, {"of": case.original.model_sha}, lambda tmp: shutil.copytree(run.path / "original", tmp))
    prune_tune_loop(alone, at, context.watch, go_on=_told)
