"""One round of Algorithm 1: score -> plan -> (patch) -> prune -> recover -> measure, each made once, each a file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from prunetune.common.files import is_made, write_json
from prunetune.loop.context import Context, free, holding
from prunetune.loop.decide import Case, Decision
from prunetune.loop.measure import figures_of, line_of, loss_of, stage_record
from prunetune.loop.pacing.within import by_time_left
from prunetune.loop.probe import (
    DECISIONS,
    PATCH,
    clear_halves,
    cut_key,
    make_patch,
    plan_for,
    scored_before,
    take_scores,
)
from prunetune.loop.recovery.recover import recover, taken
from prunetune.loop.recovery.shares import Part, parts_of
from prunetune.loop.sampling.traces import renewed_for
from prunetune.loop.verdict import judge
from prunetune.models.calibration import ENOUGH
from prunetune.models.families.pattern import engine_pattern
from prunetune.models.folders import load_config, model_sha
from prunetune.pruning.apply import apply_on_disk
from prunetune.pruning.compensate import Patch
from prunetune.pruning.plan import PrunePlan, make_plan, threshold_counts
from prunetune.pruning.scores import Scores
from prunetune.runs.folder import RunFolder, Timed, layer_origins, link_or_copy
from prunetune.runs.records import Figures, Removed, StageRecord, TuneRecord, Verdict, known
from prunetune.schedule.steps import Step
from prunetune.schedule.target import align_of

FEW = 10
"""Calibration tokens for each kept neuron: with fewer a cut adds twice the loss that it need add, with more hardly
less (studies/11-calibration-tokens)."""
CROWDED = 0.25
"""Share of the protected in those that stay: with a sixth no cost was seen, with a third some (studies/06-criteria)."""


def one_round(context: Context, run: RunFolder, case: Case, decision: Decision) -> StageRecord:
    """One round of Algorithm 1, recorded in its folder's stage.json."""
    step, before = decision.step, case.current
    context = renewed_for(context, run, case, step.index)
    run.clear_unfinished(step)
    source, timed = run.model_of(before), Timed(run.folder(step.name))
    scores = take_scores(context, run, timed, source, known(before.model_sha, "model_sha"))
    plan = _plan(context, run, timed, step, scores)
    if plan.removes_nothing:
        return _nothing(context, run, step, before)
    patch = _patch(context, run, timed, source, plan)

    def prune(tmp: Path) -> None:
        with context.watch.bar("prune") as bar:
            apply_on_disk(source, plan, tmp, patch, progress=bar, text_only=context.recipe.prune.text_only)

    pruned = timed.once("pruned", "apply", cut_key(context, plan), prune)
    parts = parts_of(
        context,
        case.stages,
        case.cursor,
        rounds=decision.rounds,
        share=decision.share,
        last=decision.last,
        rungs=decision.rungs,
    )
    parts = by_time_left(context, timed, parts, decision.share, pruned, decision.rungs)
    key = _recovery_key(context, case, plan, decision)
    origins = tuple(layer_origins(run))
    left = tuple(origins[i] for i in plan.kept_layers)
    recovered = recover(context, timed, pruned, parts, case.stages, case.cursor, key, origins=left)
    made = _Made(plan, origins, parts, recovered, timed)
    return _finish(context, run, case, decision, made)


@dataclass(frozen=True)
class _Made:
    """What a round has made before it is measured; `origins`: the layers it started from, as numbered originally."""

    plan: PrunePlan
    origins: tuple[int, ...]
    parts: Sequence[Part]
    recovered: Sequence[TuneRecord]
    timed: Timed


def _patch(context: Context, run: RunFolder, timed: Timed, source: Path, plan: PrunePlan) -> dict[str, torch.Tensor]:
    if context.recipe.compensate == "none":
        return {}
    probed = run.folder(DECISIONS) / timed.at.name.split("-")[0] / PATCH

    def make(tmp: Path) -> None:
        if is_made(probed, cut_key(context, plan)):
            link_or_copy(str(probed), str(tmp))
            return
        make_patch(context, source, plan, timed.at).write(tmp)
        free()

    path = timed.once(PATCH, "compensate", cut_key(context, plan), make)
    clear_halves(timed.at)
    patch = Patch.read(path)
    share = context.calibration.share if context.calibration else 1.0
    if plan.drop_neurons and share * patch.tokens < FEW * plan.new_width:
        of = "a layer" if share == 1 else f"an expert, which sees {share:.0%} of them"
        context.watch.line(
            f"  few calibration tokens: {patch.tokens:,} for {plan.new_width:,} kept neurons {of} "
            f"({share * patch.tokens / plan.new_width:.0f} each); about {ENOUGH} each are enough: score.samples: auto"
        )
    return patch.tensors


def _recovery_key(context: Context, case: Case, plan: PrunePlan, decision: Decision) -> dict[str, object]:
    """What a recovered model comes from, beside the methods."""
    return {
        "pruned": cut_key(context, plan),
        "data": context.stream.sha,
        "seed": context.recipe.seed,
        "start": case.cursor,
        "rounds": decision.rounds,
        "share": decision.share,
        "do_no_harm": context.recipe.do_no_harm,
    }


