"""How a model of the run is measured: its answers, its held-out loss, its times; and the stage record made of it.

figures = figures_of(context, model, sha, at, n=None)           # a model's part of stage.json
record = stage_record(figures, index=1, name=at.name, ...)      # the one place where a stage is composed
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field
from transformers import PreTrainedModel

from prunetune.common.files import once, write_json
from prunetune.common.reading import read_json_lines, validated
from prunetune.evaluation.evaluate import EvalResult, evaluate
from prunetune.evaluation.latency import Latency, measure
from prunetune.evaluation.loss import reasoning_loss
from prunetune.evaluation.spread import Spread
from prunetune.loop.context import Context, free, holding
from prunetune.models.cost import Cost, cost_of
from prunetune.models.folders import model_sha
from prunetune.models.shape import Shape
from prunetune.report.speed import ENOUGH
from prunetune.runs.folder import RunFolder, Timed
from prunetune.runs.records import CostRecord, EvalRecord, Figures, StageRecord, Verdict
from prunetune.runs.summary import Timings
from prunetune.tasks.registry import Task

LATENCY = ".latency.json"
"""In the run folder: the times of original and final model."""
BATCH = 8
"""Questions at once when throughput is measured."""


def samples_of(at: Path, task: Task) -> Path:
    """Where a stage keeps its answers to a task."""
    return at / "eval" / f"{task.name.replace('/', '_')}.jsonl"


def answer(context: Context, task: Task, model: PreTrainedModel | Spread, sha: str, at: Path) -> EvalResult:
    """One task; the samples go into the stage's folder, and a killed evaluation goes on from them."""
    with context.watch.bar(f"evaluate {task.name}") as bar:
        return evaluate(
            model,
            context.tokenizer,
            task,
            fmt=context.recipe.prompt,
            out=samples_of(at, task),
            batch_size=context.recipe.evaluate.batch_size,
            progress=bar,
            key=sha,
        )


def answers(
    context: Context, model: PreTrainedModel | Spread, sha: str, at: Path, n: int | None
) -> tuple[EvalRecord, ...]:
    """All tasks, the first `n` problems of each (None: all)."""
    results = (answer(context, task.first(n), model, sha, at) for task in context.tasks)
    return tuple(EvalRecord.model_validate(r.to_json()) for r in results)


def held_out_loss(context: Context, model: PreTrainedModel | Spread) -> float:
    """Mean next-token loss (nats) over the answers of the held-out sequences."""
    limit = context.recipe.score.max_length
    return reasoning_loss(model, context.tokenizer, context.held_out, context.recipe.prompt, limit)[0]


def loss_of(context: Context, folder: Path) -> float:
    """The same of a model's folder."""
    with holding(context, folder) as model:
        return held_out_loss(context, model)


class _Lengths(BaseModel):
    """What of a sample decides its cost."""

    prompt_tokens: int = Field(ge=0, le=10**9)
    new_tokens: int = Field(ge=0, le=10**9)


def per_question(cost: Cost, samples: Path) -> float | None:
    """Mean FLOPs a question, from each question's own prompt and generated lengths (Table 1's average)."""
    if not samples.is_file():
        return None
    totals = []
    fix = "delete the file and evaluate again"
    for number, row in read_json_lines(samples, "samples file", fix=fix):
        found = validated(_Lengths, row, f"{samples}, line {number}", "sample", fix=fix)
        totals.append(cost.flops(found.prompt_tokens, max(1, found.new_tokens)).total)
    return sum(totals) / len(totals) if totals else None


def flops_of(context: Context, cost: Cost, at: Path) -> dict[str, float | None]:
    """Mean FLOPs a question, by task, from the answers in a stage's folder."""
    return {task.name: per_question(cost, samples_of(at, task)) for task in context.tasks}


def figures_of(
    context: Context,
    model: PreTrainedModel | Spread,
    sha: str,
    at: Path,
    n: int | None,
    *,
    cost: Cost | None = None,
    pruned_loss: float | None = None,
) -> Figures:
    """Everything that is measured of a model.

    Args:
        context: The run.
        model: On the context's device, or on several.
        sha: Of the model; answers of another are not taken for its own.
        at: The stage's folder.
        n: Problems of each task; None: all.
        cost: Of the model, where its config does not tell.
        pruned_loss: Held-out loss before recovery, if there was a cut.
    """
    evals = answers(context, model, sha, at, n)
    cost = cost or cost_of(model.config)
    return Figures(
        cost=CostRecord.model_validate({**cost.to_json(), "flops": flops_of(context, cost, at)}),
        evals=evals,
        pruned_loss=pruned_loss,
        held_out_loss=held_out_loss(context, model),
    )


