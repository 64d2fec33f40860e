"""One stage of a baseline that is no prune plan: recovered and measured as the loop recovers and measures a round.

    record = make_row(context, run, Row(index=1, name="01-slicegpt-384", ...))

The same stream from the same place, the recipe's methods and budget through the loop's own `recover`, the same
questions; the record has the loop's keys, so that `compare` and a study read it like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from prunetune.common.files import remove, write_json
from prunetune.errors import RecipeError
from prunetune.loop.context import Context, free
from prunetune.loop.measure import figures_of, held_out_loss, latency, line_of, stage_record
from prunetune.loop.recovery.recover import recover, taken
from prunetune.loop.recovery.shares import parts_of
from prunetune.loop.summary import leaks, summarise
from prunetune.models.cost import Cost
from prunetune.models.folders import load_model, model_sha
from prunetune.recipe.schema import Recipe
from prunetune.recipe.traces import traces_of
from prunetune.runs.folder import RunFolder, Timed
from prunetune.runs.records import Figures, Removed, StageRecord, Verdict, known
from prunetune.runs.summary import Summary


def check_recipe(recipe: Recipe) -> None:
    """RecipeError for what a baseline's run cannot do: thresholds in place of a size, a launcher, traces."""
    if recipe.prune.by_threshold:
        raise RecipeError("a baseline needs a size to stay within", value="thresholds", fix="give prune.target")
    if recipe.launcher is not None:
        raise RecipeError(
            "a baseline is recovered in this process", value=f"launcher: {recipe.launcher}", fix="no launcher"
        )
    if any(m.data is not None for m in recipe.recover):
        raise RecipeError("a baseline is recovered on the recipe's data alone", fix="leave out data under recover")
    if traces := traces_of(recipe):
        raise RecipeError(
            "a baseline samples nothing",
            value=traces[0].type,
            fix="name the file that a run has made: RUN/traces/….jsonl",
        )
    if any(m.type == "local" for m in recipe.recover):
        raise RecipeError(
            "a baseline has no layers to teach by those of the original", value="local", fix="leave it out"
        )


@dataclass(frozen=True)
class Row:
    """What decides a stage.

    Attributes:
        index: Place among the run's stages, from 1.
        name: Folder of the stage; starts with the index in two digits.
        cost: Of the model.
        why: What the model is, in words, for stage.json.
        removed: What was cut, for stage.json.
        rounds: Stages that share the budget.
        key: What the input of recovery was made from.
        model: The input of recovery, or of `cut`.
        cut: Makes that input in a folder of the stage; None: `model` as it is.
    """

    index: int
    name: str
    cost: Cost
    why: str
    removed: Removed
    rounds: int
    key: Mapping[str, object]
    model: Path
    cut: Callable[[Path], None] | None = None


def make_row(context: Context, run: RunFolder, row: Row) -> StageRecord:
    """Cut, recover, measure, record; a finished stage is only read."""
    at, before = run.folder(row.name), [s for s in run.stages if s.index < row.index]
    if found := next((s for s in run.stages if s.name == row.name), None):
        return found
    timed = Timed(at)
    cut = row.model if row.cut is None else timed.once("pruned", "apply", row.key, row.cut)
    cursor = known(before[-1].samples, "samples")[1] if before else context.reserved
    last = row.index == row.rounds
    parts = parts_of(context, before, cursor, rounds=row.rounds, share=None, last=last)
    key = {**row.key, "seed": context.recipe.seed, "start": cursor, "do_no_harm": context.recipe.do_no_harm}
    recovered = recover(context, timed, cut, parts, before, cursor, key, carry=["README.md"])
    sha = model_sha(at / "tuned")

    def measure(tmp: Path) -> None:
        pruned_loss = held_out_loss(context, load_model(cut, device=context.device)) if row.cut else None
        model = load_model(at / "tuned", device=context.device)
        figures = figures_of(context, model, sha, at, None, cost=row.cost, pruned_loss=pruned_loss)
        write_json(tmp, figures.to_json())

    tasks = [t.model_dump(mode="json") for t in context.recipe.evaluate.tasks]
    figures = Figures.read(timed.once(".measured.json", "evaluate", {"model": sha, "tasks": tasks}, measure))
    record = stage_record(
        context,
        context.config,
        figures,
        index=row.index,
        name=row.name,
        model_sha=sha,
        samples=(cursor, cursor + taken(context, parts, recovered)),
        tokens=sum(known(r.tokens, "tokens") for r in recovered),
        tune=tuple(recovered),
        rounds=row.rounds,
        removed=row.removed,
        seconds={**dict.fromkeys(("score", "plan", "apply", "tune"), 0.0), **timed.seconds},
        verdict=Verdict(accepted=True, why=row.why),
    )
    run.record(record)
    remove(at / "pruned")
    context.watch.line(line_of(record, run.original))
    free()
    return record


def conclude(context: Context, run: RunFolder, stage: StageRecord, **more: str) -> Summary:
    """Write summary.json with the loop's keys and `more`, the last stage being the result.

    Latency is measured in turns with the original, if the recipe wants it.
    """
    used = [context.stream.take(*known(s.samples, "samples")) for s in run.stages]
    timings = latency(context, run, run.folder(stage.name) / "tuned")
    found = leaks(used, context.tasks, run.folder("original"))
    summary = summarise(context.recipe, run, stage, timings, found).model_copy(update=more)
    write_json(run.path / "summary.json", summary.to_json())
    return summary
