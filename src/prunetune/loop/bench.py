"""What all rounds of one run use: the model folder, the data in their parts, the tasks, and how a model is measured.

stream:  [0, score.samples) scored | [.., + held_out) loss only | the rest, in order, recovery: nothing seen twice
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunetune.common.files import json_sha, once, read_json, write_json
from prunetune.common.progress import Watch
from prunetune.common.units import measured
from prunetune.data.stream import DataSource, Example, Stream, load_stream
from prunetune.errors import OutOfReach
from prunetune.evaluation.evaluate import EvalResult, evaluate
from prunetune.evaluation.latency import measure
from prunetune.evaluation.loss import reasoning_loss
from prunetune.loop.summary import per_question
from prunetune.models.cost import cost_of
from prunetune.models.families import family_of
from prunetune.models.folders import load_config, load_model, load_tokenizer, model_sha
from prunetune.models.prompt import encode_example
from prunetune.pruning.scores import Batch, make_batches
from prunetune.recipe.schema import Recipe
from prunetune.report.speed import ENOUGH
from prunetune.runs.folder import Record, RunFolder, Timed
from prunetune.schedule.steps import Step, check_protection, plan_ahead
from prunetune.schedule.target import Sizes
from prunetune.tasks.registry import Task, build_task

BATCH = 8
"""Questions at once when throughput is measured."""


@dataclass
class Bench:
    """What every round of one run uses: model folder, data, tasks."""

    recipe: Recipe
    run: RunFolder
    watch: Watch

    # ------------------------------------------------------------------------------------------------- what is given

    @cached_property
    def config(self) -> Any:
        """The untouched model's config."""
        return load_config(self.run.source)

    @cached_property
    def sizes(self) -> Sizes:
        """Parameters by depth and width."""
        family_of(self.config)
        return Sizes.of(self.config)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        return load_tokenizer(self.run.source)

    @cached_property
    def stream(self) -> Stream:
        """Reasoning sequences: first those to score with, then held-out ones, then what recovery trains on."""
        return load_stream(self.recipe.data, self.recipe.seed)

    def stream_of(self, sources: tuple[DataSource, ...]) -> Stream:
        """Another stream of the run: a recovery method's own data."""
        key = json_sha([s.model_dump(mode="json") for s in sources])
        if key not in self.others:
            self.others[key] = load_stream(sources, self.recipe.seed)
        return self.others[key]

    @cached_property
    def others(self) -> dict[str, Stream]:
        """The streams of `stream_of`."""
        return {}

    @cached_property
    def tasks(self) -> list[Task]:
        """What is measured."""
        return [build_task(t) for t in self.recipe.evaluate.tasks]

    @cached_property
    def rounds(self) -> int:
        """T: the rounds that the budget is shared out over; kept from the run's first start."""
        if stages := self.run.stages:
            return int(stages[0]["rounds"])
        return max(1, self.recipe.prune.max_rounds or self.paper_rounds)

    @cached_property
    def paper_rounds(self) -> int:
        """Rounds of equal steps to the target; 0 with thresholds."""
        prune = self.recipe.prune
        order: Any = "neurons-then-layers" if prune.order == "auto" else prune.order
        rounds = 1 if prune.rounds == "auto" else prune.rounds
        return len(plan_ahead(prune.model_copy(update={"order": order, "rounds": rounds}), self.sizes))

    @property
    def reserved(self) -> int:
        """Sequences at the start of the stream that are never trained on."""
        return self.recipe.score.samples + self.recipe.score.held_out

    @property
    def device(self) -> str:
        """Where scoring and evaluation run."""
        if self.recipe.device != "auto":
            return self.recipe.device
        return "cuda" if torch.cuda.is_available() else "cpu"

    def check(self) -> None:
        """Everything that can be known to fail before any work."""
        _ = self.paper_rounds  # the target can be reached
        ahead = plan_ahead(self.recipe.prune, self.sizes) if self.recipe.foreseen else []
        if self.recipe.protect:
            check_protection(ahead, self.sizes.width, self.recipe.protect.share)
        if len(self.stream) <= self.reserved:
            raise OutOfReach(
                "scoring and held-out loss would use up all the data",
                value=f"{len(self.stream)} sequences",
                valid=f"more than {self.reserved} (score.samples + score.held_out)",
                fix="more data, or fewer samples",
            )
        _ = self.tokenizer, self.tasks

    def batches(self, examples: Sequence[Example]) -> list[Batch]:
        """Encoded, cut at the length limit, sorted by length."""
        limit = self.recipe.score.max_length
        rows = [encode_example(self.tokenizer, e.question, e.answer, self.recipe.prompt, limit) for e in examples]
        return make_batches([r.input_ids for r in rows], self.tokenizer.pad_token_id, self.recipe.score.batch_tokens)

    @cached_property
    def scoring(self) -> list[Batch]:
        """The sequences that are scored in every round."""
        return self.batches(self.stream.take(0, self.recipe.score.samples))

    @cached_property
    def held_out(self) -> list[Example]:
        """Sequences for the loss after pruning and after recovery."""
        return self.stream.take(self.recipe.score.samples, self.reserved)

    @cached_property
    def guarded(self) -> list[Batch]:
        """The protected corpus."""
        if self.recipe.protect is None:
            return []
        stream = load_stream(self.recipe.protect.data, self.recipe.seed)
        return self.batches(stream.take(0, min(self.recipe.protect.samples, len(stream))))

    def load(self, folder: Path) -> PreTrainedModel:
        """A model in its own dtype on the device."""
        return load_model(folder, device=self.device)

    # ------------------------------------------------------------------------------------------------------ measuring

    def measure(self, model: PreTrainedModel, sha: str, at: Path, n: int | None) -> list[EvalResult]:
        """All tasks, the first `n` problems of each; a killed evaluation goes on from its JSONL."""
        return [self.answer(task.first(n), model, sha, at) for task in self.tasks]

    def answer(self, task: Task, model: PreTrainedModel, sha: str, at: Path) -> EvalResult:
        """One task; the samples go into the stage's folder."""
        with self.watch.bar(f"evaluate {task.name}") as bar:
            return evaluate(
                model,
                self.tokenizer,
                task,
                fmt=self.recipe.prompt,
                out=samples_of(at, task),
                batch_size=self.recipe.evaluate.batch_size,
                progress=bar,
                key=sha,
            )

    def loss(self, model: PreTrainedModel) -> float:
        """Mean next-token loss (nats) over the answers of the held-out sequences."""
        limit = self.recipe.score.max_length
        return reasoning_loss(model, self.tokenizer, self.held_out, self.recipe.prompt, limit)[0]

    def latency(self, final: Path) -> Record | None:
        """Original and final model timed in turns, at batch 1 and `BATCH`; None if the recipe does not want it."""
        repeats = self.recipe.evaluate.latency_repeats
        if not repeats:
            return None

        def make(tmp: Path) -> None:
            models = {"original": self.load(self.run.source), "final": self.load(final)}
            with self.watch.bar("latency") as bar:
                settle = repeats >= ENOUGH  # fewer are no measurement, and are wanted as they are
                alone, many = (
                    measure(models, batch=b, repeats=repeats, settle=settle, progress=bar) for b in (1, BATCH)
                )
            found = {name: timed.to_json() for name, timed in alone.items()}
            write_json(tmp, {**found, "batched": {name: timed.to_json() for name, timed in many.items()}})
            models.clear()
            free()

        key = {"model": model_sha(final), "repeats": repeats, "batch": BATCH, "paired": True}
        record: Record = read_json(once(self.run.path / ".latency.json", key, make))
        return record

    def original(self) -> None:
        """Measure the untouched model, the same way as every round."""
        at = self.run.folder("original")
        timed = Timed(at)
        key = {"evaluate": self.recipe.evaluate.model_dump(mode="json"), "model": str(self.recipe.model), "v": 1}

        def make(tmp: Path) -> None:
            model = self.load(self.run.source)
            sha = model_sha(self.run.source)
            evals = self.measure(model, sha, at, None)
            record = self.record(0, 1, "original", None, sha, self.config, evals, at)
            record |= {
                "pruned_loss": None,
                "held_out_loss": self.loss(model),
                "verdict": {"accepted": True, "why": "the untouched model"},
            }
            write_json(tmp, record)

        timed.once("stage.json", "evaluate", key, make)
        record = self.run.original
        if not record["seconds"]:
            record["seconds"] = timed.seconds
            write_json(at / "stage.json", record)
        self.watch.line(line_of(self.run.original, self.run.original))

    def record(
        self,
        index: int,
        attempt: int,
        name: str,
        step: Step | None,
        sha: str,
        config: Any,
        evals: Sequence[EvalResult],
        at: Path,
    ) -> Record:
        """The part of stage.json that every stage has."""
        cost = cost_of(config)
        flops = {e.task: per_question(cost, samples_of(at, t)) for e, t in zip(evals, self.tasks, strict=True)}
        return {
            "index": index,
            "name": name,
            "attempt": attempt,
            "step": None if step is None else vars(step).copy(),
            "model_sha": sha,
            "depth": config.num_hidden_layers,
            "width": config.intermediate_size,
            "cost": {**cost.to_json(), "flops": flops},
            "evals": [e.to_json() for e in evals],
            "samples": [self.reserved, self.reserved],
            "tokens": 0,
            "seconds": {},
            "tune": [],
            "rounds": self.rounds,
            "removed": {"neurons": 0, "layers": []},
        }


def samples_of(at: Path, task: Task) -> Path:
    """Where a stage keeps its answers to a task."""
    return at / "eval" / f"{task.name.replace('/', '_')}.jsonl"


def line_of(stage: Record, original: Record, before: Record | None = None) -> str:
    """One line a round: name, size, accuracy."""
    share = stage["cost"]["params"] / original["cost"]["params"]
    scores = "  ".join(f"{e['task']} {measured(e['value'], e['stderr'], e['metric'])}" for e in stage["evals"])
    loss = f"  loss {stage['pruned_loss']:.3f} -> {stage['held_out_loss']:.3f}" if stage.get("pruned_loss") else ""
    return f"  {stage['name']:<20} {stage['cost']['params'] / 1e6:9.2f} M  {share:6.1%}  {scores}{loss}"


def free() -> None:
    """Give memory back between models."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
