"""What a recipe starts from: `extends: recommended` (as if it were not said), `extends: paper`, or another recipe.

    extends: paper          # every setting that the paper has otherwise; what the recipe says itself comes on top
    extends: mine.yaml      # or a shipped one, such as baselines/shortgpt

The defaults of the schema *are* the recommended settings: a file, `--model` and the single commands share them.
A mapping is merged key by key; anything else, lists too, is replaced whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from prunetune.errors import RecipeError

BASES: dict[str, dict[str, Any]] = {
    "recommended": {},
    "paper": {
        "prune": {"rounds": None},
        "score": {"criterion": "contribution"},
        "compensate": "none",
        "budget": "equal",
        "do_no_harm": False,
        "recover": [{"type": "cpt", "learning_rate": 8e-6}],
    },
}
"""What differs from the schema's defaults, by name."""
MOST = 10
"""Recipes that extend each other."""


def with_base(value: Any, where: str, read: Callable[[str], Mapping[str, Any]]) -> Any:
    """The recipe as a mapping without `extends`: what it extends, with its own values on top.

    Args:
        value: A recipe as written.
        where: What was read, for messages.
        read: Name or path of another recipe -> its mapping.

    Raises:
        RecipeError: `extends` is no name, or recipes extend each other in a circle.
    """
    parts: list[Any] = []
    while isinstance(value, Mapping) and "extends" in value:
        name = value["extends"]
        if not isinstance(name, str) or not name.strip():
            raise RecipeError(
                f"{where}: extends must be a name",
                value=name,
                valid=[*BASES, "the path or name of a recipe"],
                fix="extends: paper",
            )
        if len(parts) == MOST:
            raise RecipeError(
                f"{where}: recipes extend each other in a circle", value=name, fix="end it in one of them"
            )
        parts.append({k: v for k, v in value.items() if k != "extends"})
        value = BASES[name] if name in BASES else read(name)
    for part in reversed(parts):
        value = merged(value, part)
    return value


def merged(base: Any, over: Any) -> Any:
    """`over` on top of `base`: mappings key by key, anything else whole."""
    if not (isinstance(base, Mapping) and isinstance(over, Mapping)):
        return over
    return {**base, **{k: merged(base[k], v) if k in base else v for k, v in over.items()}}
