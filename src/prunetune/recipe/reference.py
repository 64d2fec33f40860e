"""Every key of a recipe with its values, default and meaning, from the models that read it: `prunetune keys`.

What a key means is the docstring under its field (`use_attribute_docstrings` of pydantic).

sections(Recipe)        # [Section(title="recipe", ...), Section(title="prune", ...), ...]: each model once
"""

from __future__ import annotations

import inspect
import types
import typing
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from prunetune.recipe.explain import keys_of, models_of, tag_of
from prunetune.recipe.one_of import OneOf

NEEDED = "needed"
WORDS = {"str": "text", "int": "whole number", "float": "number", "bool": "true or false", "NoneType": "none"}


@dataclass(frozen=True)
class Key:
    """One key: its name, what its value may be, its default as YAML has it (or `needed`), and what it means."""

    name: str
    kind: str
    default: str
    about: str


@dataclass(frozen=True)
class Section:
    """The keys of one mapping.

    Attributes:
        title: Where it stands: `prune`, `recover[] type: cpt`.
        places: Everywhere that such a mapping may stand.
        about: What it is.
        keys: Its own keys; those of `shared` come on top.
        shared: Title of the section with the keys that it shares with others.
    """

    title: str
    places: tuple[str, ...]
    about: str
    keys: tuple[Key, ...]
    shared: str | None = None


def sections(model: type[BaseModel]) -> list[Section]:
    """The keys of a model and of all models inside it, each told once, where it first stands."""
    places: dict[type[BaseModel], list[str]] = {}
    _places(model, "recipe", places)
    for at in places.values():
        at.sort(key=len)
    bases = Counter(b for m in places if (b := _base(m)))
    shared = {
        b: f"{at[0].partition(' type:')[0]}, any type" for m, at in places.items() if (b := _base(m)) and bases[b] > 1
    }
    found = {b: Section(title, (), _about(b), tuple(_keys(b, None))) for b, title in shared.items()}
    out: list[Section] = []
    for one, at in places.items():
        base = b if (b := _base(one)) in shared else None
        if base and found[base] not in out:
            out.append(found[base])
        out.append(Section(at[0], tuple(at), _about(one), tuple(_keys(one, base)), shared.get(base) if base else None))
    return out


def about(found: list[Section], word: str) -> list[Section]:
    """The keys that speak of a word, and whole sections that are named so."""
    word = word.lower()
    named = [s for s in found if word in s.title.lower()]
    out = []
    for s in found:
        keys = tuple(k for k in s.keys if word in k.name.lower() or word in k.about.lower())
        if s in named or keys:
            out.append(s if s in named else replace(s, keys=keys))
    return out


def text(found: list[Section]) -> str:
    """For a terminal."""
    return "\n\n".join(
        "\n".join([_head(s), *(f"  {k.name} ({k.kind}; {k.default})\n      {k.about}" for k in s.keys)]) for s in found
    )


def markdown(found: list[Section]) -> str:
    """docs/recipe.md: a table a section."""
    parts = [
        "<!-- Made by `prunetune keys --markdown > docs/recipe.md` -->",
        "# The recipe, key by key",
        "A recipe is a YAML file; `prunetune keys WORD` finds a key. `[]` stands for a list's entries, `type: cpt` for "
        "those of that type. What is left out has the default below. docs/guide.md shows a recipe with a word "
        "on each line. RUN/recipe.yaml has every key of a run with its value.",
    ]
    for s in found:
        rows = [f"| `{k.name}` | {_cell(k.kind)} | {_cell(k.default)} | {_cell(k.about)} |" for k in s.keys]
        also = f" Also: {', '.join(f'`{p}`' for p in s.places[1:])}." if s.places[1:] else ""
        more = f" With the keys of [{s.shared}]." if s.shared else ""
        table = ["", "| key | value | default | meaning |", "| --- | --- | --- | --- |", *rows] if rows else []
        parts.append("\n".join([f"## {s.title}", "", f"{s.about}{more}{also}", *table]))
    return "\n\n".join(parts)


def _head(s: Section) -> str:
    return f"{s.title}: {s.about}" + (f" With the keys of {s.shared}." if s.shared else "")


def _cell(value: str) -> str:
    return value.replace("|", "\\|").replace("\n", "\\n")


def _places(model: type[BaseModel], at: str, found: dict[type[BaseModel], list[str]]) -> None:
    """Where each model stands; the first place first."""
    new = model not in found
    found.setdefault(model, []).append(at)
    if not new:
        return
    start = "" if at == "recipe" else f"{at.replace(' type: ', '.')}."
    for name, field in keys_of(model).items():
        inside = models_of(field.annotation)
        for one in inside:
            place = f"{start}{name}{'[]' if _is_list(field.annotation) else ''}"
            tag = tag_of(one)
            _places(one, f"{place} type: {tag}" if tag and len(inside) > 1 else place, found)


def _base(model: type[BaseModel]) -> type[BaseModel] | None:
    """The base class with keys, where there is one."""
    base = model.__mro__[1]
    return base if issubclass(base, BaseModel) and base.model_fields else None


def _keys(model: type[BaseModel], base: type[BaseModel] | None) -> list[Key]:
    """The keys that a model adds to its base, or changes."""
    told = {k.name: k for k in _keys(base, None)} if base else {}
    all_keys = [Key(n, _valid(f), _default(f), _line(f.description)) for n, f in keys_of(model).items()]
    return [k for k in all_keys if told.get(k.name) != k and k.name != "type"]


def _about(model: type[BaseModel]) -> str:
    return _line((inspect.getdoc(model) or "").partition("\n\n")[0])


def _line(text: str | None) -> str:
    return " ".join((text or "").split())


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return NEEDED
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "none"
    if isinstance(value, BaseModel):
        return "its own defaults"
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], BaseModel):
        return f"one {tag_of(type(value[0]))}"
    if isinstance(value, (list, tuple)):
        return str(list(value))
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def _parts(annotation: Any) -> list[Any]:
    """The branches of a union, without what annotates them."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _parts(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [p for a in typing.get_args(annotation) for p in _parts(a)]
    return [annotation]


def _is_list(annotation: Any) -> bool:
    return any(typing.get_origin(p) in (list, tuple) for p in _parts(annotation))


def _valid(field: FieldInfo) -> str:
    """What a key may be: the names of a registry, or its kinds of value."""
    named = next((m for m in field.metadata if isinstance(m, OneOf)), None)
    return ", ".join(f"`{name}`" for name in named.own) if named else _kind(field.annotation)


def _kind(annotation: Any) -> str:
    said: list[str] = []
    for part in _parts(annotation):
        origin = typing.get_origin(part)
        if origin is typing.Literal:
            said += [f"`{v}`" for v in typing.get_args(part)]
        elif origin in (list, tuple):
            said.append(f"list of {_kind(typing.get_args(part)[0])}")
        elif origin is dict or (isinstance(part, type) and issubclass(part, BaseModel)):
            said.append("mapping")
        else:
            said.append(WORDS.get(getattr(part, "__name__", ""), str(part)))
    return ", ".join(s for s in dict.fromkeys(said) if not (s == "whole number" and "number" in said))
