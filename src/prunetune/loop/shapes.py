"""The final shape where only measuring tells it: `prune.axes`, or a target in time such as `2x`.

    context = shaped(context, run, case)     # its recipe then names the shape; RUN/decisions/shape.json says why

Candidates are cut and compensated in memory, as a round would; `losses` keeps each of these probes, so that a killed
search goes on with the next one. What is chosen is the target of the rounds: how they get there is decided as ever.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from prunetune.common.files import once, write_json
from prunetune.errors import OutOfReach
from prunetune.evaluation.speed import Clock
from prunetune.loop.context import Context
from prunetune.loop.decide import Case
from prunetune.loop.probe import DECISIONS, clear_halves, losses, take_scores
from prunetune.loop.sampling.traces import renewed_for
from prunetune.models.axes import axes, shape_of
from prunetune.pruning.apply import apply_in_memory
from prunetune.pruning.plan import make_plan
from prunetune.runs.folder import RunFolder, Timed
from prunetune.runs.records import known
from prunetune.runs.shapes import SHAPE, ShapeRecord, Tried
from prunetune.schedule.fitting import fits
from prunetune.schedule.search import MOST, NEURONS, Candidate, Found, frontier, search
from prunetune.schedule.target import SEARCHED, FinalShape, PruneConfig, align_of

Counts = Mapping[str, int]

LEAST = 4
"""An axis keeps at least this part of it: one in so many."""


def shaped(context: Context, run: RunFolder, case: Case) -> Context:
    """The context with the shape that was found as its target; itself where the recipe tells the shape."""
    prune = context.recipe.prune
    if not prune.open:
        return context
    path = run.folder(DECISIONS) / SHAPE
    source, sha = run.model_of(run.original), known(run.original.model_sha, "model_sha")
    key = {
        "model": sha,
        "data": context.scored_sha,
        "compensate": context.recipe.compensate,
        "criterion": context.recipe.score.criterion,
        "prune": prune.model_dump(mode="json", include={"target", "axes", "context", "align", "whole_periods"}),
    }

    def make(tmp: Path) -> None:
        start = time.monotonic()
        record = _chosen(renewed_for(context, run, case, 1), run, case, source, sha)
        write_json(tmp, record.model_copy(update={"seconds": round(time.monotonic() - start, 3)}).to_json())

    record = ShapeRecord.read(once(path, key, make))
    if not context.recipe.probed:  # else the decision on the first round finds its probe, and clears them
        clear_halves(run.folder(DECISIONS) / "01")
    context.watch.line(f"  shape: {_said(record)}")
    final = FinalShape(width=record.shape[NEURONS], depth=record.shape["layers"])
    fixed = prune.model_copy(update={"target": final, "axes": None, "context": None})
    return replace(context, recipe=context.recipe.changed(prune=fixed))


def _said(record: ShapeRecord) -> str:
    shape = ", ".join(f"{count} {name}" for name, count in record.shape.items())
    if (best := record.candidates[0]).measured is None:
        return f"{shape}, the only one for {record.asked}"
    added = best.measured - record.loss
    return f"{shape}, the best of {record.cuts} that were cut for {record.asked} ({added:+.3f} nats straight after it)"


def _chosen(context: Context, run: RunFolder, case: Case, source: Path, sha: str) -> ShapeRecord:
    prune, sizes = context.recipe.prune, context.sizes
    target = prune.target
    if target is None or isinstance(target, FinalShape) or sizes.cost is None:
        raise TypeError("a target that leaves the shape open, and the cost of the model")
    names = tuple(dict.fromkeys(prune.axes or SEARCHED))
    whole = sizes.cost.shape.counts() | shape_of(context.config.to_dict())
    units = {name: whole[name] for name in axes() if name in whole}
    clock = _clock(context, source, sha, units, names).ms if isinstance(target, str) and not prune.in_bytes else None
    enough = fits(target, sizes.cost, context=prune.context, ms=clock)
    shapes = candidates(prune, units, names, context, case, enough)
    if not shapes:
        smallest = {**units, **{name: max(1, math.ceil(units[name] / LEAST)) for name in names}}
        raise OutOfReach(
            "no shape of these axes reaches the target",
            value=f"{target}, axes: {', '.join(names)}",
            valid=f"at least {replace(sizes.cost, shape=sizes.cost.shape.resized(smallest)).params:,} parameters"
            + (f", {clock(units) / clock(smallest):.2f}x" if clock else ""),
            fix="a larger target, or more axes (prune.axes)",
        )
    found = _search(context, run, case, source, sha, shapes, units)
    tried = tuple(_tried(context, c, clock) for c in found.candidates)
    cuts = sum(t.measured is not None for t in tried)
    return ShapeRecord(asked=target, shape=found.shape, loss=case.current.loss, cuts=cuts, candidates=tried)


def candidates(
    prune: PruneConfig,
    units: Counts,
    names: tuple[str, ...],
    context: Context,
    case: Case,
    enough: Callable[[Counts], bool],
) -> list[dict[str, int]]:
    """The shapes that meet the target and are no larger than what the run has come to."""
    values = context.config.to_dict()
    now = {**units, **dict(zip(("layers", NEURONS), case.now, strict=True))}
    levels = {}
    for name in (name for name in names if name != NEURONS):
        grain = axes()[name].grain(values) if prune.whole_periods or name != "layers" else 1
        levels[name] = range(now[name], math.ceil(units[name] / LEAST) - 1, -grain)
    align = align_of(prune, context.sizes)
    least = max(align, math.ceil(units[NEURONS] / LEAST))
    return frontier(now, levels, enough, least, align)


def _search(
    context: Context,
    run: RunFolder,
    case: Case,
    source: Path,
    sha: str,
    shapes: list[dict[str, int]],
    units: Counts,
) -> Found:
    at = run.folder(DECISIONS) / "01"
    at.mkdir(parents=True, exist_ok=True)

    def lost(shape: Counts) -> float:
        scores = take_scores(context, run, Timed(at), source, sha)
        return losses(context, run, at, source, scores, [(shape["layers"], shape[NEURONS])])[0].loss

    return search(shapes, units, case.original.loss, lost, MOST)


def _tried(context: Context, candidate: Candidate, clock: Callable[[Counts], float] | None) -> Tried:
    cost = known(context.sizes.cost, "cost")
    params = replace(cost, shape=cost.shape.resized(candidate.shape)).params
    ms = round(clock(candidate.shape), 3) if clock else None
    predicted = candidate.predicted if math.isfinite(candidate.predicted) else None
    return Tried(shape=candidate.shape, params=params, predicted=predicted, measured=candidate.measured, ms=ms)


def _clock(context: Context, source: Path, sha: str, units: Counts, names: tuple[str, ...]) -> Clock:
    """Time by shape on this machine: the model with the first units of each axis, whatever they are worth."""
    model = context.load(source)
    experts = units.get("experts", 0)
    none = [[0.0] * units[NEURONS] * (experts or 1)] * units["layers"]

    def cut(shape: Counts) -> Any:
        gone = {name: units[name] - shape[name] for name in units}
        amounts: Any = {"n_neurons": gone[NEURONS], "n_layers": gone["layers"], "experts": experts}
        plan = make_plan(none, [0.0] * units["layers"], sha, **amounts)
        return apply_in_memory(model, plan, {})

    with context.watch.bar("time shapes") as bar:
        return Clock.timed(units, names, cut, bar)
