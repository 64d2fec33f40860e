"""What is known of a model before a round: its scores, and the loss that a cut to a shape would leave.

found = probed(context, run, case, index=2, attempt=1)      # RUN/decisions/02.json, measured once
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from prunetune.common.files import is_made, json_sha, once, remove, write_json
from prunetune.loop.context import Context, free, holding
from prunetune.loop.decide import (
    Case,
    Probing,
    by_damage,
)  # fmt: skip
from prunetune.loop.measure import held_out_loss
from prunetune.loop.recovery.shares import affordable
from prunetune.loop.sampling.traces import renewed_for
from prunetune.loop.seek import seek
from prunetune.loop.workers.pool import fold_folder, score_held
from prunetune.models.axes import shape_of
from prunetune.pruning.apply import apply_in_memory
from prunetune.pruning.compensate import RIDGES, Patch, calibration_and_held_out, compensate
from prunetune.pruning.criteria import criterion
from prunetune.pruning.folding.together import together
from prunetune.pruning.halfway import Halfway
from prunetune.pruning.plan import PrunePlan, make_plan
from prunetune.pruning.scores import Scores
from prunetune.recipe.schema import Recipe
from prunetune.runs.folder import RunFolder, Timed, layer_origins, seconds_of
from prunetune.runs.records import DecisionRecord, known
from prunetune.schedule.damage import Probe
from prunetune.schedule.target import period_in
from prunetune.schedule.way import Place
from prunetune.tune.launch import shared_by

DECISIONS = "decisions"
"""Folder of a run: what was measured and decided before its rounds."""
PATCH = "patch.safetensors"
"""Of a round, and of the decision on it."""
HALF, FEWER = 2, 4
"""Probes that share a walk take one in `HALF` of a cut's sequences, one in `FEWER` for its ridge."""


def take_scores(context: Context, run: RunFolder, timed: Timed, source: Path, sha: str) -> Scores:
    """The scores of a model, on the reasoning data and, if asked for, on the protected corpus; made once in `timed.at`.

    Scores that the decision on this round has made already are copied. Of the untouched model units of other axes are
    scored, too, where some may go in the first round.
    """
    s = context.recipe.score
    common = {
        "model": sha,
        "criterion": s.criterion,
        "reduce": s.reduce,
        "layers": s.layer_criterion,
        "length": s.max_length,
        "seed": context.recipe.seed,
        "vote": s.vote_share,
    }
    jobs = [("scores.safetensors", context.scored_sha, lambda: context.scoring)]
    if context.recipe.protect:
        corpus = json_sha(context.recipe.protect.model_dump(mode="json"))
        jobs.append(("protect.safetensors", corpus, lambda: context.guarded))
    more = context.blocks if sha in (run.original.model_sha, run.start.model_sha) else ()
    for name, data_sha, batches in jobs:
        key = {**common, "data": data_sha, "samples": s.samples, **({"more": more} if more else {})}

        def make(tmp: Path, name: str = name, data_sha: str = data_sha, batches: Any = batches, key: Any = key) -> None:
            before = run.folder(DECISIONS) / timed.at.name.split("-")[0] / name
            if is_made(before, key):
                shutil.copyfile(before, tmp)
                return
            at = half(timed.at, name, context, key)
            made = _score(context, source, sha, batches(), more, at=at, data_sha=data_sha)
            made.write(tmp)
            free()

        timed.once(name, "score", key, make)
        half(timed.at, name, context, key).clear()
    return Scores.read(timed.at / "scores.safetensors")


def half(at: Path, name: str, context: Context, key: object) -> Halfway:
    """Where the making of `at/name` leaves its state for a later start, with those inputs that its key leaves out."""
    s = context.recipe.score
    settings = {"samples": s.samples, "length": s.max_length, "batch": s.batch_tokens, "device": str(context.device)}
    prompt = context.recipe.prompt.model_dump(mode="json")
    return Halfway(at / f".{name}.half", [name, key, settings, prompt])


def scoring(recipe: Recipe) -> dict[str, Any]:
    """How a recipe scores, as `score` takes it."""
    s = recipe.score
    named = {"neuron_criterion": s.criterion, "reduce": s.reduce, "layers_by": s.layer_criterion}
    return {**named, "vote_share": s.vote_share, "seed": recipe.seed}


def _score(
    context: Context, source: Path, sha: str, batches: Sequence[Any], more: Sequence[str], *, at: Halfway, data_sha: str
) -> Scores:
    s = context.recipe.score
    action = "score" if criterion(s.criterion).needs != "moments" else f"rank by {s.criterion}"
    shown = context.watch.bar(action + (" (protect)" if at.path.name.startswith(".protect") else ""))
    asked = {**scoring(context.recipe), "more": more, "model_sha": sha, "data_sha": data_sha, "halfway": at}
    with holding(context, source) as model, shown as bar:
        return score_held(model, bar, batches, **asked)


