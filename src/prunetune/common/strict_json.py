"""JSON as the standard has it (RFC 8259): no NaN and no Infinity, which `json.dumps` would write and others refuse.

    text = to_json_text(value)             # NotFinite names the place: stages.1.held_out_loss is nan
    line = to_json_text(row, indent=None)

What may have no finite value (an interval's open end, a metric that a library could not compute) is null: `or_null`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from prunetune.errors import NotFinite


def to_json_text(value: object, *, indent: int | None = 2, ensure_ascii: bool = True) -> str:
    """JSON text of a value; a record becomes its own JSON (`to_json`), whatever else JSON does not know its `str`.

    Raises:
        NotFinite: A number in it is NaN or infinite; the message names where.
    """
    try:
        return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii, default=_plain, allow_nan=False)
    except ValueError as e:
        if (found := first_not_finite(value.to_json() if hasattr(value, "to_json") else value)) is None:
            raise
        where, number = found
        raise NotFinite(
            f"a figure is no number: {where or 'value'} is {number}",
            fix="look at the model or the data that it was computed from; nothing was written",
        ) from e


def _plain(value: Any) -> Any:
    return value.to_json() if hasattr(value, "to_json") else str(value)


def first_not_finite(value: object, where: str = "") -> tuple[str, float] | None:
    """The first number in nested mappings and lists that is NaN or infinite: (its place, with dots; itself)."""
    if isinstance(value, float):
        return None if math.isfinite(value) else (where, value)
    items: Any = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    for key, inner in items:
        if (found := first_not_finite(inner, f"{where}.{key}".lstrip("."))) is not None:
            return found
    return None


def spelled(value: Any) -> Any:
    """The same value with `nan`, `inf` and `-inf` as texts: for a log that is the evidence of them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {k: spelled(v) for k, v in value.items()}
    return [spelled(v) for v in value] if isinstance(value, list | tuple) else value


def or_null(value: float | None) -> float | None:
    """The number, or None where it is not finite: for what can legitimately be so."""
    return value if value is not None and math.isfinite(value) else None
