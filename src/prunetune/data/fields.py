"""One field of a row -> text. What is no text is never made into some: no `None`, no `nan`, no Python list."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

from prunetune.errors import DataError

Row = dict[str, Any]
"""A row as a file has it."""

LONGEST = 10_000_000
"""Characters of one field; more is a whole file in one row."""

_KINDS = {
    type(None): "null", bool: "true or false", list: "a list", tuple: "a list", dict: "an object", bytes: "bytes"
}  # fmt: skip
_LONE = re.compile("[\ud800-\udfff]")


def text_of(value: Any, name: str, where: str, *, blank: bool = False) -> str:
    """A field as text; whole and finite numbers are read as they would be written.

    Args:
        value: What the row holds.
        name: What a message calls the field: question, answer, text.
        where: File and row.
        blank: Whether it may be empty.

    Raises:
        DataError: It is no text, empty, or holds what is no character.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise _no_text(name, where, "NaN" if math.isnan(value) else "Infinity", value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise _no_text(name, where, _KINDS.get(type(value), type(value).__name__), value)
    if not blank and not value.strip():
        raise DataError(f"{where}: {name} is empty", value=value[:80], fix="mend the row, or leave it out")
    if len(value) > LONGEST:
        raise DataError(
            f"{where}: {name} has {len(value):,} characters, as if it were a whole file",
            value=value[:80],
            valid=f"at most {LONGEST:,}",
            fix="split it into rows",
        )
    if "\x00" in value:
        raise DataError(f"{where}: {name} holds a NUL character", value=value[:80], fix="mend the row")
    if lone := _LONE.search(value):
        raise DataError(
            f"{where}: {name} holds half a character (the lone surrogate U+{ord(lone[0]):04X} at {lone.start()})",
            value=value[:80].encode("ascii", "backslashreplace").decode(),
            fix="write the file anew as UTF-8",
        )
    return value


def one_of(value: Any) -> Any:
    """The only element of a list, or the value itself: references often come as lists of one."""
    return value[0] if isinstance(value, list | tuple) and len(value) == 1 else value


def _no_text(name: str, where: str, kind: str, value: Any) -> DataError:
    shown = None if value is None else repr(value)[:120]
    return DataError(
        f"{where}: {name} is {kind}, not text",
        value=shown,
        valid="text, or a number",
        fix="mend the row, or name another column: --columns question=…,answer=…",
    )


def unknown_column(column: str, have: Iterable[str], where: str) -> DataError:
    """The error for a column that a data set does not have."""
    return DataError(
        f"no column {column!r} in {where}",
        value=column,
        valid=sorted(map(str, have)),
        fix="set `columns` to the right names (--columns question=…,answer=…)",
    )
