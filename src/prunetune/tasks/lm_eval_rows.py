"""Rows in the place of an lm-eval task's data: what its prompt and target read must be there, in every row.

lm-eval renders a null as the word None and asks it; nothing tells.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from prunetune.data.files import Row
from prunetune.errors import DataError

READ = ("doc_to_text", "doc_to_target", "doc_to_choice")


def read_by(settings: Mapping[str, Any]) -> list[str]:
    """The columns that a task's templates name; functions (`!function …`) name none."""
    import jinja2
    import jinja2.meta

    found: list[str] = []
    for key in READ:
        text = settings.get(key)
        if not isinstance(text, str):
            continue
        if text.isidentifier():
            found.append(text)
            continue
        try:
            found += sorted(jinja2.meta.find_undeclared_variables(jinja2.Environment().parse(text)))  # noqa: S701  # never rendered
        except jinja2.TemplateSyntaxError:
            continue
    return list(dict.fromkeys(found))


def check_rows(rows: Sequence[Row], columns: Sequence[str], where: str) -> None:
    """DataError for the first row in which a column that the first row has is missing, null, NaN, or of another kind.

    Args:
        rows: As the file has them.
        columns: See `read_by`; those that the first row lacks are not checked (a template may do without).
        where: File and split, for messages.
    """
    known = {c: type(rows[0][c]) for c in columns if c in rows[0]} if rows else {}
    texts = {c: next((type(r[c]) for r in rows if r.get(c) is not None), kind) for c, kind in known.items()}
    for i, row in enumerate(rows, start=1):
        for column, kind in texts.items():
            if why := _bad(row, column, kind):
                raise DataError(
                    f"{where}, row {i}: {column} is {why}", value=row.get(column), fix="mend the row, or leave it out"
                )


def _bad(row: Row, column: str, kind: type) -> str | None:
    value = row.get(column)
    if column not in row:
        return "missing"
    if value is None:
        return "null"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    held = [t for t in (list, dict) if isinstance(value, t)]
    if held != [t for t in (list, dict) if issubclass(kind, t)]:
        return f"of another kind ({type(value).__name__}) than in the other rows ({kind.__name__})"
    return None
