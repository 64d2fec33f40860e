"""One round of Algorithm 1: score -> plan -> (patch) -> prune -> recover -> measure, each made once, each a file."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import torch

from prunetune.common.files import is_made, remove, write_json
from prunetune.data.stream import Stream
from prunetune.errors import OutOfReach
from prunetune.loop.bench import Bench, free, line_of
from prunetune.loop.decide import Decision
from prunetune.loop.probe import PATCH, cut_key, make_patch, plan_for, take_scores
from prunetune.loop.shares import active, part, place
from prunetune.loop.verdict import judge
from prunetune.models.folders import load_config, model_sha
from prunetune.pruning.apply import apply_on_disk
from prunetune.pruning.compensate import Patch
from prunetune.pruning.plan import PrunePlan, make_plan, threshold_counts
from prunetune.pruning.scores import Scores
from prunetune.runs.folder import Record, Timed, link_or_copy
from prunetune.schedule.steps import Step
from prunetune.schedule.target import align_of
from prunetune.tune.job import TuneJob, TuneResult, launch

FEW, ENOUGH = 10, 100
"""Calibration tokens for each kept neuron: with fewer a cut adds twice the loss that it need add, with more hardly
less (studies/11-calibration-tokens)."""
CROWDED = 0.25
"""Share of the protected in those that stay: with a sixth no cost was seen, with a third some (studies/06-criteria)."""


def one_round(bench: Bench, decision: Decision) -> None:
    """One round of Algorithm 1."""
    step = decision.step
    bench.run.clear_unfinished(step)
    at, before = bench.run.folder(step.name), bench.run.current
    source, timed = bench.run.model_of(before), Timed(at)
    scores = take_scores(bench, timed, source, before["model_sha"])
    plan = _plan(bench, timed, step, scores)
    if plan.removes_nothing:
        return _nothing(bench, at, step, before)
    patch = _patch(bench, timed, source, plan)

    def prune(tmp: Path) -> None:
        with bench.watch.bar("prune") as bar:
            apply_on_disk(source, plan, tmp, patch, progress=bar)

    pruned = timed.once("pruned", "apply", cut_key(bench, plan), prune)
    results = _recover(bench, timed, pruned, plan, decision)
    _finish_round(bench, at, decision, plan, timed, results)
    return None


def _patch(bench: Bench, timed: Timed, source: Path, plan: PrunePlan) -> dict[str, torch.Tensor]:
    if bench.recipe.compensate == "none":
        return {}

    probed = bench.run.decisions / timed.at.name.split("-")[0] / PATCH

    def make(tmp: Path) -> None:
        if is_made(probed, cut_key(bench, plan)):
            link_or_copy(str(probed), str(tmp))
            return
        with bench.watch.bar("compensate") as bar:
            make_patch(bench, source, plan, bar).write(tmp)
        free()

    path = timed.once(PATCH, "compensate", cut_key(bench, plan), make)
    patch = Patch.read(path)
    if plan.drop_neurons and patch.tokens < FEW * plan.new_width:
        bench.watch.line(
            f"  few calibration tokens: {patch.tokens:,} for {plan.new_width:,} kept neurons a layer "
            f"({patch.tokens / plan.new_width:.0f} each); about {ENOUGH} each are enough: raise score.samples"
        )
    return patch.tensors


def _tuned_key(bench: Bench, plan: PrunePlan, decision: Decision) -> dict[str, Any]:
    methods = [m.model_dump(mode="json") for _, m in _methods(bench, decision)]
    return {
        "pruned": cut_key(bench, plan),
        "recover": methods,
        "data": bench.stream.sha,
        "seed": bench.recipe.seed,
        "start": bench.run.cursor or bench.reserved,
        "rounds": decision.rounds,
        "share": decision.share,
        "do_no_harm": bench.recipe.do_no_harm,
    }


def _methods(bench: Bench, decision: Decision) -> list[tuple[int, Any]]:
    """The round's methods by place; with `anneal: last` the learning rate stays up in all rounds but the last."""
    chosen = active(bench.recipe, last=decision.last)
    if bench.recipe.anneal == "every" or decision.last:
        return chosen
    return [(i, m.changed(scheduler="constant_with_warmup")) for i, m in chosen]


def _plan(bench: Bench, timed: Timed, step: Step, scores: Scores) -> PrunePlan:
    prune, protect = bench.recipe.prune, bench.recipe.protect
    if prune.by_threshold:
        guarded = Scores.read(timed.at / "protect.safetensors").neurons.tolist() if protect else None
        neurons, which = threshold_counts(
            scores.neurons.tolist(),
            scores.layers_max.tolist(),
            sigma_neuron=prune.sigma_neuron,
            sigma_layer=prune.sigma_layer,
            align=align_of(prune, bench.sizes),
            protected=guarded,
            protect_share=protect.share if protect else 0.0,
        )
        plan = make_plan(
            scores.neurons.tolist(),
            scores.layers.tolist(),
            scores.model_sha,
            n_neurons=neurons,
            n_layers=len(which),
            which_layers=which,
            protected=guarded,
            protect_share=protect.share if protect else 0.0,
        )
    else:
        plan = plan_for(bench, timed.at, scores, neurons=step.neurons or 0, layers=step.layers or 0)
    if protect and plan.drop_neurons and (held := math.ceil(protect.share * plan.width)) > CROWDED * plan.new_width:
        bench.watch.line(
            f"  protected: {held:,} of the {plan.new_width:,} neurons that stay in every layer. "
            "More than a quarter can cost accuracy: a smaller protect.share leaves the task more of them"
        )
    made = timed.once("plan.json", "plan", {"plan": plan.model_dump(mode="json")}, plan.write)
    return PrunePlan.read(made)


