"""The final shape where only measuring tells it: `prune.axes`, or a target in time such as `2x`.

    context = shaped(context, run, case)     # its recipe then names the shape; RUN/decisions/shape.json says why

Candidates are cut and compensated in memory, as a round would; `losses` keeps each of these probes, so that a killed
search goes on with the next one. What is chosen is the target of the rounds: how they get there is decided as ever.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prunetune.common.files import once, write_json
from prunetune.errors import OutOfReach
from prunetune.evaluation.speed import Clock
from prunetune.loop.context import Context, may_be_left
from prunetune.loop.decide import Case
from prunetune.loop.probe import DECISIONS, clear_halves, losses, take_scores
from prunetune.loop.sampling.traces import renewed_for
from prunetune.loop.start.vocabulary import longer_by
from prunetune.models.axes import axes, shape_of
from prunetune.models.families import family_of
from prunetune.pruning.apply import apply_in_memory
from prunetune.pruning.blocks.choose import Others
from prunetune.pruning.plan import make_plan
from prunetune.runs.folder import RunFolder, Timed
from prunetune.runs.records import known
from prunetune.runs.shapes import SHAPE, ShapeRecord, Tried
from prunetune.schedule.fitting import fits
from prunetune.schedule.reach import VOCABULARY, in_blocks, unfit, why_none
from prunetune.schedule.search import MOST, NEURONS, Candidate, Found, frontier, search
from prunetune.schedule.sizes import Sizes
from prunetune.schedule.target import SEARCHED, FinalShape, PruneConfig, align_of

Counts = Mapping[str, int]

WHOLE = "00"
"""In RUN/decisions: what is known of shapes with all tokens, where others have fewer."""
LEAST = 4
"""An axis keeps at least this part of it: one in so many."""


def shaped(context: Context, run: RunFolder, case: Case) -> Context:
    """The context with the shape that was found as its target; itself where the recipe tells the shape."""
    prune = context.recipe.prune
    if not prune.open:
        return context
    path = run.folder(DECISIONS) / SHAPE
    key = {
        "model": known(run.original.model_sha, "model_sha"),
        "data": context.scored_sha,
        "compensate": context.recipe.compensate,
        "criterion": context.recipe.score.criterion,
        "prune": prune.model_dump(mode="json", include={"target", "axes", "context", "align", "whole_periods"}),
        **({"vocabulary": context.fitted.sha} if context.fitted else {}),
    }

    def make(tmp: Path) -> None:
        start = time.monotonic()
        record = _chosen(renewed_for(context, run, case, 1), run, case)
        write_json(tmp, record.model_copy(update={"seconds": round(time.monotonic() - start, 3)}).to_json())

    record = ShapeRecord.read(once(path, key, make))
    clear_halves(run.folder(DECISIONS) / WHOLE)
    if not context.recipe.probed:  # else the decision on the first round finds its probe, and clears them
        clear_halves(run.folder(DECISIONS) / "01")
    context.watch.line(f"  shape: {_said(record)}")
    final = FinalShape(width=record.shape[NEURONS], depth=record.shape["layers"])
    gone = _others_gone(record.shape, shape_of(context.config.to_dict()))
    context = _with_tokens(context, run, record.shape)
    changes = {"target": final, "axes": None, "context": None, "cut": gone}
    fixed = prune.model_copy(update=changes | ({} if context.fitted else {"vocabulary": None}))
    return replace(
        context, recipe=context.recipe.changed(prune=fixed), sizes=Sizes.of(context.config, gone, context.rows)
    )


def _with_tokens(context: Context, run: RunFolder, shape: Counts) -> Context:
    """The context of a shape: one that has all tokens starts from the untouched model."""
    if context.fitted is None or shape[VOCABULARY] == context.rows:
        return context
    run.first = "original"
    return replace(context.untouched(), fitted=None)


def _others_gone(shape: Counts, units: Counts) -> dict[str, int]:
    """Units of axes in blocks (heads) that a shape lacks."""
    return {name: units[name] - shape[name] for name in in_blocks() if name in units and shape[name] < units[name]}


def _said(record: ShapeRecord) -> str:
    shape = ", ".join(f"{count} {name}" for name, count in record.shape.items())
    if (best := record.candidates[0]).measured is None:
        return f"{shape}, the only one for {record.asked}"
    added = best.measured - record.loss
    return f"{shape}, the best of {record.cuts} that were cut for {record.asked} ({added:+.3f} nats straight after it)"


def _chosen(context: Context, run: RunFolder, case: Case) -> ShapeRecord:
    prune, sizes = context.recipe.prune, context.sizes
    target = prune.target
    if target is None or isinstance(target, FinalShape) or sizes.cost is None:
        raise TypeError("a target that leaves the shape open, and the cost of the model")
    names = _names(context)
    whole = sizes.cost.shape.counts() | shape_of(context.config.to_dict())
    units = {name: whole[name] for name in axes() if name in whole}
    if context.rows is not None:  # a choice, or what the first round starts from
        units[VOCABULARY] = whole[VOCABULARY] if VOCABULARY in names else context.rows
    timed = isinstance(target, str) and not prune.in_bytes
    clock = _clock(context, run.model_of(run.start), run.start.model_sha or "", units, names).ms if timed else None
    enough = fits(target, sizes.cost, context=prune.context, ms=clock)
    shapes = candidates(prune, units, names, context, case, enough)
    if not shapes:
        smallest = {**units, **{name: max(1, math.ceil(units[name] / LEAST)) for name in names}}
        smallest |= {VOCABULARY: context.rows} if context.rows is not None else {}
        raise OutOfReach(
            "no shape of these axes reaches the target",
            value=f"{target}, axes: {', '.join(names)}",
            valid=f"at least {replace(sizes.cost, shape=sizes.cost.shape.resized(smallest)).params:,} parameters"
            + (f", {clock(units) / clock(smallest):.2f}x" if clock else ""),
            fix="a larger target, or more axes (prune.axes)",
        )
    found = _search(context, run, case, shapes, units)
    tried = tuple(_tried(context, c, clock) for c in found.candidates)
    cuts = sum(t.measured is not None for t in tried)
    return ShapeRecord(asked=target, shape=found.shape, loss=case.original.loss, cuts=cuts, candidates=tried)


def _names(context: Context) -> tuple[str, ...]:
    """The axes to choose among; one of which this family can lose nothing is left out, with a word."""
    values, found = context.config.to_dict(), []
    for name in dict.fromkeys(context.recipe.prune.axes or SEARCHED):
        if name in in_blocks() and not may_be_left(context.config, name):
            why = why_none(name, shape_of(values)[name], family_of(context.config), values)
            context.watch.line(f"  {name}: none can go, so they are no part of the choice: {why}")
        else:
            found.append(name)
    return tuple(found)


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
    levels: dict[str, Sequence[int]] = {}
    if VOCABULARY in names and context.rows is not None:
        levels[VOCABULARY] = sorted({units[VOCABULARY], context.rows}, reverse=True)
    for name in (name for name in names if name not in (NEURONS, VOCABULARY)):
        grain = axes()[name].grain(values) if prune.whole_periods or name != "layers" else 1
        levels[name] = range(now[name], math.ceil(units[name] / LEAST) - 1, -grain)
    align = align_of(prune, context.sizes)
    least = max(align, math.ceil(units[NEURONS] / LEAST))
    found = frontier(now, levels, enough, least, align)
    return [shape for shape in found if unfit(shape, family_of(context.config), values) is None]


def _search(
    context: Context,
    run: RunFolder,
    case: Case,
    shapes: list[dict[str, int]],
    units: Counts,
) -> Found:
    def lost(shape: Counts) -> float:
        """Nats for each token of the original, with whichever vocabulary the text is cut."""
        fewer = context.rows is not None and shape[VOCABULARY] == context.rows
        given, first = (context, run.start) if fewer else (context.untouched(), run.original)
        at = run.folder(DECISIONS) / (WHOLE if first != run.start else "01")
        at.mkdir(parents=True, exist_ok=True)
        source, sha = run.model_of(first), known(first.model_sha, "model_sha")
        scores, more = take_scores(given, run, Timed(at), source, sha), _others_gone(shape, units)
        found = losses(given, run, at, source, scores, [(shape["layers"], shape[NEURONS])], more)[0].loss
        return found * longer_by(run) if fewer else found

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
    same = {name: [[0.0] * axes()[name].places(units)] * units["layers"] for name in in_blocks() if name in units}

    def cut(shape: Counts) -> Any:
        gone = {name: units[name] - shape[name] for name in units}
        amounts: Any = {"n_neurons": gone[NEURONS], "n_layers": gone["layers"], "experts": experts}
        amounts["others"] = Others(_others_gone(shape, units), same, units)
        plan = make_plan(none, [0.0] * units["layers"], sha, **amounts)
        return apply_in_memory(model, plan, {})

    halves = {name: _half(context, name, units[name]) for name in names}
    with context.watch.bar("time shapes") as bar:
        return Clock.timed(units, halves, cut, bar)


def _half(context: Context, name: str, units: int) -> int:
    """The number of units nearest to half of them that a model can have; of layers and neurons there is any."""
    fit = may_be_left(context.config, name) if name not in SEARCHED else [units // 2]
    return max(1, min(fit, key=lambda n: abs(2 * n - units)))
