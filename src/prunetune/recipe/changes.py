"""Which fields of a recipe may change between two starts of the same run.

Some may, because they leave all bytes already made as they are: `FREE`. Any other difference is RecipeChanged.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from typing import Any

from pydantic import ValidationError

from prunetune.errors import RecipeChanged
from prunetune.recipe.schema import Recipe

# Fields that may change when a run is continued, with what that means.
FREE = {
    "launcher": "on how many devices it runs",
    "evaluate": "tasks may be added or measured on more problems",
    "keep": "which models stay on disk",
    "control": "the control is a run of its own",
    "device": "where scoring and evaluation run",
    "log": "who is told of it",
    "prune.target": "a deeper target goes on from the end",
    "prune.max_rounds": "more rounds go on from the end",
    "prune.ladder": "further rungs go on from the end",
}


def check_unchanged(before: dict[str, Any], now: dict[str, Any], free: Collection[str] = ()) -> None:
    """Raise RecipeChanged, with the differences, if bytes already made would differ under the new recipe.

    Args:
        before: The recipe that made them.
        now: The new one.
        free: Fields that nothing made depends on yet, besides `FREE`.
    """
    free = (*FREE, *free)
    before = _without_retired(before)
    with contextlib.suppress(ValidationError):  # else settings that are gone, or damage: shown as they are
        before = Recipe.model_validate(before).model_dump(mode="json")  # settings that came later, at their defaults
    old, new = _flat(before), _flat(now)
    differs = [
        k
        for k in sorted({*old, *new})
        if old.get(k) != new.get(k)
        and not any(k == f or k.startswith(f + ".") for f in free)
        and not (k.endswith(".strip_marks") and not old.get(k) and new.get(k) is None)  # the default of 0.1 was false
    ]
    if differs:
        shown = "; ".join(f"{k}: {old.get(k)!r} -> {new.get(k)!r}" for k in differs[:5])
        raise RecipeChanged(
            "this run folder holds results of another recipe",
            value=shown + ("; ..." if len(differs) > 5 else ""),
            valid="changes of " + ", ".join(free),
            fix="choose a new --out, or undo the change: nothing is thrown away",
        )


RETIRED = {
    ("anneal",): "every",
    ("tolerance",): None,
    ("prune", "save"): "flops",
    ("recover", "*", "until"): "budget",
    ("recover", "*", "slope"): 0.01,
}
"""Keys that version 0.1 wrote and nothing reads any more, with the value that changes nothing."""


def _without_retired(value: Any, path: tuple[str, ...] = ()) -> Any:
    if isinstance(value, list):
        return [_without_retired(v, (*path, "*")) for v in value]
    if not isinstance(value, dict):
        return value
    return {
        k: _without_retired(v, (*path, k))
        for k, v in value.items()
        if (*path, k) not in RETIRED or v != RETIRED[(*path, k)]
    }


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, (dict, list)) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for key, item in items for k, v in _flat(item, f"{prefix}{key}.").items()}
    return {prefix.rstrip("."): value}
