"""A pydantic validation error as one message in a recipe's own terms: the key as written, the value, what is valid.

    raise explain(error, "recipe.yaml", Recipe)

A recipe has unions (`target: 0.6` or `{width: 512}`; the methods of `recover`), of which pydantic reports every branch,
with the branch's name inside the path. Here the branches are one message, and the path is that of the file.
"""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from prunetune.errors import RecipeError

Location = Sequence[int | str]

WORDS = {
    "valid number": "number",
    "valid integer": "whole number",
    "a valid string": "text",
    "a valid boolean": "true or false",
    "a valid list": "a list, such as [...]",
    "a valid dictionary": "a mapping, such as {key: value}",
}
SHOWN = 200
"""Characters: a longer value (a whole mapping) is not shown."""


def explain(error: ValidationError, where: str, model: type[BaseModel] | None = None) -> RecipeError:
    """The error that says most, as one message.

    Args:
        error: What pydantic found.
        where: What was read.
        model: What it was read as; None: paths stay as pydantic has them.
    """
    found = [(_walk(model, e["loc"], unknown=e["type"] == "extra_forbidden"), e) for e in error.errors()]
    (path, beside, inside), chosen = _telling(found)
    key, kind, value = ".".join(map(str, path)), chosen["type"], chosen["input"]
    context: dict[str, Any] = chosen.get("ctx", {})
    if kind == "extra_forbidden":
        valid, name = _fields(beside), str(path[-1])
        return RecipeError(
            f"unknown key {key!r} in {where}", valid=valid or None, fix=_elsewhere(model, name) or _near(name, valid)
        )
    if kind == "missing":
        return RecipeError(f"{where} lacks the key {key!r}", fix=f"add {key}: ...")
    if kind == "union_tag_not_found":
        return RecipeError(f"{where} lacks the key '{key}.type'", valid=_tags(inside), fix="add type: ...")
    if kind == "value_error":
        short = path and len(repr(value)) <= SHOWN
        told = chosen["msg"].removeprefix("Value error, ")
        return RecipeError(f"{where}: {key or 'recipe'}: {told}", value=value if short else None)
    if kind == "union_tag_invalid":
        tags = _tags(inside)
        return RecipeError(
            f"{where}: {key}.type is unknown", value=context["tag"], valid=tags, fix=_near(context["tag"], tags)
        )
    branches = [e for (p, *_), e in found if p == path]
    fix = _mend(path, value, branches, inside)
    return RecipeError(f"{where}: {key} has no valid value", value=value, valid=_valid(branches, inside), fix=fix)


def _telling(found: list[tuple[tuple[list[int | str], Any, Any], Any]]) -> Any:
    """An unknown key explains a missing one; of a union's branches the deepest is the one that was meant."""
    unknown = next((f for f in found if f[1]["type"] == "extra_forbidden"), None)
    first = found[0][0][0]
    below = [f for f in found if f[0][0][: len(first)] == first]
    return unknown or max(below, key=lambda f: len(f[0][0]))


def _walk(
    model: type[BaseModel] | None, loc: Location, *, unknown: bool
) -> tuple[list[int | str], list[type[BaseModel]], list[type[BaseModel]]]:
    """A path without the names of union branches; the models its last key stands in; those that its value may be."""
    if model is None:
        return list(loc), [], []
    path: list[int | str] = []
    beside: list[type[BaseModel]] = []
    inside = [model]
    for i, part in enumerate(loc):
        owner = next((m for m in inside if part in keys_of(m)), None)
        branch = [m for m in inside if part in (m.__name__, tag_of(m))]
        if isinstance(part, int):
            path.append(part)
        elif owner is not None:
            path.append(part)
            beside, inside = inside, models_of(keys_of(owner)[str(part)].annotation)
        elif unknown and i == len(loc) - 1:
            path.append(part)
            beside = inside
        elif branch:
            inside = branch
    return path, beside, inside


def keys_of(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields of a model by their keys in a recipe."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def models_of(annotation: Any) -> list[type[BaseModel]]:
    """The models that an annotation names, in unions and lists too."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for a in typing.get_args(annotation) for m in models_of(a)]


def tag_of(model: type[BaseModel]) -> str | None:
    """The one value of a model's `type`, where it has one: what names it among the branches of a union."""
    kind = model.model_fields.get("type")
    values = typing.get_args(kind.annotation) if kind else ()
    return str(values[0]) if len(values) == 1 else None


def _tags(models: Iterable[type[BaseModel]]) -> list[str]:
    return sorted({t for m in models if (t := tag_of(m))})


def _fields(models: Iterable[type[BaseModel]]) -> list[str]:
    return sorted({name for m in models for name in keys_of(m)})


def _valid(branches: list[Any], inside: list[type[BaseModel]]) -> str:
    """What the branches of a union want, joined."""
    wants: list[str] = []
    for e in branches:
        if e["type"] == "model_type":
            wants.append(f"a mapping of {', '.join(_fields(inside))}")
            continue
        text = e["msg"].removeprefix("Input should be ").partition(", unable to parse")[0]
        for pydantics, ours in WORDS.items():
            text = text.replace(pydantics, ours)
        wants.append(text)
    if "a number" in wants:
        wants = [w for w in wants if w != "a whole number"]
    return " or ".join(dict.fromkeys(wants))


def _mend(path: Location, value: Any, branches: list[Any], inside: list[type[BaseModel]]) -> str | None:
    """A guess at what was meant."""
    number = _number(value)
    share = any(1.0 in (e.get("ctx", {}).get("le"), e.get("ctx", {}).get("lt")) for e in branches)
    if isinstance(value, str) and value.rstrip().endswith("%") and number is not None:
        return f"a share: write {number / 100:g}"
    if share and number is not None and number >= 2:
        return f"a share: for {number:g} %, write {number / 100:g}"
    if isinstance(value, str):
        choices = [c for e in branches if e["type"] == "literal_error" for c in e["ctx"]["expected"].split("'")[1::2]]
        if near := _near(value, choices):
            return near
    name = f"{path[-1]}: " if isinstance(path[-1], str) else ""
    if any(e["type"] == "list_type" for e in branches):
        return f"write {name}[...]"
    needed = [n for m in inside for n, f in m.model_fields.items() if f.is_required()]
    if any(e["type"] == "model_type" for e in branches) and len(needed) == 1 and not share:
        return f"write {name}{{{needed[0]}: {value}}}"
    return None


def _number(value: Any) -> float | None:
    if isinstance(value, str):
        try:
            return float(value.strip().removesuffix("%"))
        except ValueError:
            return None
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _elsewhere(model: type[BaseModel] | None, name: str) -> str | None:
    """A key that was written one level too high or too low."""
    under = [
        f"{key}.{name}"
        for key, of in (model.model_fields if model else {}).items()
        if any(name in m.model_fields for m in models_of(of.annotation))
    ]
    return f"did you mean {under[0]}?" if len(under) == 1 else None


def _near(value: object, choices: Sequence[str]) -> str | None:
    near = difflib.get_close_matches(str(value), choices, n=2, cutoff=0.5)
    return f"did you mean {' or '.join(repr(n) for n in near)}?" if near else None
