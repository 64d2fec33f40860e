"""Whatever a file holds, the outcome is a value or one message that names file, place and value."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from pydantic import BaseModel, StrictInt

from prunetune.common.reading import parse_json, read_json, read_model, read_text
from prunetune.errors import BadCheckpoint, MissingPath, PlanError


class Shape(BaseModel):
    depth: StrictInt
    names: list[str] = []


@pytest.mark.parametrize(
    ("text", "says"),
    {
        "empty": ("", "it is empty"),
        "white": (" \n", "it is empty"),
        "cut off": ('{"a": [1, ', "line 1, column 11"),
        "two values": ("{} {}", "Extra data"),
        "twice": ('{"a": {"b": 1, "c": 2, "b": 3}}', "'b' is there twice"),
        "nan": ('{"a": NaN}', "NaN is no finite number"),
        "infinity": ("[-Infinity]", "-Infinity is no finite number"),
        "overflow": ("[1e999]", "'1e999' is no finite number"),
        "digits": (f"[{'9' * 5000}]", "a whole number of 5,000 digits"),
        "fewer digits": (f"[{'9' * 400}]", "a whole number of 400 digits"),
        "nesting": ("[" * 10**6, "nested too deeply"),
        "nested objects": ('{"a":' * 10**5, "nested too deeply"),
        "half a character": (r'{"a": ["x\ud83d"]}', r"'x\ud83d'"),
        "half a key": (r'{"\udc00": 1}', "half of a character"),
    }.values(),
)
def test_what_is_no_json_is_told_in_one_short_message(text: str, says: str) -> None:
    with pytest.raises(BadCheckpoint) as told:
        parse_json(text, "a.json", "index")
    assert says in str(told.value) and "a.json" in str(told.value) and "this index is not valid JSON" in str(told.value)
    assert len(str(told.value)) < 400


def test_what_is_json_is_read() -> None:
    value = {"a": [1, -2.5, None, True, "é\U0001f600"], "b": {"c": 10**39}}
    for ascii_only in (True, False):
        assert parse_json(json.dumps(value, ensure_ascii=ascii_only), "x") == value
    assert parse_json(r'"\\ud83d"', "x") == r"\ud83d"


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b'{"a": "\xe9"}', "byte 0xe9 at 7, line 1"),
        ("{}\n".encode("utf-16"), "byte 0xff at 0"),
        (b"\x1f\x8b\x08\x00", "gunzip"),
        (b"PK\x03\x04\xff", "unzip"),
        (b"{}\n\x80", "line 2"),
        (b" " * 101, "too large: 101 bytes"),
    ],
)
def test_bytes_that_are_no_text(tmp_path: Path, raw: bytes, says: str) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(raw)
    with pytest.raises(BadCheckpoint) as told:
        read_text(file, "index", most=100)
    assert says in str(told.value) and str(file) in str(told.value)
    file.write_bytes(b"\xef\xbb\xbf[1]")
    assert read_json(file) == [1], "a byte order mark is no content"


def test_places_that_are_no_file(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("")
    for name, error, says in (
        ("none", MissingPath, "no such plan"),
        ("file/below", MissingPath, "no such plan"),
        ("link", MissingPath, "a link to nothing"),
        (".", PlanError, "is a folder"),
        ("pipe", PlanError, "no regular file"),
        ("x" * 300, PlanError, "cannot be read"),
        ("a\0b", PlanError, "cannot be read"),
    ):
        with pytest.raises(error, match=says):
            read_text(tmp_path / name, "plan", error=PlanError)


def test_a_model_names_field_and_value(tmp_path: Path) -> None:
    file = tmp_path / "shape.json"
    for value, says in (
        ({"depth": "4"}, "depth: input should be a valid integer"),
        ({"depth": 4, "names": ["a", 5]}, "names.1: input should be a valid string"),
        ({}, "depth: field required"),
        ([], "input should be a valid dictionary"),
    ):
        file.write_text(json.dumps(value))
        with pytest.raises(PlanError) as told:
            read_model(file, Shape, "shape", error=PlanError, fix="make it anew")
        assert says in str(told.value) and str(file) in str(told.value) and "make it anew" in str(told.value)
    file.write_text('{"depth": 4}')
    assert read_model(file, Shape, "shape").depth == 4