def _plan(context: Context, run: RunFolder, timed: Timed, step: Step, scores: Scores) -> PrunePlan:
    protect = context.recipe.protect
    if context.recipe.prune.by_threshold:
        plan = _threshold_plan(context, timed.at, scores)
    else:
        gone = {"neurons": step.neurons or 0, "layers": step.layers or 0}
        plan = plan_for(context, run, timed.at, scores, **gone, more=step.more)
    if protect and plan.drop_neurons and (held := math.ceil(protect.share * plan.width)) > CROWDED * plan.new_width:
        context.watch.line(
            f"  protected: {held:,} of the {plan.new_width:,} neurons that stay in every layer. "
            "More than a quarter can cost accuracy: a smaller protect.share leaves the task more of them"
        )
    kept = [layer_origins(run)[i] for i in plan.kept_layers]
    if plan.drop_layers and (broken := engine_pattern(context.config.to_dict(), kept)):
        context.watch.line(f"  warning: {broken}; layers that go in whole periods keep such engines (docs/method.md)")
    made = timed.once("plan.json", "plan", {"plan": plan.model_dump(mode="json")}, plan.write)
    return PrunePlan.read(made)


def _threshold_plan(context: Context, at: Path, scores: Scores) -> PrunePlan:
    prune, protect = context.recipe.prune, context.recipe.protect
    guarded = Scores.read(at / "protect.safetensors").neurons.tolist() if protect else None
    share = protect.share if protect else 0.0
    neurons, which = threshold_counts(
        scores.neurons.tolist(),
        scores.layers_max.tolist(),
        sigma_neuron=prune.sigma_neuron,
        sigma_layer=prune.sigma_layer,
        align=align_of(prune, context.sizes),
        protected=guarded,
        protect_share=share,
        experts=scores.experts,
    )
    free = scores.may_go(which) or []
    return make_plan(
        scores.neurons.tolist(),
        scores.layers.tolist(),
        scores.model_sha,
        n_neurons=neurons,
        n_layers=len(free),
        which_layers=free,
        protected=guarded,
        protect_share=share,
        experts=scores.experts,
    )


def _finish(context: Context, run: RunFolder, case: Case, decision: Decision, made: _Made) -> StageRecord:
    """Measure and judge the recovered model, and write the round's record."""
    step, at, timed = decision.step, made.timed.at, made.timed
    sha = model_sha(at / "tuned")

    def make(tmp: Path) -> None:
        pruned_loss = loss_of(context, at / "pruned") if (at / "pruned").is_dir() else None
        with holding(context, at / "tuned") as model:
            figures = figures_of(context, model, sha, at, context.recipe.evaluate.round_n, pruned_loss=pruned_loss)
            verdict = judge(context, run, model, sha, at)
        write_json(tmp, figures.model_copy(update={"verdict": verdict}).to_json())

    conditions = context.recipe.model_dump(mode="json", include={"stop_at"})
    key = {"model": sha, "tasks": [t.version for t in context.tasks], **conditions}
    figures = Figures.read(timed.once(".measured.json", "evaluate", key, make))
    seconds = {**dict.fromkeys(("score", "plan", "apply", "tune"), 0.0), **timed.seconds}
    seconds["probe"] = decision.seconds
    if step.attempt == 1:  # later tries rest on the same scores
        seconds["score"] += scored_before(run, step.index)
    record = stage_record(
        context,
        load_config(at / "tuned"),
        figures,
        index=step.index,
        name=step.name,
        attempt=step.attempt,
        step=step,
        model_sha=sha,
        samples=(case.cursor, case.cursor + taken(context, made.parts, made.recovered)),
        tokens=sum(known(r.tokens, "tokens") for r in made.recovered),
        seconds=seconds,
        tune=tuple(made.recovered),
        rounds=decision.rounds,
        removed=_removed(made),
        share=decision.share,
        decision=decision.why,
        verdict=figures.verdict,
    )
    run.record(record)
    run.tidy(context.recipe.keep)
    context.watch.line(line_of(record, run.original))
    if not record.accepted:
        context.watch.line(f"  {step.name} is undone: {record.why}")
    free()
    return record


def _removed(made: _Made) -> Removed:
    plan = made.plan
    layers = tuple(made.origins[i] for i in plan.drop_layers)
    others = {"others": {n: plan.sizes[n] - plan.new_shape[n] for n in plan.drop}} if plan.drop else {}
    return Removed.model_validate({"neurons": plan.width - plan.new_width, "layers": layers, **others})


def _nothing(context: Context, run: RunFolder, step: Step, before: StageRecord) -> StageRecord:
    """A threshold that calls nothing redundant: recorded, and the loop ends."""
    changes = {
        "index": step.index,
        "name": step.name,
        "attempt": step.attempt,
        "step": step,
        "tokens": 0,
        "tune": (),
        "seconds": {},
        "removed": Removed(neurons=0, layers=()),
        "pruned_loss": None,
        "verdict": Verdict(accepted=True, why="no neuron and no layer lies below the thresholds"),
    }
    record = before.model_copy(update=changes)
    run.record(record)
    context.watch.line(f"  {step.name}: nothing lies below the thresholds; finished")
    return record
