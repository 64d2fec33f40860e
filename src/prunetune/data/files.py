"""Rows of text from files and the hub: JSONL, JSON, Parquet and plain text, with a column mapping.

    read_rows(Path("train.jsonl"), {"question": "problem", "answer": "solution"})  # -> [{"question": …, "answer": …}]

Nothing is skipped in silence: a row without a column, or a line that is not JSON, is an error that says where it is.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from prunetune.errors import DataError, MissingPath

TEXT_SUFFIXES = (".txt", ".raw", ".text", ".md")

Row = dict[str, Any]


def expand_path(text: str) -> Path:
    """A path with `~` and `$VARIABLES` filled in. Raises DataError, naming the variable, if one is not set."""
    whole = os.path.expandvars(text)
    unset = re.findall(r"\$\{?(\w+)\}?", whole)
    if unset:
        raise DataError(
            f"the environment variable {unset[0]} is not set",
            value=text,
            fix=f"export {unset[0]}=FOLDER, or write the path out",
        )
    return Path(whole).expanduser()


def read_rows(path: Path, columns: Mapping[str, str] | None, limit: int | None = None) -> list[Row]:
    """All rows of a file as `{wanted name: value}`.

    Args:
        path: `.jsonl`, `.json` (a list, or an object holding one list), `.parquet`, or plain text
            (`.txt`, `.raw`: one row a non-blank line, under the column `text`).
        columns: Wanted name -> column of the file. None: all columns as they are.
        limit: Read at most so many rows.
    """
    if not path.is_file():
        kind = "this is a folder, not a file" if path.is_dir() else "no such data file"
        raise MissingPath(kind, value=str(path), fix="check the path")
    readers: dict[str, Callable[[Path], Iterable[Row]]] = {".json": _json, ".parquet": _parquet}
    read = _text if path.suffix in TEXT_SUFFIXES else readers.get(path.suffix, _jsonl)
    rows = [pick(row, columns, f"{path}, row {i}") for i, row in enumerate(islice(read(path), limit), start=1)]
    if not rows:
        raise DataError("this data file holds no rows", value=str(path), fix="check the file")
    return rows


def hub_rows(
    name: str,
    config: str | None,
    split: str,
    *,
    columns: Mapping[str, str],
    limit: int | None,
    data_dir: str | None = None,
) -> list[Row]:
    """All rows of one split of a hub data set as `{wanted name: value}`."""
    import datasets

    try:
        rows = datasets.load_dataset(name, config, split=split, data_dir=data_dir)
    except (OSError, ValueError, RuntimeError) as e:
        raise DataError(
            f"the hub data set cannot be loaded ({type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''})",
            value=f"{name} (config {config}, split {split})",
            fix="check name, config, split and network, or use local files: type: file, path: …",
        ) from e
    if limit is not None:
        rows = rows.select(range(min(limit, len(rows))))
    missing = [c for c in columns.values() if c not in rows.column_names]
    if missing:
        raise unknown_column(missing[0], rows.column_names, name)
    return [pick(row, columns, f"{name}, row {i}") for i, row in enumerate(rows, start=1)]


def pick(row: Row, columns: Mapping[str, str] | None, where: str) -> Row:
    """The wanted columns of one row. Raises DataError naming the columns there are."""
    if columns is None:
        return row
    for column in columns.values():
        if column not in row:
            raise unknown_column(column, row, where)
    return {want: row[column] for want, column in columns.items()}


def unknown_column(column: str, have: Iterable[str], where: str) -> DataError:
    """The error for a column that a data set does not have."""
    return DataError(
        f"no column {column!r} in {where}", value=column, valid=sorted(have), fix="set `columns` to the right names"
    )


def _jsonl(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8") as f:
        for number, line in enumerate(f, start=1):
            if line.strip():
                yield _object(_parsed(line, path, number), path, number)


def _json(path: Path) -> Iterator[Row]:
    value = _parsed(path.read_text(encoding="utf-8"), path, None)
    if isinstance(value, dict):
        lists = [v for v in value.values() if isinstance(v, list)]
        value = lists[0] if len(lists) == 1 else value
    if not isinstance(value, list):
        raise DataError(
            "this JSON file holds no list of rows", value=str(path), fix="write a list of objects, or JSONL"
        )
    for number, row in enumerate(value, start=1):
        yield _object(row, path, number)


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            for batch in table.iter_batches():
                yield from batch.to_pylist()
    except pyarrow.ArrowInvalid as e:
        raise DataError(f"this is not a Parquet file ({e})", value=str(path), fix="check the file") from e


def _text(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8") as f:
        yield from ({"text": line.rstrip("\n")} for line in f if line.strip())


def _parsed(text: str, path: Path, line: int | None) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as e:
        where = f"line {line if line is not None else e.lineno}"
        raise DataError(f"{where} is not valid JSON ({e.msg})", value=f"{path}: {text[:80]!r}", fix="mend it") from None


def _object(row: Any, path: Path, number: int) -> Row:
    if not isinstance(row, dict):
        raise DataError(f"row {number} is not an object", value=f"{path}: {row!r:.80}", fix='write {"question": …}')
    return row
