"""prunetune: make a reasoning language model half its size without losing its reasoning.

    from prunetune import Recipe, prune_tune_loop

    summary = prune_tune_loop(Recipe.read("demo"), "runs/demo")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prunetune.errors import PrunetuneError
from prunetune.recipe import Recipe

if TYPE_CHECKING:
    from prunetune.loop import prune_tune_loop

__all__ = ["PrunetuneError", "Recipe", "prune_tune_loop"]


def __getattr__(name: str) -> Any:
    if name == "prune_tune_loop":  # torch is imported only once it is needed
        from prunetune.loop import prune_tune_loop

        return prune_tune_loop
    raise AttributeError(f"module 'prunetune' has no attribute {name!r}")