def _recover(bench: Bench, timed: Timed, pruned: Path, plan: PrunePlan, decision: Decision) -> list[TuneResult]:
    """Algorithm 1, lines 9-10: the recipe's methods one after another, each on its own part of the stream."""
    at, model, cursor = timed.at, pruned, bench.run.cursor or bench.reserved
    key, results = _tuned_key(bench, plan, decision), []
    methods = _methods(bench, decision)
    if not methods:  # a bare cut
        timed.once("tuned", "tune", key, lambda tmp: shutil.copytree(pruned, tmp, copy_function=link_or_copy))
    for done, (i, method) in enumerate(methods, start=1):
        last = done == len(methods)
        note = at / f"tune-{i}-{method.type}.json"
        samples, tokens = part(bench, i, decision.rounds, decision.share)
        stream, start = place(bench, i, cursor)
        end = len(stream) if samples is None else min(len(stream), start + samples)
        if start >= end:
            raise OutOfReach(
                "no recovery data are left for this round",
                value=f"{len(stream)} sequences, all used",
                fix="more data or a smaller budget a round, in a new --out",
            )

        def make(
            tmp: Path,
            method: Any = method,
            i: int = i,
            model: Path = model,
            note: Path = note,
            examples: tuple[int, int] = (start, end),
            tokens: int | None = tokens,
            last: bool = last,
            stream: Stream = stream,
        ) -> None:
            job = TuneJob(
                model=model,
                out=tmp,
                work=at / f".tuned-{i}",
                method=method.changed(samples=None, tokens=None, per="round", when="every", data=None),
                sources=tuple(method.data or bench.recipe.data),
                data_seed=bench.recipe.seed,
                start=examples[0],
                end=examples[1],
                tokens=tokens,
                seed=bench.recipe.seed,
                fmt=bench.recipe.prompt,
                teacher=bench.run.source,
                device=bench.recipe.device,
                task=bench.recipe.evaluate.judged,
            )
            with bench.watch.bar(f"tune {method.type}") as bar:
                result = launch(job, bench.recipe.launcher, bar)
            result = _short(bench, result, tokens, examples, stream)
            if last and bench.recipe.do_no_harm:
                result = _no_worse(bench, pruned, tmp, result)
            write_json(note, result.to_json())
            free()

        step_key = {**key, "method": i, "recover": key["recover"][:done]} | ({"own": start} if method.data else {})
        model = timed.once("tuned" if last else f".step-{i}", "tune", step_key, make)
        results.append(TuneResult.from_json(json.loads(note.read_text(encoding="utf-8"))))
        cursor += results[-1].samples if method.data is None else 0
        remove(at / f".tuned-{i}")
    return results


def _short(
    bench: Bench, result: TuneResult, wanted: int | None, examples: tuple[int, int], stream: Stream
) -> TuneResult:
    """Say so where the data held fewer tokens than the round was to have."""
    if not wanted or result.tokens >= 0.9 * wanted or examples[0] + result.samples < len(stream):
        return result
    note = f"{result.method}: {result.tokens:,} of {wanted:,} tokens: the data hold no more"
    bench.watch.line(f"  {note}")
    return dataclasses.replace(result, notes=[*result.notes, note])


def _no_worse(bench: Bench, pruned: Path, tuned: Path, result: TuneResult) -> TuneResult:
    """Put the cut model in the recovered one's place if recovery has raised the held-out loss."""
    before, after = (bench.loss(bench.load(folder)) for folder in (pruned, tuned))
    if after <= before:
        return result
    remove(tuned)
    shutil.copytree(pruned, tuned)
    note = f"recovery was undone: it raised the held-out loss from {before:.4f} to {after:.4f}; the cut model went on"
    return dataclasses.replace(result, notes=[*result.notes, note])


def _finish_round(
    bench: Bench, at: Path, decision: Decision, plan: PrunePlan, timed: Timed, results: list[TuneResult]
) -> None:
    step = decision.step
    start = bench.run.cursor or bench.reserved
    before, tuned = bench.run.current, at / "tuned"
    methods = _methods(bench, decision)
    taken = sum(r.samples for r, (_, m) in zip(results, methods, strict=True) if m.data is None)
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
            "samples": [start, start + taken],
            "tokens": sum(r.tokens for r in results),
            "tune": [r.to_json() for r in results],
            "removed": {"neurons": plan.width - plan.new_width, "layers": [origins[i] for i in plan.drop_layers]},
            "pruned_loss": pruned_loss,
            "held_out_loss": bench.loss(model),
            "rounds": decision.rounds,
            "share": decision.share,
            "decision": decision.evidence.get("why"),
        }
        write_json(tmp, {**record, "verdict": judge(bench, record, model, at)})

    whole = Timed(at)
    evaluated = at / ".measured.json"
    conditions = bench.recipe.model_dump(mode="json", include={"stop_at", "tolerance"})
    key = {"model": sha, "tasks": [t.version for t in bench.tasks], **conditions}
    whole.once(evaluated.name, "evaluate", key, make)
    record = json.loads(evaluated.read_text(encoding="utf-8"))
    timed.seconds["plan"] = timed.seconds.get("plan", 0.0) + decision.evidence.get("seconds", 0.0)
    record["seconds"] = {**dict.fromkeys(("score", "plan", "apply", "tune"), 0.0), **timed.seconds, **whole.seconds}
    write_json(at / "stage.json", record)
    bench.run.tidy(bench.recipe.keep)
    bench.watch.line(line_of(record, bench.run.original, before))
    if not record["verdict"]["accepted"]:
        bench.watch.line(f"  {step.name} is undone: {record['verdict']['why']}")
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
