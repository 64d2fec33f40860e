"""One round of Algorithm 1: score -> plan -> (patch) -> prune -> recover -> measure, each made once, each a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from prunetune.bench import Bench, free, line_of
from prunetune.compensate import Patch, compensate
from prunetune.errors import OutOfReach
from prunetune.plan import PrunePlan, make_plan, threshold_counts
from prunetune.run import Record, Timed
from prunetune.schedule import Step, align_of
from prunetune.score import Scores, score
from prunetune.store import (
    json_sha,
    load_config,
    model_sha,
    remove,
    write_json,
)
from prunetune.surgery import apply_on_disk
from prunetune.tune.job import TuneJob, TuneResult, launch


def one_round(bench: Bench, step: Step) -> None:
    """One round of Algorithm 1."""
    bench.run.clear_unfinished(step)
    at, before = bench.run.folder(step.name), bench.run.current
    source, timed = bench.run.model_of(before), Timed(at)
    scores = _scores(bench, timed, source, before["model_sha"])
    plan = _plan(bench, timed, step, scores)
    if plan.removes_nothing:
        return _nothing(bench, at, step, before)
    patch = _patch(bench, timed, source, plan)

    def prune(tmp: Path) -> None:
        with bench.watch.bar("prune") as bar:
            apply_on_disk(source, plan, tmp, patch, progress=bar)

    pruned = timed.once("pruned", "apply", _pruned_key(bench, plan), prune)
    results = _recover(bench, timed, pruned, plan)
    _finish_round(bench, at, step, plan, timed, results)
    return None


def _pruned_key(bench: Bench, plan: PrunePlan) -> dict[str, Any]:
    return {"plan": plan.model_dump(mode="json"), "compensate": bench.recipe.compensate, "data": bench.stream.sha}


def _patch(bench: Bench, timed: Timed, source: Path, plan: PrunePlan) -> dict[str, torch.Tensor]:
    """Least squares into the kept neurons, from the scored sequences: every fourth chooses the ridge."""
    if bench.recipe.compensate == "none" or not plan.drop_neurons:
        return {}

    def make(tmp: Path) -> None:
        examples = bench.stream.take(0, bench.recipe.score.samples)
        ridge = bench.batches(examples[::4])
        calibration = bench.batches([e for i, e in enumerate(examples) if i % 4])
        with bench.watch.bar("compensate") as bar:
            compensate(source, plan, calibration, held_out=ridge, device=bench.device, progress=bar).write(tmp)
        free()

    path = timed.once("patch.safetensors", "compensate", _pruned_key(bench, plan), make)
    return Patch.read(path).tensors


def _tuned_key(bench: Bench, plan: PrunePlan) -> dict[str, Any]:
    methods = [m.model_dump(mode="json") for m in bench.recipe.recover]
    return {
        "pruned": _pruned_key(bench, plan),
        "recover": methods,
        "data": bench.stream.sha,
        "seed": bench.recipe.seed,
        "start": bench.run.cursor or bench.reserved,
        "rounds": bench.rounds,
    }


def _scores(bench: Bench, timed: Timed, source: Path, sha: str) -> Scores:
    s = bench.recipe.score
    common = {
        "model": sha,
        "criterion": s.criterion,
        "reduce": s.reduce,
        "layers": s.layer_criterion,
        "length": s.max_length,
        "seed": bench.recipe.seed,
        "vote": s.vote_share,
    }
    jobs = [("scores.safetensors", bench.stream.sha, lambda: bench.scoring)]
    if bench.recipe.protect:
        corpus = json_sha(bench.recipe.protect.model_dump(mode="json"))
        jobs.append(("protect.safetensors", corpus, lambda: bench.guarded))
    for name, data_sha, batches in jobs:

        def make(tmp: Path, name: str = name, data_sha: str = data_sha, batches: Any = batches) -> None:
            model = bench.load(source)
            with bench.watch.bar(name.split(".", maxsplit=1)[0].replace("scores", "score")) as bar:
                found = score(
                    model,
                    batches(),
                    neuron_criterion=s.criterion,
                    reduce=s.reduce,
                    layers_by=s.layer_criterion,
                    vote_share=s.vote_share,
                    seed=bench.recipe.seed,
                    model_sha=sha,
                    data_sha=data_sha,
                    progress=bar,
                )
            found.write(tmp)
            del model
            free()

        timed.once(name, "score", {**common, "data": data_sha, "samples": s.samples}, make)
    return Scores.read(timed.at / "scores.safetensors")


def _plan(bench: Bench, timed: Timed, step: Step, scores: Scores) -> PrunePlan:
    prune, protect = bench.recipe.prune, bench.recipe.protect
    guarded = Scores.read(timed.at / "protect.safetensors").neurons.tolist() if protect else None
    share = protect.share if protect else 0.0
    rows, origins = scores.neurons.tolist(), bench.run.layer_origins()
    which = [origins.index(i) for i in prune.layers if i in origins] if isinstance(prune.layers, list) else None
    neurons, layers = step.neurons, step.layers
    if prune.by_threshold:
        neurons, which_now = threshold_counts(
            rows,
            scores.layers_max.tolist(),
            sigma_neuron=prune.sigma_neuron,
            sigma_layer=prune.sigma_layer,
            align=align_of(prune, bench.sizes),
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


def _recover(bench: Bench, timed: Timed, pruned: Path, plan: PrunePlan) -> list[TuneResult]:
    """Algorithm 1, lines 9-10: the recipe's methods one after another, each on its own part of the stream."""
    at, model, cursor = timed.at, pruned, bench.run.cursor or bench.reserved
    key, results = _tuned_key(bench, plan), []
    methods = bench.recipe.recover
    for i, method in enumerate(methods):
        last = i == len(methods) - 1
        note = at / f"tune-{i}-{method.type}.json"
        samples, tokens = (
            b and (b if method.per == "round" else max(1, b // bench.rounds)) for b in (method.samples, method.tokens)
        )
        if samples is None and tokens is None:  # all that the data hold, in equal parts
            samples = (len(bench.stream) - bench.reserved) // (bench.rounds * len(methods))
        end = len(bench.stream) if samples is None else min(len(bench.stream), cursor + samples)
        if cursor >= end:
            raise OutOfReach(
                "no recovery data are left for this round",
                value=f"{len(bench.stream)} sequences, all used",
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
                sources=tuple(bench.recipe.data),
                data_seed=bench.recipe.seed,
                start=part[0],
                end=part[1],
                tokens=tokens,
                seed=bench.recipe.seed,
                fmt=bench.recipe.prompt,
                teacher=bench.run.source,
                device=bench.recipe.device,
                task=bench.recipe.evaluate.tasks[0] if bench.recipe.evaluate.tasks else None,
            )
            with bench.watch.bar(f"tune {method.type}") as bar:
                result = launch(job, bench.recipe.launcher, bar)
            write_json(note, result.to_json())
            free()

        step_key = {**key, "method": i, "recover": key["recover"][: i + 1]}
        model = timed.once("tuned" if last else f".step-{i}", "tune", step_key, make)
        results.append(TuneResult.from_json(json.loads(note.read_text(encoding="utf-8"))))
        cursor += results[-1].samples
        remove(at / f".tuned-{i}")
    return results


def _finish_round(bench: Bench, at: Path, step: Step, plan: PrunePlan, timed: Timed, results: list[TuneResult]) -> None:
    start = bench.run.cursor or bench.reserved
    before, tuned = bench.run.current, at / "tuned"
    sha = model_sha(tuned)

    def make(tmp: Path) -> None:
        pruned_loss = None
        if (at / "pruned").is_dir():
            pruned = bench.load(at / "pruned")
            pruned_loss = bench.loss(pruned)
            del pruned
        model = bench.load(tuned)
        evals = bench.measure(model, sha, at, bench.recipe.evaluate.round_n)
        record = bench.record(step.index, step.attempt, step.name, step, sha, load_config(tuned), evals, at)
        origins = bench.run.layer_origins()
        record |= {
            "samples": [start, start + sum(r.samples for r in results)],
            "tokens": sum(r.tokens for r in results),
            "tune": [r.to_json() for r in results],
            "removed": {"neurons": plan.width - plan.new_width, "layers": [origins[i] for i in plan.drop_layers]},
            "pruned_loss": pruned_loss,
            "held_out_loss": bench.loss(model),
            "verdict": {"accepted": True, "why": "the schedule's step; no condition was set on its accuracy"},
        }
        write_json(tmp, record)

    whole = Timed(at)
    evaluated = at / ".measured.json"
    whole.once(evaluated.name, "evaluate", {"model": sha, "tasks": [t.version for t in bench.tasks]}, make)
    record = json.loads(evaluated.read_text(encoding="utf-8"))
    record["seconds"] = {**dict.fromkeys(("score", "plan", "apply", "tune"), 0.0), **timed.seconds, **whole.seconds}
    write_json(at / "stage.json", record)
    bench.run.tidy(bench.recipe.keep)
    bench.watch.line(line_of(record, bench.run.original, before))
    free()


def _nothing(bench: Bench, at: Path, step: Step, before: Record) -> None:
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
    bench.watch.line(f"  {step.name}: nothing lies below the thresholds; finished")
