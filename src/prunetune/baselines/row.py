"""One stage of a baseline that is no prune plan: recovered and measured as the loop recovers and measures a round.

    stage = Row(bench, index=1, name="01-slicegpt-384", model=at / "pruned", ...).make()

The same stream from the same place, the recipe's methods and budget through `tune.job.run_job`, the same questions; the
record has the loop's keys, so that `compare` and a study read it like any other.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from prunetune.common.files import read_json, remove, write_json
from prunetune.errors import RecipeError
from prunetune.loop.bench import Bench, free, line_of, samples_of
from prunetune.loop.shares import active
from prunetune.loop.summary import Summary, leaks, per_question, summarise
from prunetune.models.cost import Cost
from prunetune.models.folders import copy_files, load_model, model_sha
from prunetune.recipe.schema import Recipe
from prunetune.runs.folder import Record, Timed
from prunetune.tune.job import TuneJob, TuneResult, run_job

Load = Callable[[Path], PreTrainedModel]


def check_recipe(recipe: Recipe) -> None:
    """RecipeError for what a baseline's run cannot do: thresholds in place of a size, a launcher."""
    if recipe.prune.by_threshold:
        raise RecipeError("a baseline needs a size to stay within", value="thresholds", fix="give prune.target")
    if recipe.launcher is not None:
        raise RecipeError(
            "a baseline is recovered in this process", value=f"launcher: {recipe.launcher}", fix="no launcher"
        )
    if any(m.data is not None for m in recipe.recover):
        raise RecipeError("a baseline is recovered on the recipe's data alone", fix="leave out data under recover")


@dataclass(frozen=True)
class Row:
    """What decides a stage.

    Attributes:
        bench: Data, tasks and settings of the run.
        index: Place among the run's stages, from 1.
        name: Folder of the stage; starts with the index in two digits.
        cost: Of the model.
        why: What the model is, in words, for stage.json.
        removed: What was cut, for stage.json.
        parts: Stages that share the budget.
        cursor: First sequence of the stream that recovery may use.
        key: What the input of recovery was made from.
        cut: Makes that input in a folder of the stage; None: `model` as it is.
        model: The input of recovery, where nothing is cut.
    """

    bench: Bench
    index: int
    name: str
    cost: Cost
    why: str
    removed: dict[str, Any]
    parts: int
    cursor: int
    key: dict[str, Any]
    cut: Callable[[Path], None] | None = None
    model: Path | None = None

    @property
    def at(self) -> Path:
        """The stage's folder."""
        return self.bench.run.folder(self.name)

    def make(self) -> Record:
        """Cut, recover, measure; a finished stage is only read."""
        if (self.at / "stage.json").is_file():
            found: Record = read_json(self.at / "stage.json")
            return found
        bench, timed = self.bench, Timed(self.at)
        before = self.model if self.cut is None else timed.once("pruned", "apply", self.key, self.cut)
        if before is None:
            raise ValueError("a row needs a model or a way to cut one")
        results = self._recover(timed, before)
        tuned = self.at / "tuned"
        sha = model_sha(tuned)
        tasks = [t.model_dump(mode="json") for t in bench.recipe.evaluate.tasks]
        key = {"model": sha, "tasks": tasks}
        file = timed.once(".measured.json", "evaluate", key, lambda tmp: self._measure(before, tuned, sha, tmp))
        record: Record = {
            "index": self.index,
            "name": self.name,
            "attempt": 1,
            "step": None,
            "model_sha": sha,
            "depth": bench.sizes.depth,
            "width": bench.sizes.width,
            **read_json(file),
            "samples": [self.cursor, self.cursor + sum(r.samples for r in results)],
            "tokens": sum(r.tokens for r in results),
            "tune": [r.to_json() for r in results],
            "rounds": self.parts,
            "removed": {"neurons": 0, "layers": [], **self.removed},
            "seconds": {**dict.fromkeys(("score", "plan", "apply", "tune"), 0.0), **timed.seconds},
            "verdict": {"accepted": True, "why": self.why},
        }
        write_json(self.at / "stage.json", record)
        remove(self.at / "pruned")
        bench.watch.line(line_of(record, bench.run.original))
        free()
        return record

    def _measure(self, before: Path, tuned: Path, sha: str, tmp: Path) -> None:
        bench = self.bench
        pruned_loss = bench.loss(load_model(before, device=bench.device)) if self.cut else None
        model = load_model(tuned, device=bench.device)
        evals = bench.measure(model, sha, self.at, None)
        flops = {t.name: per_question(self.cost, samples_of(self.at, t)) for t in bench.tasks}
        found = {
            "cost": {**self.cost.to_json(), "flops": flops},
            "evals": [e.to_json() for e in evals],
            "pruned_loss": pruned_loss,
            "held_out_loss": bench.loss(model),
        }
        write_json(tmp, found)

    def _recover(self, timed: Timed, before: Path) -> list[TuneResult]:
        """The recipe's methods one after another, each on its own part of the stream."""
        bench, model, cursor, results = self.bench, before, self.cursor, list[TuneResult]()
        methods = [m for _, m in active(bench.recipe, last=self.index == self.parts)]
        for i, method in enumerate(methods):
            late = method.when == "last"
            rounds, parts = bench.rounds if method.per == "round" and not late else 1, 1 if late else self.parts
            samples, tokens = (b and max(1, b * rounds // parts) for b in (method.samples, method.tokens))
            if samples is None and tokens is None:
                samples = (len(bench.stream) - bench.reserved) // (parts * len(bench.recipe.recover))
            note, work = self.at / f"tune-{i}-{method.type}.json", self.at / f".tuned-{i}"
            job = {
                "work": work,
                "method": method.changed(samples=None, tokens=None, per="round", when="every"),
                "sources": tuple(bench.recipe.data),
                "data_seed": bench.recipe.seed,
                "start": cursor,
                "end": len(bench.stream) if samples is None else min(len(bench.stream), cursor + samples),
                "tokens": tokens,
                "seed": bench.recipe.seed,
                "fmt": bench.recipe.prompt,
                "teacher": bench.run.source,
                "device": bench.recipe.device,
                "task": bench.recipe.evaluate.tasks[0] if bench.recipe.evaluate.tasks else None,
            }

            def make(tmp: Path, job: dict[str, Any] = job, model: Path = model, note: Path = note) -> None:
                whole = TuneJob(model=model, out=tmp, **job)
                with bench.watch.bar(f"tune {whole.method.type}") as bar:
                    write_json(note, run_job(whole, bar).to_json())
                copy_files(model, tmp, ["README.md"])
                free()

            done = [m.model_dump(mode="json") for m in methods[: i + 1]]
            key = {**self.key, "recover": done, "seed": bench.recipe.seed, "part": [cursor, job["end"], tokens]}
            model = timed.once("tuned" if i == len(methods) - 1 else f".step-{i}", "tune", key, make)
            results.append(TuneResult.from_json(json.loads(note.read_text(encoding="utf-8"))))
            cursor += results[-1].samples
            remove(work)
        return results


def conclude(bench: Bench, stage: Record, **more: Any) -> Summary:
    """Write summary.json with the loop's keys and `more`, the last stage being the result.

    Latency is measured in turns with the original, if the recipe wants it.
    """
    run = bench.run
    used = [e for s in run.stages for e in bench.stream.take(*s["samples"])]
    latency = bench.latency(run.folder(stage["name"]) / "tuned")
    summary = {
        **summarise(run, bench.recipe, stage, latency, leaks(used, bench.tasks, bench.run.folder("original"))),
        **more,
    }
    write_json(run.path / "summary.json", summary)
    return summary
