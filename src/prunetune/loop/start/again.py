"""A run that is there and is asked for something else than before: whether it can be done, before anything is written.

check_again(recipe, source, run, watch=watch)     # OutOfReach, DataError, ...: a finished run stays as it is
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.markup import escape

from prunetune.common.files import read_json
from prunetune.common.progress import Watch
from prunetune.common.yaml import read_yaml
from prunetune.errors import OutOfReach
from prunetune.loop.beside.rungs import reached
from prunetune.loop.context import Context, prepare
from prunetune.loop.decide import Case, Decision, decide
from prunetune.loop.pacing.memory import check_memory
from prunetune.loop.recovery.shares import active, source_of
from prunetune.loop.sampling.traces import as_sampled
from prunetune.loop.verdict import hardly_provable
from prunetune.recipe.calibration import counted
from prunetune.recipe.schema import Recipe
from prunetune.recipe.traces import renewed, traces_of
from prunetune.runs.folder import RunFolder
from prunetune.runs.inputs import changed_verifiers
from prunetune.runs.records import DecisionRecord, known
from prunetune.schedule.fitting import fits
from prunetune.schedule.target import FinalShape
from prunetune.schedule.wanted import times_of

SAMPLES = ".samples.json"
"""Of a run with `score.samples: auto`: how many sequences that is."""


class _Another(Exception):
    """Another round would be probed."""


def pinned(recipe: Recipe, run: RunFolder) -> Recipe:
    """The recipe with the number of sequences that the run began with: a deeper target does not change it."""
    at = run.path / SAMPLES
    return counted(recipe, int(read_json(at))) if recipe.score.samples == "auto" and at.is_file() else recipe


def check_again(recipe: Recipe, source: Path, run: RunFolder, *, watch: Watch) -> None:
    """Whether a run that is there can do what is asked for now; a verifier that was mended is told.

    A finished run stays finished where a start is refused: so what can be refused is, before its state is touched.

    Args:
        recipe: What is asked for now.
        source: Folder of the untouched model.
        run: The run folder, which is held; it is not written to.
        watch: Shows lines.

    Raises:
        OutOfReach: The run is smaller already, it has gone past a rung, or no recovery data are left for another round.
            Else see `prepare`.
    """
    _tell_mended(recipe, run, watch)
    file = run.path / "recipe.yaml"
    if not run.stages or not file.is_file():
        return
    before, now = read_yaml(file, "recipe"), recipe.model_dump(mode="json")
    if before == now and not (run.path / "summary.json").is_file():
        return
    context = prepare(pinned(as_sampled(recipe, run) or recipe, run), source, Watch(quiet=True))
    if recipe.within is None and not traces_of(recipe):  # else only the plan and the samples tell
        check_memory(context)
    hardly_provable(context)
    if before == now:
        return
    case = Case(context.recipe, context.sizes, run.original, tuple(run.stages), len(context.stream))
    if recipe.prune.ladder:
        reached(case)
    if _goes_on(case, (before or {}).get("prune") or {}) and as_sampled(recipe, run) is not None:
        _check_left(context, case)


def _tell_mended(recipe: Recipe, run: RunFolder, watch: Watch) -> None:
    """A line for each verifier whose file is another than at the last start: two of them have judged this run."""
    if not (run.folder("original") / "stage.json").is_file():
        return
    rounds = len(run.stages)
    judged = f"the original and {rounds} round{'s' * (rounds != 1)}" if rounds else "the original"
    for file in changed_verifiers(run.path, recipe):
        watch.line(
            f"warning: {escape(str(file))} has changed since this run last started: what it judged before ({judged}) "
            "stays as it is, what comes is judged by the file as it is now; a new --out judges all of it anew"
        )


def _goes_on(case: Case, before: Mapping[str, Any]) -> bool:
    """Whether another round follows.

    Args:
        case: Of the recipe that is asked for now.
        before: `prune` of the recipe that was there. A search, and a shape chosen by measuring, have come to their end
            by what was measured: they go on if it has changed.

    Raises:
        OutOfReach: The run is smaller already.
    """
    prune = case.recipe.prune

    def probed(index: int, attempt: int) -> DecisionRecord:
        raise _Another

    if (prune.open or case.recipe.searches) and prune.model_dump(mode="json") == before:
        return False
    if prune.open:
        return _deeper(case, before)
    try:
        return isinstance(decide(case, probed), Decision)
    except _Another:
        return True


def _deeper(case: Case, before: Mapping[str, Any]) -> bool:
    """Whether a target whose shape is chosen by measuring is one that the run has not come to."""
    prune, had, now = case.recipe.prune, before.get("target"), case.current
    if prune.target is None or isinstance(prune.target, FinalShape):
        return True
    if isinstance(prune.target, str) and (times := times_of(prune.target)) is not None:
        further, there = times > ((times_of(had) if isinstance(had, str) else None) or 1.0), str(had)
    else:
        params = known(now.params, "params")
        further = not fits(prune.target, known(case.sizes.cost, "cost"), context=prune.context)(now.shape or {})
        there = f"{params:,} parameters ({params / case.sizes.original:.1%})"
    if not further and prune.target != had:
        raise OutOfReach(
            "this run is already smaller than the target",
            value=prune.target,
            valid=f"less than what is there: {there}",
            fix="choose a deeper target, or a new --out",
        )
    return further


def _check_left(context: Context, case: Case) -> None:
    """OutOfReach if a method of another round would find no example that no round has taken."""
    for i, method in active(context.recipe, last=False):
        if renewed(method.data):  # sampled before each round
            continue
        stream, start = source_of(context, case.stages, i, case.cursor)
        if start < len(stream):
            continue
        size = case.current.params or 0
        kept = 0 if i in context.own else context.reserved
        raise OutOfReach(
            f"no recovery data are left for another round of {method.type}: the finished rounds have taken all",
            value=f"{len(stream):,} sequences: {kept:,} of them to score and to measure with, "
            f"{len(stream) - kept:,} trained on in {len(case.stages)} round{'s' * (len(case.stages) > 1)}",
            valid=f"what is finished: {size / context.sizes.original:.1%} of the parameters",
            fix="this target in a new --out, where all data are shared out anew; "
            "or the target as it was: nothing here is changed",
        )
