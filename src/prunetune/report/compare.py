"""The paper's Table 1 for any runs: accuracy, FLOPs, speed-up, recovery; differences tested on the same questions.

    print(compare([Path("runs/demo")]).to_text())      # its original, its result, its control if it has one

Every model is tested against the first run's result by McNemar's exact test, question by question (`stats.py`).
Speed-ups are those that each run measured against its own original, in turns, in one process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prunetune.common.outputs import is_unchanged, output_file
from prunetune.common.stats import Paired, wilson
from prunetune.common.strict_json import to_json_text
from prunetune.errors import DataError, MissingPath, RecipeError, UnknownName
from prunetune.evaluation.samples import Sample
from prunetune.report.pairs import read_samples, side_by_side
from prunetune.report.question_cost import QuestionCost, question_cost, stage_cost
from prunetune.report.speed import Speedup, speedup
from prunetune.runs.ours import verify_run
from prunetune.runs.reading import RunRecord, read_run
from prunetune.runs.records import EvalRecord, StageRecord

if TYPE_CHECKING:
    from prunetune.report.figures.draw import Plot


@dataclass(frozen=True)
class TaskResult:
    """One model on one data set.

    Attributes:
        result: Accuracy (or perplexity) as recorded.
        interval: Wilson's 95 % interval of the accuracy, None if counts were not recorded or it is no accuracy.
        flops: Mean FLOPs a question as recorded.
        cost: The same split into prefill and decode, None where samples or config are not on disk.
        speedup_question: Time per question, the run's original / this model; None if not measured.
        speedup_token: The same per generated token.
        seconds_question: Wall time of the evaluation divided by its questions, at the batch size used there.
        paired: This model against the first run's result (`lost` = right in the first alone); None for that result
            itself, or where no question is shared.
    """

    result: EvalRecord
    interval: tuple[float, float] | None
    flops: float | None
    cost: QuestionCost | None
    speedup_question: Speedup | None
    speedup_token: Speedup | None
    seconds_question: float | None
    paired: Paired | None


@dataclass(frozen=True)
class Model:
    """One row: an original, a run's result, or a control. `share` is of the first original's parameters."""

    name: str
    kind: str
    params: int | None
    share: float | None
    recovery_tokens: int | None
    recovery_seconds: float | None
    tasks: dict[str, TaskResult]


@dataclass(frozen=True)
class Comparison:
    """Models in rows, data sets in columns; `reference` names the model that the tests are against."""

    models: tuple[Model, ...]
    tasks: tuple[str, ...]
    reference: str
    runs: tuple[RunRecord, ...]

    def to_text(self) -> str:
        """Tables for a terminal, one a data set."""
        from prunetune.report.compare_text import text

        return text(self)

    def to_markdown(self) -> str:
        """The same tables as Markdown."""
        from prunetune.report.compare_text import markdown

        return markdown(self)

    def to_csv(self) -> str:
        """One line a model and data set, every figure unrounded."""
        from prunetune.report.compare_text import csv

        return csv(self)

    def render(self, form: str) -> str:
        """One of FORMATS by name; UnknownName for another."""
        if form not in FORMATS:
            raise UnknownName("format", form, FORMATS)
        return FORMATS[form](self)

    def write_figure(self, path: Path) -> None:
        """Write `plot` as an SVG file; DataError where no data set was measured at every stage."""
        made = self.plot()
        if made is None:
            raise DataError(
                "these runs share no data set that every stage measured", fix="compare them without a figure"
            )
        with output_file(path, _is_figure) as tmp:
            tmp.write_text(made.svg, encoding="utf-8")

    def plot(self) -> Plot | None:
        """Accuracy against size, a line a run (Fig. 4); None where the records do not allow it."""
        from prunetune.report.figures.plots import across

        return across(self.runs, [m.name for m in self.models if m.kind != "original"])

    def to_json(self) -> list[dict[str, object]]:
        """The rows of `to_csv` as values."""
        from prunetune.report.compare_text import flat

        return flat(self)


def _is_figure(path: Path) -> bool:
    """Whether a file is a drawing that we made and nobody has touched."""
    return is_unchanged(path) and b"<svg" in path.read_bytes()[:2000]


FORMATS: dict[str, Callable[[Comparison], str]] = {
    "text": Comparison.to_text,
    "markdown": Comparison.to_markdown,
    "csv": Comparison.to_csv,
    "json": lambda c: to_json_text(c.to_json()) + "\n",
}


def compare(runs: Sequence[Path]) -> Comparison:
    """Compare the results of run folders; a single run is also compared with its own control, if it has one.

    Raises:
        RecipeError: No run was named.
        MissingPath: A folder holds no run, or a run without a finished stage.
    """
    if not runs:
        raise RecipeError("there is nothing to compare", fix="name at least one run folder")
    for path in runs:
        verify_run(path)
    records = [read_run(p) for p in runs]
    if len(records) == 1 and records[0].control is not None:
        records.append(records[0].control)
    for record in records:
        if record.final is None:
            raise MissingPath("no stage of this run is finished", value=str(record.path), fix="run it first")
    names = _names([r.path for r in records])
    first = records[0]
    reference = {t: _samples(first, first.final, t) for t in first.tasks}
    base = first.original.params if first.original else None
    models, seen = [], set()
    for name, record in zip(names, records, strict=True):
        original = record.original
        if original is not None and (original.model_sha or name) not in seen:
            seen.add(original.model_sha or name)
            label = str(record.recipe.get("model") or "original")
            models.append(_model(record, original, f"{label} (original)", "original", base=base, reference=reference))
        if record.final is not None:
            kind = "control" if record.path.name == "control" else "run"
            mine = None if record is first else reference
            models.append(_model(record, record.final, name, kind, base=base, reference=mine))
    tasks = tuple(dict.fromkeys(t for r in records for t in r.tasks))
    return Comparison(tuple(models), tasks, names[0], tuple(records))


def _names(paths: list[Path]) -> list[str]:
    """Folder names, with as many parents as it takes to tell them apart; a control always with its parent."""
    names = []
    for path in paths:
        parts, others = path.resolve().parts, [p.resolve().parts for p in paths if p is not path]
        n = 2 if parts[-1] == "control" else 1
        while n < len(parts) and any(o[-n:] == parts[-n:] for o in others):
            n += 1
        names.append("/".join(parts[-n:]))
    return names


def _samples(run: RunRecord, stage: StageRecord | None, task: str) -> dict[str, Sample]:
    return read_samples(run.folder(stage), task) if stage is not None else {}


def _model(
    run: RunRecord,
    stage: StageRecord,
    name: str,
    kind: str,
    *,
    base: int | None,
    reference: dict[str, dict[str, Sample]] | None,
) -> Model:
    original = kind == "original"
    cost = stage_cost(run, stage)
    tasks = {}
    for e in stage.evals:
        samples = _samples(run, stage, e.task)
        pair = side_by_side(e.task, reference.get(e.task, {}), samples) if reference is not None else None
        tasks[e.task] = TaskResult(
            result=e,
            interval=wilson(e.correct, e.n) if e.is_share and e.correct is not None and e.n else None,
            flops=stage.cost.flops.get(e.task),
            cost=question_cost(cost, samples.values()) if cost is not None else None,
            speedup_question=Speedup(1.0) if original else speedup(run, e.task, "question"),
            speedup_token=Speedup(1.0) if original else speedup(run, e.task, "token"),
            seconds_question=e.seconds / e.n if e.seconds is not None and e.n else None,
            paired=pair.counts if pair is not None else None,
        )
    tokens, seconds = (0, 0.0) if original else (run.recovery_tokens(), run.seconds().get("tune"))
    share = stage.params / base if stage.params and base else None
    return Model(name, kind, stage.params, share, tokens, seconds, tasks)