def plan_for(
    context: Context,
    run: RunFolder,
    at: Path,
    scores: Scores,
    *,
    neurons: int,
    layers: int,
    more: Mapping[str, int] | None = None,
) -> PrunePlan:
    """The plan that removes so many of the lowest scores, protected ones and the recipe's choice of layers heeded.

    `more`: units of other axes, by axis.
    """
    protect = context.recipe.protect
    return make_plan(
        scores.neurons.tolist(),
        scores.layers.tolist(),
        scores.model_sha,
        n_neurons=neurons,
        n_layers=layers,
        which_layers=scores.may_go(free_layers(context.recipe, layer_origins(run))),
        period=period_in(context.recipe.prune, context.sizes),
        protected=Scores.read(at / "protect.safetensors").neurons.tolist() if protect else None,
        protect_share=protect.share if protect else 0.0,
        experts=scores.experts,
        others=scores.others(more) if more else None,
    )


def free_layers(recipe: Recipe, origins: list[int]) -> list[int] | None:
    """The layers that may go, if the recipe names them, as numbered now (`origins`: of each its original number)."""
    chosen = recipe.prune.layers
    return [origins.index(i) for i in chosen if i in origins] if isinstance(chosen, list) else None


def make_patch(context: Context, model: Any, plan: PrunePlan, at: Path | None = None) -> Patch:
    """Least squares into the kept neurons, from the scored sequences: every fourth chooses the ridge.

    Args:
        context: The run.
        model: The model, or its folder.
        plan: What goes, with the model's hash.
        at: The folder where a later start finds how far a killed one had come; None: it begins anew.
    """
    calibration, ridge = (context.batches(part) for part in calibration_and_held_out(context.scored))
    asked: dict[str, Any] = {
        "held_out": ridge,
        "target": "layer" if context.recipe.compensate == "least-squares-neurons" else "auto",
        "halfway": half(at, PATCH, context, cut_key(context, plan)) if at else None,
    }
    with context.watch.bar("compensate") as bar:
        if isinstance(model, Path):
            launcher = context.recipe.launcher
            return fold_folder(model, context.device, launcher, bar, plan, batches=calibration, **asked)
        return compensate(model, plan, calibration, **asked, device=context.device, progress=bar)


def cut_key(context: Context, plan: PrunePlan) -> dict[str, Any]:
    """What a cut model and its patch are made from."""
    key = {"plan": plan.model_dump(mode="json"), "compensate": context.recipe.compensate, "data": context.scored_sha}
    return key | ({"text_only": True} if context.recipe.prune.text_only else {})


def losses(
    context: Context,
    run: RunFolder,
    at: Path,
    source: Path,
    scores: Scores,
    shapes: Sequence[Place],
    more: Mapping[str, int] | None = None,
) -> list[Probe]:
    """Cut the model to each shape in memory and take its held-out loss.

    A single shape is cut as a round would, and its patch stays in `at`: if the round then is this cut, it need not be
    made again. Of several, those that lose neurons alone share one walk (`together`): less work, and losses
    that are a little too high. Units of other
    axes (`more`) go with each.
    """
    whole = context.load(source)
    has = shape_of(whole.config.to_dict())
    depth, width = has["layers"], has["neurons"]
    plans = [plan_for(context, run, at, scores, neurons=width - w, layers=depth - d, more=more) for d, w in shapes]
    shared = _Shared(context, at, whole, plans, source)
    found = []
    with context.watch.bar("probe", len(shapes)) as bar:
        for done, ((d, w), plan) in enumerate(zip(shapes, plans, strict=True), start=1):
            loss = _probe(context, at, whole, plan, shared, alone=len(shapes) == 1)
            found.append(Probe(d, w, context.sizes.params(d, w), loss))
            free()
            bar(done, len(shapes))
    shared.clear()
    return found


class _Shared:
    """Patches of the plans that one walk serves, made when the first is asked for.

    Every start makes those of the same plans, whichever of them it still needs, so that a kill changes nothing.
    """

    def __init__(
        self, context: Context, at: Path, whole: PreTrainedModel, plans: Sequence[PrunePlan], source: Path
    ) -> None:
        self.given = source if shared_by(context.recipe.launcher) else whole  # what several processes fold from
        neurons = [p for p in plans if p.drop_neurons and not p.drop_layers and not p.drop]
        self.plans = sorted(neurons, key=lambda p: -p.new_width) if len(neurons) > 1 else []
        self.context, self.whole, self.found = context, whole, list[dict[str, Tensor]]()
        key = [cut_key(context, p) for p in self.plans]
        self.halfway = half(at, f"together-{json_sha(key)}", context, key)

    def patch(self, plan: PrunePlan) -> dict[str, Tensor]:
        """Replacement tensors for one of the plans."""
        context = self.context
        if not self.found:
            calibration, ridge = calibration_and_held_out(context.scored)
            with context.watch.bar("compensate") as bar:
                self.found = together(
                    self.whole,
                    self.plans,
                    context.batches(calibration[::HALF]),
                    held_out=context.batches(ridge[::FEWER]),
                    ridges=RIDGES,
                    progress=bar,
                    halfway=self.halfway,
                )
        return self.found[self.plans.index(plan)]

    def clear(self) -> None:
        """All is measured."""
        self.halfway.clear()


