"""The control of a run: the same size with the same recovery budget, made another way than the run made it.

A run of several rounds is set against one round. A run of one round would be repeated to the last bit by that, so it
is set against the bare cut: nothing compensated, neurons ranked by `contribution`. A run that is a bare cut itself has
no control. `naive` is what a user would cut by hand, with nothing done about it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunetune.loop.decide import Case, prune_of
from prunetune.recipe.schema import Recipe
from prunetune.runs.records import known
from prunetune.schedule.steps import once
from prunetune.schedule.target import FinalShape
from prunetune.tune.methods import TuneConfig

ONCE, BARE, NAIVE = "pruned once", "bare cut", "naive cut"
ABOUT = {
    ONCE: "the same size in one round, with the same budget",
    BARE: "the run is one round already, so the same size by a bare cut (no compensation, ranked by contribution), "
    "with the same budget",
    NAIVE: "the same size as one would cut it by hand: the last layers and the neurons with the smallest weights go, "
    "nothing is compensated or recovered",
}


def control_recipe(case: Case) -> tuple[str, Recipe] | None:
    """What the control is called, and its recipe; None where it would be the run itself."""
    recipe = case.recipe
    if recipe.control == "naive":
        return None if is_naive(recipe.model_dump(mode="json")) else (NAIVE, _naive(case))
    alone = recipe.changed(
        prune=once(prune_of(case), case.sizes),
        control="none",
        recover=[at_once(m, len(case.accepted)) for m in recipe.recover],
        budget="equal",
        stop_at=None,
        evaluate=recipe.evaluate.model_copy(update={"rivals": []}),
    )
    if len(case.accepted) > 1:
        return ONCE, alone
    if is_bare(recipe.model_dump(mode="json")):
        return None
    return BARE, alone.changed(compensate="none", score=recipe.score.model_copy(update={"criterion": "contribution"}))


def _naive(case: Case) -> Recipe:
    recipe, last = case.recipe, case.accepted[-1]
    depth, whole, stays = known(last.depth, "depth"), case.sizes.depth, case.sizes.stays
    prune = once(prune_of(case), case.sizes).model_copy(
        update={
            "target": FinalShape(width=known(last.width, "width")),
            "layers": list(range(depth - stays, whole - stays)) if depth < whole else "auto",
        }
    )
    score = recipe.score.model_copy(update={"criterion": "magnitude"})
    changes: dict[str, Any] = {
        "control": "none",
        "recover": [],
        "compensate": "none",
        "budget": "equal",
        "stop_at": None,
    }
    return recipe.changed(prune=prune, score=score, **changes)


def is_naive(recipe: Mapping[str, Any]) -> bool:
    """Whether a recipe only takes the neurons with the smallest weights away."""
    score = recipe.get("score") or {}
    return bool(
        recipe.get("compensate") == "none" and score.get("criterion") == "magnitude" and not recipe.get("recover")
    )


def is_bare(recipe: Mapping[str, Any]) -> bool:
    """Whether a recipe cuts without compensation, by `contribution`."""
    score = recipe.get("score") or {}
    return bool(recipe.get("compensate", "none") == "none" and score.get("criterion", "contribution") == "contribution")


def name_of(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """What the control of a run is called, from both recipes."""
    if is_naive(theirs):
        return NAIVE
    return BARE if is_bare(theirs) and not is_bare(ours) else ONCE


def at_once(method: TuneConfig, rounds: int) -> TuneConfig:
    """The method with the budget of all `rounds` in one."""
    rounds = rounds if method.per == "round" and method.when == "every" else 1
    whole = {k: v * rounds for k in ("samples", "tokens") if (v := getattr(method, k)) is not None}
    return method.changed(per="run", **whole)
