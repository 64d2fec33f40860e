"""prunetune: make a reasoning language model half its size without losing its reasoning.

    import prunetune

    small = prunetune.compact(model, rows, target=0.6, tokenizer=tokenizer)     # a model object in, a model object out
    summary = prunetune.prune_tune_loop("recipe.yaml", "runs/mine")             # a run folder, resumable, with a report

The stages of one cut, on objects in memory: `batches`, `score`, `plan`, `compensate`, `apply`.
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunetune.common.plugins import register
    from prunetune.errors import PrunetuneError
    from prunetune.loop.compact import compact
    from prunetune.loop.loop import prune_tune_loop
    from prunetune.pruning.in_memory import apply, batches, compensate, plan, score
    from prunetune.recipe.schema import Recipe

try:
    __version__ = version("prunetune")
except PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "0"

_HOME = {
    "PrunetuneError": "errors",
    "Recipe": "recipe.schema",
    "prune_tune_loop": "loop.loop",
    "compact": "loop.compact",
    "batches": "pruning.in_memory",
    "score": "pruning.in_memory",
    "plan": "pruning.in_memory",
    "compensate": "pruning.in_memory",
    "apply": "pruning.in_memory",
    "register": "common.plugins",
}

__all__ = [
    "PrunetuneError",
    "Recipe",
    "__version__",
    "apply",
    "batches",
    "compact",
    "compensate",
    "plan",
    "prune_tune_loop",
    "register",
    "score",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:  # pydantic, and torch with the loop, are imported only once they are needed
        return getattr(importlib.import_module(f"prunetune.{_HOME[name]}"), name)
    raise AttributeError(f"module 'prunetune' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
