"""Algorithm 1: prune a little, tune a little, until the target size. Running it again continues.

    score -> plan -> (patch) -> prune -> recover -> measure        one round, each arrow a file in the run folder

Deciding is elsewhere and pure (`schedule.next_step`, `plan.make_plan`); here things are made, once.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunetune.compensate import Patch, compensate
from prunetune.cost import cost_of
from prunetune.data import Example, Stream, load_stream
from prunetune.errors import OutOfReach
from prunetune.evaluate import EvalResult, evaluate
from prunetune.family import family_of
from prunetune.heldout import reasoning_loss
from prunetune.plan import PrunePlan, make_plan, threshold_counts
from prunetune.prompt import encode_example
from prunetune.recipe import Recipe
from prunetune.report import write_report
from prunetune.run import Record, RunFolder, Timed, link_or_copy
from prunetune.schedule import Sizes, Step, align_of, check_protection, next_step, plan_ahead
from prunetune.schedule import once as once_only
from prunetune.score import Batch, Scores, make_batches, score
from prunetune.store import (
    json_sha,
    load_config,
    load_model,
    load_tokenizer,
    model_sha,
    once,
    remove,
    resolve_model,
    write_json,
)
from prunetune.summary import Summary, leaks, per_question, summarise
from prunetune.surgery import apply_on_disk
from prunetune.tasks import Task, build_task
from prunetune.tune.job import TuneJob, TuneResult, launch
from prunetune.ui import Watch


def prune_tune_loop(recipe: Recipe, out: Path | str, watch: Watch | None = None) -> Summary:
    """Compact a model by the Prune-Tune Loop (Algorithm 1). Running it again continues where it was.

    Args:
        recipe: What to do.
        out: The run folder; made if it is not there.
        watch: Shows lines and bars; the default writes to stderr.

    Returns:
        What RUN/summary.json holds.
    """
    out, watch = Path(out), watch or Watch()
    source = resolve_model(recipe.model)
    with RunFolder.open(out, recipe, source) as run:
        bench = Bench(recipe, run, watch)
        bench.check()
        bench.original()
        while step := next_step(recipe.prune, bench.sizes, run.history):
            bench.round(step)
        _control(bench)
        return bench.finish()


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

    @cached_property
    def tasks(self) -> list[Task]:
        """What is measured."""
        return [build_task(t) for t in self.recipe.evaluate.tasks]

    @cached_property
    def rounds(self) -> int:
        """T: the rounds that the budget is shared out over; kept from the run's first start."""
        if stages := self.run.stages:
            return int(stages[0]["rounds"])
        return max(1, self.recipe.prune.max_rounds or len(plan_ahead(self.recipe.prune, self.sizes)))

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
        ahead = plan_ahead(self.recipe.prune, self.sizes)
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

    def _batches(self, examples: Sequence[Example]) -> list[Batch]:
        limit = self.recipe.score.max_length
        rows = [encode_example(self.tokenizer, e.question, e.answer, self.recipe.prompt, limit) for e in examples]
        return make_batches([r.input_ids for r in rows], self.tokenizer.pad_token_id, self.recipe.score.batch_tokens)

    @cached_property
    def scoring(self) -> list[Batch]:
        """The sequences that are scored in every round."""
        return self._batches(self.stream.take(0, self.recipe.score.samples))

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
        return self._batches(stream.take(0, min(self.recipe.protect.samples, len(stream))))

    def load(self, folder: Path) -> PreTrainedModel:
        """A model in its own dtype on the device."""
        return load_model(folder, device=self.device)

    # ------------------------------------------------------------------------------------------------------ measuring

    def measure(self, model: PreTrainedModel, sha: str, at: Path, n: int | None) -> list[EvalResult]:
        """All tasks, the first `n` problems of each; a killed evaluation goes on from its JSONL."""
        results = []
        for task in self.tasks:
            with self.watch.bar(f"evaluate {task.name}") as bar:
                results.append(
                    evaluate(
                        model,
                        self.tokenizer,
                        _first(task, n),
                        fmt=self.recipe.prompt,
                        out=samples_of(at, task),
                        batch_size=self.recipe.evaluate.batch_size,
                        progress=bar,
                        key=sha,
                    )
                )
        return results

    def loss(self, model: PreTrainedModel) -> float:
        """Mean next-token loss (nats) over the answers of the held-out sequences."""
        limit = self.recipe.score.max_length
        return reasoning_loss(model, self.tokenizer, self.held_out, self.recipe.prompt, limit)[0]

    def original(self) -> None:
        """Measure the untouched model, the same way as every round."""
        at = self.run.folder("original")
        timed = Timed(at)
        key = {"evaluate": self.recipe.evaluate.model_dump(mode="json"), "model": str(self.recipe.model), "v": 1}

        def make(tmp: Path) -> None:
            model = self.load(self.run.source)
            sha = model_sha(self.run.source)
            evals = self.measure(model, sha, at, None)
            record = self._record(0, 1, "original", None, sha, self.config, evals, at)
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
        self.watch.line(_line(self.run.original, self.run.original))

    def _record(
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

    # -------------------------------------------------------------------------------------------------------- a round

    def round(self, step: Step) -> None:
        """One round of Algorithm 1."""
        self.run.clear_unfinished(step)
        at, before = self.run.folder(step.name), self.run.current
        source, timed = self.run.model_of(before), Timed(at)
        scores = self._scores(timed, source, before["model_sha"])
        plan = self._plan(timed, step, scores)
        if plan.removes_nothing:
            return self._nothing(at, step, before)
        patch = self._patch(timed, source, plan)

        def prune(tmp: Path) -> None:
            with self.watch.bar("prune") as bar:
                apply_on_disk(source, plan, tmp, patch, progress=bar)

        pruned = timed.once("pruned", "apply", self._pruned_key(plan), prune)
        results = self._recover(timed, pruned, plan)
        self._finish_round(at, step, plan, timed, results)
        return None

    def _pruned_key(self, plan: PrunePlan) -> dict[str, Any]:
        return {"plan": plan.model_dump(mode="json"), "compensate": self.recipe.compensate, "data": self.stream.sha}

    def _patch(self, timed: Timed, source: Path, plan: PrunePlan) -> dict[str, torch.Tensor]:
        """Least squares into the kept neurons, from the scored sequences: every fourth chooses the ridge."""
        if self.recipe.compensate == "none" or not plan.drop_neurons:
            return {}

        def make(tmp: Path) -> None:
            examples = self.stream.take(0, self.recipe.score.samples)
            ridge = self._batches(examples[::4])
            calibration = self._batches([e for i, e in enumerate(examples) if i % 4])
            with self.watch.bar("compensate") as bar:
                compensate(source, plan, calibration, held_out=ridge, device=self.device, progress=bar).write(tmp)
            _free()

        path = timed.once("patch.safetensors", "compensate", self._pruned_key(plan), make)
        return Patch.read(path).tensors

    def _tuned_key(self, plan: PrunePlan) -> dict[str, Any]:
        methods = [m.model_dump(mode="json") for m in self.recipe.recover]
        return {
            "pruned": self._pruned_key(plan),
            "recover": methods,
            "data": self.stream.sha,
            "seed": self.recipe.seed,
            "start": self.run.cursor or self.reserved,
            "rounds": self.rounds,
        }

    def _scores(self, timed: Timed, source: Path, sha: str) -> Scores:
        s = self.recipe.score
        common = {
            "model": sha,
            "criterion": s.criterion,
            "reduce": s.reduce,
            "layers": s.layer_criterion,
            "length": s.max_length,
            "seed": self.recipe.seed,
            "vote": s.vote_share,
        }
        jobs = [("scores.safetensors", self.stream.sha, lambda: self.scoring)]
        if self.recipe.protect:
            corpus = json_sha(self.recipe.protect.model_dump(mode="json"))
            jobs.append(("protect.safetensors", corpus, lambda: self.guarded))
        for name, data_sha, batches in jobs:

            def make(tmp: Path, name: str = name, data_sha: str = data_sha, batches: Any = batches) -> None:
                model = self.load(source)
                with self.watch.bar(name.split(".", maxsplit=1)[0].replace("scores", "score")) as bar:
                    found = score(
                        model,
                        batches(),
                        neuron_criterion=s.criterion,
                        reduce=s.reduce,
                        layers_by=s.layer_criterion,
                        vote_share=s.vote_share,
                        seed=self.recipe.seed,
                        model_sha=sha,
                        data_sha=data_sha,
                        progress=bar,
                    )
                found.write(tmp)
                del model
                _free()

            timed.once(name, "score", {**common, "data": data_sha, "samples": s.samples}, make)
        return Scores.read(timed.at / "scores.safetensors")

    def _plan(self, timed: Timed, step: Step, scores: Scores) -> PrunePlan:
        prune, protect = self.recipe.prune, self.recipe.protect
        guarded = Scores.read(timed.at / "protect.safetensors").neurons.tolist() if protect else None
        share = protect.share if protect else 0.0
        rows, origins = scores.neurons.tolist(), self.run.layer_origins()
        which = [origins.index(i) for i in prune.layers if i in origins] if isinstance(prune.layers, list) else None
        neurons, layers = step.neurons, step.layers
        if prune.by_threshold:
            neurons, which_now = threshold_counts(
                rows,
                scores.layers_max.tolist(),
                sigma_neuron=prune.sigma_neuron,
                sigma_layer=prune.sigma_layer,
                align=align_of(prune, self.sizes),
                protected=guarded,
                protect_share=share,
            )
            which, layers = list(which_now), len(which_now)
        plan = make_plan(
            rows,
            scores.layers.tolist(),
            scores.model_sha,
            n_neurons=neurons or 0,
            n_layers=layers or 0,
            which_layers=which,
            protected=guarded,
            protect_share=share,
        )
        made = timed.once("plan.json", "plan", {"plan": plan.model_dump(mode="json")}, plan.write)
        return PrunePlan.read(made)

    def _recover(self, timed: Timed, pruned: Path, plan: PrunePlan) -> list[TuneResult]:
        """Algorithm 1, lines 9-10: the recipe's methods one after another, each on its own part of the stream."""
        at, model, cursor = timed.at, pruned, self.run.cursor or self.reserved
        key, results = self._tuned_key(plan), []
        methods = self.recipe.recover
        for i, method in enumerate(methods):
            last = i == len(methods) - 1
            note = at / f"tune-{i}-{method.type}.json"
            samples, tokens = (
                b and (b if method.per == "round" else max(1, b // self.rounds))
                for b in (method.samples, method.tokens)
            )
            if samples is None and tokens is None:  # all that the data hold, in equal parts
                samples = (len(self.stream) - self.reserved) // (self.rounds * len(methods))
            end = len(self.stream) if samples is None else min(len(self.stream), cursor + samples)
            if cursor >= end:
                raise OutOfReach(
                    "no recovery data are left for this round",
                    value=f"{len(self.stream)} sequences, all used",
                    fix="more data or a smaller budget a round, in a new --out",
                )

            def make(
                tmp: Path,
                method: Any = method,
                i: int = i,
                model: Path = model,
                note: Path = note,
                part: tuple[int, int] = (cursor, end),
                tokens: int | None = tokens,
            ) -> None:
                job = TuneJob(
                    model=model,
                    out=tmp,
                    work=at / f".tuned-{i}",
                    method=method.changed(samples=None, tokens=None, per="round"),
                    sources=tuple(self.recipe.data),
                    data_seed=self.recipe.seed,
                    start=part[0],
                    end=part[1],
                    tokens=tokens,
                    seed=self.recipe.seed,
                    fmt=self.recipe.prompt,
                    teacher=self.run.source,
                    device=self.recipe.device,
                    task=self.recipe.evaluate.tasks[0] if self.recipe.evaluate.tasks else None,
                )
                with self.watch.bar(f"tune {method.type}") as bar:
                    result = launch(job, self.recipe.launcher, bar)
                write_json(note, result.to_json())
                _free()

            step_key = {**key, "method": i, "recover": key["recover"][: i + 1]}
            model = timed.once("tuned" if last else f".step-{i}", "tune", step_key, make)
            results.append(TuneResult.from_json(json.loads(note.read_text(encoding="utf-8"))))
            cursor += results[-1].samples
            remove(at / f".tuned-{i}")
        return results

    def _finish_round(self, at: Path, step: Step, plan: PrunePlan, timed: Timed, results: list[TuneResult]) -> None:
        start = self.run.cursor or self.reserved
        before, tuned = self.run.current, at / "tuned"
        sha = model_sha(tuned)

        def make(tmp: Path) -> None:
            pruned_loss = None
            if (at / "pruned").is_dir():
                pruned = self.load(at / "pruned")
                pruned_loss = self.loss(pruned)
                del pruned
            model = self.load(tuned)
            evals = self.measure(model, sha, at, self.recipe.evaluate.round_n)
            record = self._record(step.index, step.attempt, step.name, step, sha, load_config(tuned), evals, at)
            origins = self.run.layer_origins()
            record |= {
                "samples": [start, start + sum(r.samples for r in results)],
                "tokens": sum(r.tokens for r in results),
                "tune": [r.to_json() for r in results],
                "removed": {"neurons": plan.width - plan.new_width, "layers": [origins[i] for i in plan.drop_layers]},
                "pruned_loss": pruned_loss,
                "held_out_loss": self.loss(model),
                "verdict": {"accepted": True, "why": "the schedule's step; no condition was set on its accuracy"},
            }
            write_json(tmp, record)

        whole = Timed(at)
        evaluated = at / ".measured.json"
        whole.once(evaluated.name, "evaluate", {"model": sha, "tasks": [t.version for t in self.tasks]}, make)
        record = json.loads(evaluated.read_text(encoding="utf-8"))
        record["seconds"] = {**dict.fromkeys(("score", "plan", "apply", "tune"), 0.0), **timed.seconds, **whole.seconds}
        write_json(at / "stage.json", record)
        self.run.tidy(self.recipe.keep)
        self.watch.line(_line(record, self.run.original, before))
        _free()

    def _nothing(self, at: Path, step: Step, before: Record) -> None:
        """A threshold that calls nothing redundant: recorded, and the loop ends."""
        record = {
            **before,
            "index": step.index,
            "name": step.name,
            "attempt": step.attempt,
            "step": vars(step).copy(),
            "tokens": 0,
            "tune": [],
            "seconds": {},
            "removed": {"neurons": 0, "layers": []},
            "pruned_loss": None,
            "verdict": {"accepted": True, "why": "no neuron and no layer lies below the thresholds"},
        }
        write_json(at / "stage.json", record)
        self.watch.line(f"  {step.name}: nothing lies below the thresholds; finished")

    # ---------------------------------------------------------------------------------------------------------- the end

    def finish(self) -> Summary:
        """final/, summary.json and the report."""
        run, stage = self.run, self.run.current
        source = run.model_of(stage)
        final = run.path / "final"
        if source != final:
            key = {"model": stage["model_sha"]}
            once(final, key, lambda tmp: shutil.copytree(source, tmp, copy_function=link_or_copy))
        at = run.folder(stage["name"])
        if self._measured_on_less(stage):
            model = self.load(final)
            stage["evals"] = [e.to_json() for e in self.measure(model, stage["model_sha"], at, None)]
            cost = cost_of(load_config(final))
            stage["cost"]["flops"] = {t.name: per_question(cost, samples_of(at, t)) for t in self.tasks}
            del model
            write_json(at / "stage.json", stage)  # the final model answers all n problems, not round_n
        latency = self._latency(final)
        used = [e for s in run.stages for e in self.stream.take(*s["samples"])]
        summary = summarise(run, self.recipe, stage, latency, leaks(used, self.tasks))
        write_json(run.path / "summary.json", summary)
        write_report(run.path)
        return summary

    def _measured_on_less(self, stage: Record) -> bool:
        have = {e["task"]: e["n"] for e in stage["evals"]}
        return any(have.get(t.name, 0) < len(t.problems) for t in self.tasks)

    def _latency(self, final: Path) -> dict[str, Any] | None:
        repeats = self.recipe.evaluate.latency_repeats
        if not repeats or not self.run.accepted:
            return None
        from prunetune.latency import measure

        path = self.run.path / ".latency.json"
        key = {"model": model_sha(final), "repeats": repeats}

        def make(tmp: Path) -> None:
            models = {"original": self.load(self.run.source), "final": self.load(final)}
            with self.watch.bar("latency") as bar:
                write_json(tmp, {k: v.to_json() for k, v in measure(models, repeats=repeats, progress=bar).items()})
            models.clear()
            _free()

        found: dict[str, Any] = json.loads(once(path, key, make).read_text(encoding="utf-8"))
        return found


def samples_of(at: Path, task: Task) -> Path:
    """Where a stage keeps its answers to a task."""
    return at / "eval" / f"{task.name.replace('/', '_')}.jsonl"


def _first(task: Task, n: int | None) -> Task:
    return task if n is None else dataclasses.replace(task, problems=task.problems[:n])


def _control(bench: Bench) -> None:
    """The same size in one round with the same recovery budget, as a run of its own: RUN/control."""
    if bench.recipe.control == "none" or not bench.run.accepted:
        return
    recipe, run = bench.recipe, bench.run
    spent = sum(s["tokens"] for s in run.stages)
    bench.watch.line(f"control: the same size in one round, with the same budget ({spent:,} tokens)")
    methods = [m.changed(**_whole_budget(m, bench)) for m in recipe.recover]
    alone = recipe.changed(prune=once_only(recipe.prune, bench.sizes), control="none", recover=methods)
    original = run.path / "control" / "original"
    if not (original / "stage.json").is_file():
        remove(original)
        once(original, {"of": run.original["model_sha"]}, lambda tmp: shutil.copytree(run.path / "original", tmp))
    prune_tune_loop(alone, run.path / "control", bench.watch)


def _whole_budget(method: Any, bench: Bench) -> dict[str, Any]:
    """The budget of all rounds, for one round."""
    rounds = bench.rounds if method.per == "round" else 1
    return {"per": "run", **{k: v * rounds for k in ("samples", "tokens") if (v := getattr(method, k)) is not None}}


def _line(stage: Record, original: Record, before: Record | None = None) -> str:
    """One line a round: name, size, accuracy."""
    share = stage["cost"]["params"] / original["cost"]["params"]
    scores = "  ".join(f"{e['task']} {100 * e['value']:.1f} % ± {100 * e['stderr']:.1f}" for e in stage["evals"])
    loss = f"  loss {stage['pruned_loss']:.3f} -> {stage['held_out_loss']:.3f}" if stage.get("pruned_loss") else ""
    return f"  {stage['name']:<20} {stage['cost']['params'] / 1e6:9.2f} M  {share:6.1%}  {scores}{loss}"


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
