"""What other packages add to our registries: a criterion, verifier, task, family, data source or recovery method.

    # pyproject.toml of another package
    [project.entry-points."prunetune.plugins"]
    "criterion.mine" = "my_package:MINE"           # a `pruning.criteria.Criterion`

    prunetune.register("verifier", "mine", judge)  # or in this process, before the first recipe is read

An entry is loaded once it is looked up. No entry takes a built-in name.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from pydantic import ValidatorFunctionWrapHandler, WrapValidator

from prunetune.errors import RecipeError, UnknownName

GROUP = "prunetune.plugins"
KINDS = {
    "criterion": "pruning.criteria.Criterion",
    "layer_criterion": "fp32 (h, f(h)), each [tokens, hidden] -> [tokens]",
    "family": "models.families.Family",
    "axis": "models.axes.Axis",
    "task": "tasks.TaskConfig -> tasks.Task",
    "verifier": "(output, reference) -> tasks.Verdict",
    "source": "a pydantic model with `type` and `examples()`",
    "method": "tune.methods.Method",
    "callback": "() -> transformers.TrainerCallback, named in a recipe's `log`",
    "runner": "tune.training.trainers.Runner, of the method of that name",
}
"""Kind -> what an entry is."""
_REGISTERED: dict[tuple[str, str], Any] = {}

T = TypeVar("T")


def register(kind: str, name: str, entry: Any) -> None:
    """Add an entry to a registry, for this process.

    Args:
        kind: One of `KINDS`.
        name: What recipes and commands call it.
        entry: What the registry holds, see `KINDS`.

    Raises:
        UnknownName: No such kind. RecipeError: The name is none.
    """
    if kind not in KINDS:
        raise UnknownName("kind of plugin", kind, KINDS)
    if not re.fullmatch(r"[A-Za-z][\w-]*", name):
        raise RecipeError("a plugin's name is one word", value=name, valid="letters, digits, _ and -")
    _REGISTERED[kind, name] = entry


@functools.cache
def _installed() -> dict[tuple[str, str], EntryPoint]:
    """(kind, name) -> entry point, of all installed packages; nothing is imported."""
    found = {}
    for entry in entry_points(group=GROUP):
        kind, _, name = entry.name.partition(".")
        if kind in KINDS and name:
            found[kind, name] = entry
    return found


def names(kind: str) -> list[str]:
    """The names that plugins add to a registry."""
    return sorted({name for of, name in [*_installed(), *_REGISTERED] if of == kind})


def joined(kind: str, own: Mapping[str, T]) -> dict[str, T]:
    """Our own entries, then the plugins' (loaded); a built-in name stays ours."""
    return {**{name: _load(kind, name) for name in names(kind)}, **own}


def lookup(kind: str, own: Mapping[str, T], name: str, called: str) -> T:
    """One entry by its name; UnknownName, with what there is, if nobody has it."""
    if name in own:
        return own[name]
    if name not in names(kind):
        raise UnknownName(called, name, [*own, *names(kind)])
    found: T = _load(kind, name)
    return found


def _load(kind: str, name: str) -> Any:
    if (kind, name) in _REGISTERED:
        return _REGISTERED[kind, name]
    entry = _installed()[kind, name]
    try:
        return entry.load()
    except (ImportError, AttributeError, SyntaxError) as e:
        raise RecipeError(
            f"the plugin {kind}.{name} cannot be loaded ({type(e).__name__}: {e})",
            value=entry.value,
            fix="mend or remove the package that it comes from",
        ) from e


def plugged(kind: str) -> WrapValidator:
    """An annotation of such a union: a value whose `type` is a plugin's is read by the plugin's model.

    Args:
        kind: `source` or `method`, see `plugins.KINDS`.
    """

    def read(value: Any, ours: ValidatorFunctionWrapHandler) -> Any:
        name = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
        if not isinstance(name, str) or name not in names(kind):
            return ours(value)
        model: Any = lookup(kind, {}, name, kind)
        return value if isinstance(value, model) else model.model_validate(value)

    return WrapValidator(read)
