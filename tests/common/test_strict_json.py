"""Strict JSON: what others could not read is refused with its place, or null where it may be."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from prunetune.common.files import write_json
from prunetune.common.strict_json import first_not_finite, or_null, spelled, to_json_text
from prunetune.errors import NotFinite

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("value", "where"),
    [
        (NAN, "value is nan"),
        ({"a": [1.0, {"b": -INF}]}, "a.1.b is -inf"),
        ({"stages": ({"loss": 1.0}, {"loss": NAN})}, "stages.1.loss is nan"),
        ([[INF]], "0.0 is inf"),
    ],
)
def test_no_number_is_refused_by_its_place(value: object, where: str, tmp_path: Path) -> None:
    with pytest.raises(NotFinite, match=where):
        to_json_text(value)
    path = tmp_path / "record.json"
    write_json(path, {"old": 1})
    with pytest.raises(NotFinite):
        write_json(path, value)
    assert json.loads(path.read_text(encoding="utf-8")) == {"old": 1}, "what was there stays"


def test_what_is_finite_is_written_as_ever() -> None:
    value = {"a": 1.5, "b": [None, True, "NaN"], "p": Path("x")}
    assert json.loads(to_json_text(value)) == {"a": 1.5, "b": [None, True, "NaN"], "p": "x"}
    assert first_not_finite(value) is None
    assert "\n" not in to_json_text(value, indent=None)
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises((ValueError, RecursionError)):
        to_json_text(loop)


def test_null_and_spelled() -> None:
    assert [or_null(x) for x in (1.0, NAN, INF, -INF, None)] == [1.0, None, None, None, None]
    assert spelled([{"loss": NAN, "step": 3}, (INF, "x")]) == [{"loss": "nan", "step": 3}, ["inf", "x"]]