def _probe(
    context: Context, at: Path, whole: PreTrainedModel, plan: PrunePlan, shared: _Shared, *, alone: bool
) -> float:
    """The held-out loss after a cut, measured once: a later start of the same decision finds it."""
    key = [cut_key(context, plan), context.recipe.score.model_dump(mode="json")]
    note = at / f".probe-{json_sha([plan.new_shape, plan in shared.plans])}.half"
    known_loss = _noted(note, json_sha(key))
    if known_loss is not None:
        return known_loss
    patch: Mapping[str, Tensor] = {}
    if context.recipe.compensate != "none":
        if plan in shared.plans:
            patch = shared.patch(plan)
        elif alone:
            made = once(
                at / PATCH, cut_key(context, plan), lambda tmp: make_patch(context, shared.given, plan, at).write(tmp)
            )
            patch = Patch.read(made).tensors
        else:
            patch = make_patch(context, shared.given, plan, at).tensors
    loss = held_out_loss(context, apply_in_memory(whole, plan, patch))
    write_json(note, {"key": json_sha(key), "loss": loss})
    half(at, PATCH, context, cut_key(context, plan)).clear()
    return loss


def _noted(note: Path, key: str) -> float | None:
    """The loss that an earlier start has measured."""
    try:
        told = json.loads(note.read_text(encoding="utf-8"))
        return float(told["loss"]) if told["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def clear_halves(at: Path) -> None:
    """Remove what was left for a later start, once the stage that it belonged to is at its end."""
    for path in at.glob(".*.half"):
        remove(path)


def scored_before(run: RunFolder, index: int) -> float:
    """Seconds that scoring took for the decision on a round, whose scores the round has copied."""
    at = run.folder(DECISIONS) / f"{index:02d}"
    return sum(seconds_of(at, name) for name in ("scores.safetensors", "protect.safetensors"))


def probed(context: Context, run: RunFolder, case: Case, index: int, attempt: int) -> DecisionRecord:
    """The round by damage, or the next try, measured and decided once: RUN/decisions/NN[-aK].json."""
    home, current, context = run.folder(DECISIONS), case.current, renewed_for(context, run, case, index)
    path, prune = _decision(home, index, attempt), case.recipe.prune
    at, source, sha = home / f"{index:02d}", run.model_of(current), known(current.model_sha, "model_sha")
    key = {
        "model": sha,
        "prune": prune.model_dump(mode="json", exclude=None if prune.ladder else {"ladder"}),  # as older runs have it
        "compensate": context.recipe.compensate,
        "data": context.scored_sha,
    }

    timed = Timed(at)

    def measured(shapes: Sequence[Place]) -> list[Probe]:
        at.mkdir(parents=True, exist_ok=True)
        more = case.recipe.prune.cut if index == 1 else None
        return losses(context, run, at, source, take_scores(context, run, timed, source, sha), shapes, more)

    def make(tmp: Path) -> None:
        start = time.monotonic()
        if case.recipe.searches:
            before = [p for a in range(1, attempt) for p in _probes(home, index, a)]  # of the same model
            found = seek(case, index, measured if case.recipe.probed else None, before)
        else:
            found = by_damage(case, index, Probing(measured, lambda: affordable(context)))
        step = found.step and dataclasses.replace(found.step, attempt=attempt)
        probing = time.monotonic() - start - sum(timed.made.values())
        changes = {"step": step, "seconds": round(max(0.0, probing), 3)}
        write_json(tmp, found.model_copy(update=changes).to_json())

    made = once(path, key, make)
    clear_halves(at)
    return DecisionRecord.read(made)


def _decision(home: Path, index: int, attempt: int) -> Path:
    return home / (f"{index:02d}.json" if attempt == 1 else f"{index:02d}-a{attempt}.json")


def _probes(home: Path, index: int, attempt: int) -> tuple[Probe, ...]:
    """What was probed for an earlier try from the same model."""
    path = _decision(home, index, attempt)
    return tuple(p for p in DecisionRecord.read(path).probes) if path.is_file() else ()
