"""What is known of a model before a round: its scores, and the loss that a cut to a shape would leave."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prunetune.common.files import is_made, json_sha, once
from prunetune.evaluation.latency import measure
from prunetune.loop.bench import Bench, free
from prunetune.models.cost import cost_of
from prunetune.models.folders import load_config
from prunetune.pruning.apply import apply_in_memory
from prunetune.pruning.compensate import Patch, calibration_and_held_out, compensate
from prunetune.pruning.plan import PrunePlan, make_plan
from prunetune.pruning.scores import Scores, score
from prunetune.runs.folder import Timed
from prunetune.schedule.damage import Place, Probe

PATCH = "patch.safetensors"
"""Of a round, and of the decision on it."""
QUESTION = (512, 256)
"""Prompt and answer tokens of the question whose FLOPs `order: auto` saves."""


def take_scores(bench: Bench, timed: Timed, source: Path, sha: str) -> Scores:
    """The scores of a model, on the reasoning data and, if asked for, on the protected corpus; made once in `timed.at`.

    Scores that the decision on this round has made already are copied.
    """
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
        key = {**common, "data": data_sha, "samples": s.samples}

        def make(tmp: Path, name: str = name, data_sha: str = data_sha, batches: Any = batches, key: Any = key) -> None:
            before = bench.run.decisions / timed.at.name.split("-")[0] / name
            if is_made(before, key):
                shutil.copyfile(before, tmp)
                return
            _score(bench, source, sha, name, data_sha, batches()).write(tmp)
            free()

        timed.once(name, "score", key, make)
    return Scores.read(timed.at / "scores.safetensors")


def _score(bench: Bench, source: Path, sha: str, name: str, data_sha: str, batches: Sequence[Any]) -> Scores:
    s = bench.recipe.score
    with bench.watch.bar("protect" if name.startswith("protect") else "score") as bar:
        return score(
            bench.load(source),
            batches,
            neuron_criterion=s.criterion,
            reduce=s.reduce,
            layers_by=s.layer_criterion,
            vote_share=s.vote_share,
            seed=bench.recipe.seed,
            model_sha=sha,
            data_sha=data_sha,
            progress=bar,
        )


def plan_for(bench: Bench, at: Path, scores: Scores, *, neurons: int, layers: int) -> PrunePlan:
    """The plan that removes so many of the lowest scores, protected ones and the recipe's choice of layers heeded."""
    protect = bench.recipe.protect
    return make_plan(
        scores.neurons.tolist(),
        scores.layers.tolist(),
        scores.model_sha,
        n_neurons=neurons,
        n_layers=layers,
        which_layers=free_layers(bench),
        protected=Scores.read(at / "protect.safetensors").neurons.tolist() if protect else None,
        protect_share=protect.share if protect else 0.0,
    )


def free_layers(bench: Bench) -> list[int] | None:
    """The layers that may go, if the recipe names them, as numbered now."""
    chosen, origins = bench.recipe.prune.layers, bench.run.layer_origins()
    return [origins.index(i) for i in chosen if i in origins] if isinstance(chosen, list) else None


def make_patch(bench: Bench, model: Any, plan: PrunePlan, progress: Any = None) -> Patch:
    """Least squares into the kept neurons, from the scored sequences: every fourth chooses the ridge."""
    examples = bench.stream.take(0, bench.recipe.score.samples)
    calibration, ridge = (bench.batches(part) for part in calibration_and_held_out(examples))
    target = "layer" if bench.recipe.compensate == "least-squares-neurons" else "auto"
    return compensate(model, plan, calibration, held_out=ridge, target=target, device=bench.device, progress=progress)


def cut_key(bench: Bench, plan: PrunePlan) -> dict[str, Any]:
    """What a cut model and its patch are made from."""
    return {"plan": plan.model_dump(mode="json"), "compensate": bench.recipe.compensate, "data": bench.stream.sha}


def probe(bench: Bench, at: Path, source: Path, scores: Scores, shapes: Sequence[Place]) -> list[Probe]:
    """Cut the model to each shape in memory, as a round would, and take its held-out loss.

    Of a single shape the patch stays in `at`: if the round then is this cut, it need not be made again.
    """
    save = bench.recipe.prune.save if bench.recipe.prune.order == "auto" else None
    config, whole = load_config(source), bench.load(source)
    depth, width = config.num_hidden_layers, config.intermediate_size
    found = []
    with bench.watch.bar("probe") as bar:
        for done, (d, w) in enumerate(shapes, start=1):
            plan = plan_for(bench, at, scores, neurons=width - w, layers=depth - d)
            patch = None if bench.recipe.compensate == "none" else make_patch(bench, whole, plan)
            if patch and len(shapes) == 1:
                once(at / PATCH, cut_key(bench, plan), patch.write)
            cut = apply_in_memory(whole, plan, patch.tensors if patch else {})
            saved = 0.0
            if save == "ms":
                times = measure({"before": whole, "after": cut})
                saved = times["before"].question_ms - times["after"].question_ms
            elif save is not None:
                saved = _cost(config, save, depth, width) - _cost(config, save, d, w)
            found.append(Probe(d, w, bench.sizes.params(d, w), bench.loss(cut), saved))
            del cut
            free()
            bar(done, len(shapes))
    return found


def _cost(config: Any, unit: str, depth: int, width: int) -> float:
    cost = cost_of(config, depth=depth, width=width)
    return float(cost.weight_bytes if unit == "bytes" else cost.flops(*QUESTION).total)