def stage_record(context: Context, config: Any, figures: Figures, **rest: Any) -> StageRecord:
    """A whole stage.json.

    Args:
        context: The run.
        config: Of the stage's model; its shape is recorded.
        figures: What was measured of it.
        rest: The other fields of `StageRecord`; those of a stage that took and removed nothing are the default.
    """
    shape = Shape.of(config)
    nothing = {"samples": (context.reserved, context.reserved), "tokens": 0, "tune": (), "step": None, "attempt": 1}
    return StageRecord.model_validate(
        {
            **nothing,
            "removed": {"neurons": 0, "layers": ()},
            "depth": config.num_hidden_layers,
            "width": shape.width,
            "shape": shape.counts(),
            **{key: getattr(figures, key) for key in ("cost", "evals", "pruned_loss", "held_out_loss")},
            **rest,
        }
    )


def original(context: Context, run: RunFolder, rounds: int) -> StageRecord:
    """Measure the untouched model, the same way as every round, once."""
    at, recipe = run.folder("original"), context.recipe
    asked = recipe.evaluate.model_dump(mode="json", exclude={"rivals"})
    key = {"evaluate": asked, "model": str(recipe.model), "v": 1}

    def make(tmp: Path) -> None:
        start, sha = time.monotonic(), model_sha(context.source)
        with holding(context, context.source) as model:
            figures = figures_of(context, model, sha, at, None)
        record = stage_record(
            context,
            context.config,
            figures,
            index=0,
            name="original",
            model_sha=sha,
            rounds=rounds,
            seconds={"start": round(context.opening, 3), "evaluate": round(time.monotonic() - start, 3)},
            verdict=Verdict(accepted=True, why="the untouched model"),
        )
        write_json(tmp, record.to_json())

    once(at / "stage.json", key, make)
    context.watch.line(line_of(run.original, run.original))
    return run.original


def latency(context: Context, run: RunFolder, final: Path, name: str = LATENCY) -> Timings | None:
    """Original and final model timed in turns, at batch 1 and `BATCH`; None if the recipe does not want it.

    Args:
        context: The run.
        run: Its folder.
        final: Folder of the smaller model.
        name: Of the file in the run folder.
    """
    repeats = context.recipe.evaluate.latency_repeats
    if not repeats:
        return None

    def make(tmp: Path) -> None:
        models = {"original": context.load(context.source), "final": context.load(final)}
        settle = repeats >= ENOUGH  # fewer are no measurement, and are wanted as they are

        def timed(batch: int, share: float) -> dict[str, Latency]:
            with context.watch.bar(f"time {batch} at a time") as bar:
                most = context.clock.remains * share if context.clock else None
                return measure(models, batch=batch, repeats=repeats, settle=settle, progress=bar, most=most)

        alone, many = timed(1, 0.3), timed(BATCH, 0.6)  # of what is left: the report comes after
        found = {name: timed.to_json() for name, timed in alone.items()}
        write_json(tmp, {**found, "batched": {name: timed.to_json() for name, timed in many.items()}})
        models.clear()
        free()

    key = {"model": model_sha(final), "repeats": repeats, "batch": BATCH, "paired": True}
    return Timings.read(Timed(run.path).once(name, "latency", key, make))


def line_of(stage: StageRecord, first: StageRecord) -> str:
    """One line a round: name, size, accuracy."""
    size, whole = stage.params or 0, first.params or 1
    scores = "  ".join(", ".join(filter(None, (f"{e.task} {e.text()}", e.size()))) for e in stage.evals)
    loss = f"held-out loss {stage.held_out_loss:.3f}" if stage.held_out_loss is not None and not scores else ""
    if stage.pruned_loss:
        before = f"original {first.held_out_loss:.3f}, " if first.held_out_loss is not None else ""
        loss = f"held-out loss: {before}cut {stage.pruned_loss:.3f}, recovered {stage.loss:.3f}"
    figures = "  ".join(filter(None, (scores, loss)))
    return f"  {stage.name:<20} {size / 1e6:9.2f} M  {size / whole:6.1%}  {figures}"
