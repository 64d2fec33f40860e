"""prunetune: make a reasoning language model half its size without losing its reasoning.

from prunetune import Recipe
from prunetune import prune_tune_loop

summary = prune_tune_loop(Recipe.read("demo"), "runs/demo")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunetune.errors import PrunetuneError
    from prunetune.loop.loop import prune_tune_loop
    from prunetune.recipe.schema import Recipe

__all__ = ["PrunetuneError", "Recipe", "prune_tune_loop"]

_HOME = {"PrunetuneError": "errors", "Recipe": "recipe.schema", "prune_tune_loop": "loop.loop"}


def __getattr__(name: str) -> Any:
    if name in _HOME:  # pydantic, and torch with the loop, are imported only once they are needed
        return getattr(importlib.import_module(f"prunetune.{_HOME[name]}"), name)
    raise AttributeError(f"module 'prunetune' has no attribute {name!r}")
