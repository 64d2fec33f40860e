"""Rows from files: formats, column mapping, and errors that say where."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from prunetune.data.files import expand_path, hub_rows, read_rows
from prunetune.errors import DataError, MissingPath

ROWS = [{"q": f"q{i}", "a": f"a{i}", "x": i} for i in range(5)]
COLUMNS = {"question": "q", "answer": "a"}
WANTED = [{"question": f"q{i}", "answer": f"a{i}"} for i in range(5)]


def test_the_same_rows_from_every_format(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text("\n".join(json.dumps(r) for r in ROWS) + "\n\n")
    (tmp_path / "r.json").write_text(json.dumps(ROWS))
    (tmp_path / "wrapped.json").write_text(json.dumps({"version": 1, "data": ROWS}))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "r.parquet")
    for name in ("r.jsonl", "r.json", "wrapped.json", "r.parquet"):
        assert read_rows(tmp_path / name, COLUMNS) == WANTED, name
        assert read_rows(tmp_path / name, COLUMNS, limit=2) == WANTED[:2], name


def test_plain_text_is_a_row_a_line(tmp_path: Path) -> None:
    (tmp_path / "t.raw").write_text("one\n\n \ntwo \n")
    assert read_rows(tmp_path / "t.raw", {"text": "text"}) == [{"text": "one"}, {"text": "two "}]


def test_an_unknown_column_names_the_columns_there_are(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text(json.dumps(ROWS[0]))
    with pytest.raises(DataError, match=r"no column 'query'[\s\S]*a, q, x"):
        read_rows(tmp_path / "r.jsonl", {"question": "query", "answer": "a"})


def test_a_bad_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text(json.dumps(ROWS[0]) + "\n{oops\n")
    with pytest.raises(DataError, match="line 2 is not valid JSON"):
        read_rows(tmp_path / "r.jsonl", COLUMNS)
    (tmp_path / "r.json").write_text("[1,\n2,\n]")
    with pytest.raises(DataError, match="line 3 is not valid JSON"):
        read_rows(tmp_path / "r.json", COLUMNS)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.jsonl", b"", "holds no rows"),
        ("list.jsonl", b"[1]\n", "row 1 is not an object"),
        ("object.json", b'{"a": 1}', "holds no list"),
        ("not.parquet", b"hello", "not a Parquet file"),
    ],
)
def test_files_that_are_no_data(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_rows(tmp_path / name, COLUMNS)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(MissingPath, match="no such data file"):
        read_rows(tmp_path / "none.jsonl", COLUMNS)
    with pytest.raises(MissingPath, match="folder, not a file"):
        read_rows(tmp_path, COLUMNS)


def test_variables_in_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PT_DATA", str(tmp_path))
    assert expand_path("$PT_DATA/x.jsonl") == tmp_path / "x.jsonl"
    assert expand_path("~/x") == Path.home() / "x"
    monkeypatch.delenv("PT_DATA")
    with pytest.raises(DataError, match="PT_DATA is not set"):
        expand_path("${PT_DATA}/x.jsonl")


def test_a_hub_data_set_that_cannot_be_loaded_is_one_clear_error() -> None:
    with pytest.raises(DataError, match=r"cannot be (reached|loaded)[\s\S]*use local files"):
        hub_rows("nobody/nothing", None, "train", columns=COLUMNS, limit=None)
