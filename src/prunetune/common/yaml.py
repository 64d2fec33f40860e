"""YAML that people write (recipes, settings, grids), read with limits: one function for all of it.

    value = read_yaml(path, "recipe")

What is read, and what is told instead of being guessed at:

* Values are text, numbers, `true`/`false`, `null`, lists and mappings. Dates, `yes`, `no`, `1:30` and `010` are text
  (a key that wants a number or a truth still understands them); `1e-5` and `1_000` are numbers.
* Keys are text, each once. Merge keys (`<<`) and aliases work while the whole stays under `MOST_NODES` values.
* Tags (`!!python/...`), several documents, infinities and endless digits are refused.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import yaml

from prunetune.common.reading import MOST_DIGITS, read_text
from prunetune.errors import PrunetuneError, RecipeError, plain, shown

MOST_BYTES = 2**20
MOST_NODES = 20_000
"""Values of a file, each alias counted as all that it stands for."""
MOST_DEPTH = 40

_PREFIX = "tag:yaml.org,2002:"
_PLAIN: list[tuple[str, str, str]] = [
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)\Z", "tTfF"),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F]+|0o[0-7]+)\Z", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:(?:0|[1-9][0-9_]*)(?:\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[eE][-+]?[0-9]+)|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?)\Z"
        r"|[-+]?\.(?:inf|Inf|INF)\Z|\.(?:nan|NaN|NAN)\Z",
        "-+.0123456789",
    ),
    ("null", r"(?:~|null|Null|NULL|)\Z", "~nN\0"),
    ("merge", r"<<\Z", "<"),
]
"""Kind, form, first characters (a zero: the empty text) of values without quotes; anything else is text."""


def _resolvers() -> dict[Any, list[tuple[str, re.Pattern[str]]]]:
    table: dict[Any, list[tuple[str, re.Pattern[str]]]] = {}
    for kind, form, first in _PLAIN:
        for character in first:
            table.setdefault("" if character == "\0" else character, []).append((_PREFIX + kind, re.compile(form)))
    return table


class _Told(yaml.MarkedYAMLError):
    """One of our own limits."""

    def __init__(self, problem: str, mark: Any) -> None:
        super().__init__(problem=problem, problem_mark=mark)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = _resolvers()
    texts: tuple[str, ...] = ()
    """Tags whose value is read as text."""
    text_keys = True

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._open: list[int] = []  # values under each node that is being composed
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]  # yaml's
        if isinstance(event, yaml.AliasEvent):
            node = super().compose_node(parent, index)
            if id(node) not in self._sizes:
                raise _Told("an alias stands for what it is part of", event.start_mark)
            self._count(self._sizes[id(node)], event.start_mark)
            return node
        if (tag := getattr(event, "tag", None)) is not None and tag not in self.texts:
            raise _Told(f"the tag {shown(tag)} is not read", event.start_mark)
        if len(self._open) >= MOST_DEPTH:
            raise _Told(f"it is nested deeper than {MOST_DEPTH} levels", event.start_mark)
        self._open.append(0)
        self._count(1, event.start_mark)
        node = super().compose_node(parent, index)
        self._sizes[id(node)] = size = self._open.pop()
        self._count(size, event.start_mark)
        return node

    def _count(self, values: int, mark: Any) -> None:
        """Add to the node that is being composed."""
        if not self._open:
            return
        self._open[-1] += values
        if self._open[-1] > MOST_NODES:
            raise _Told(f"it stands for more than {MOST_NODES:,} values, aliases counted as what they stand for", mark)

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _Told("a key is no text", key.start_mark)
            if self.text_keys and key.tag not in (f"{_PREFIX}str", f"{_PREFIX}merge"):
                raise _Told(f"the key {plain(key.value, 60)} is no text: write it in quotes", key.start_mark)
            if key.value in seen:
                raise _Told(f"the key {shown(key.value)} is there twice", key.start_mark)
            seen.add(key.value)
        return node

    def compose_scalar_node(self, anchor: Any) -> Any:
        node = super().compose_scalar_node(anchor)
        if node.tag in self.texts:
            node.tag = f"{_PREFIX}str"
        kind = node.tag.removeprefix(_PREFIX)
        if kind in ("int", "float") and len(node.value) > MOST_DIGITS:
            raise _Told(f"a number of {len(node.value):,} characters", node.start_mark)
        if kind == "float" and not math.isfinite(self.construct_yaml_float(node)):
            raise _Told(f"{shown(node.value)} is no finite number", node.start_mark)
        if bad := re.search("[\0\ud800-\udfff]", node.value):
            raise _Told(f"a text holds {shown(bad[0])}, which is no character", node.start_mark)
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes a text that would be read back as something else, by YAML 1.1 as well as here."""

    yaml_implicit_resolvers = {  # noqa: RUF012  # as PyYAML declares it
        key: [*yaml.SafeDumper.yaml_implicit_resolvers.get(key, []), *_resolvers().get(key, [])]
        for key in {*yaml.SafeDumper.yaml_implicit_resolvers, *_resolvers()}
    }


def parse_yaml(
    text: str,
    where: object,
    what: str = "file",
    *,
    error: type[PrunetuneError] = RecipeError,
    texts: tuple[str, ...] = (),
    text_keys: bool = True,
) -> Any:
    """The one document of a YAML text; None if it is empty.

    Args:
        text: The YAML.
        where: The file, for messages.
        what: What it is called in messages.
        error: Raised, with line and column, for anything that is not read.
        texts: Tags (`!function`) whose values are read as text.
        text_keys: Whether keys must be text; a study's grid has numbers too.
    """
    if len(text) > MOST_BYTES:
        raise error(f"this {what} is too large: {len(text):,} characters", value=str(where), valid=f"{MOST_BYTES:,}")
    kind = type("_Loader", (_Loader,), {"texts": texts, "text_keys": text_keys})
    try:
        return yaml.load(text, Loader=kind)  # noqa: S506  # a SafeLoader
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        at = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        told = plain(" ".join(str(part) for part in (e.context, e.problem) if part), 300)
        raise error(f"this {what} is not valid YAML: {told}{at}", value=str(where), fix=_fix(told)) from None
    except yaml.reader.ReaderError as e:
        line = text.count("\n", 0, e.position) + 1
        told = f"the character {shown(chr(e.character))} is not allowed, line {line}"
        raise error(f"this {what} is not valid YAML: {told}", value=str(where)) from None


def _fix(told: str) -> str | None:
    """Advice on the commonest slips."""
    if "'\\t'" in told:
        return "indent with spaces, not tabs"
    if "single document" in told:
        return "one document a file: remove the --- lines"
    return None


def read_yaml(
    path: Path,
    what: str = "file",
    *,
    error: type[PrunetuneError] = RecipeError,
    texts: tuple[str, ...] = (),
    text_keys: bool = True,
) -> Any:
    """A YAML file, see `parse_yaml`; MissingPath if it is not there."""
    text = read_text(path, what, error=error, most=MOST_BYTES)
    return parse_yaml(text, path, what, error=error, texts=texts, text_keys=text_keys)


def read_mapping(path: Path, what: str = "file", *, error: type[PrunetuneError] = RecipeError) -> dict[str, Any]:
    """A YAML file that is a mapping of keys to values."""
    value = read_yaml(path, what, error=error)
    if not isinstance(value, dict):
        raise error(f"a {what} is a mapping of keys to values", value=str(path), valid="lines of `name: value`")
    return value


def dump_yaml(value: Any) -> str:
    """YAML that `parse_yaml` reads back as it was."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
