"""Rows from files, folders and the hub: JSON, CSV, Parquet, Arrow and plain text, with a column mapping.

    read_rows(Path("train.jsonl"), {"question": "problem", "answer": "solution"})  # -> [{"question": …, "answer": …}]

Nothing is skipped in silence: a row without a column, or a line that is not JSON, is an error that says where it is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from prunetune.data.decode import check_file
from prunetune.data.fields import Row, unknown_column
from prunetune.data.folders import folder_rows
from prunetune.data.formats import reader_of
from prunetune.data.hub import is_offline
from prunetune.errors import DataError

__all__ = ["Row", "expand_path", "hub_rows", "hub_version", "open_rows", "pick", "read_rows", "unknown_column"]


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


def open_rows(path: Path, split: str = "train") -> tuple[str, Iterator[Row]]:
    """What a file or folder is (`CSV`, `JSON`, …), and its rows as they stand. `split` is of folders alone."""
    if path.is_dir():
        return folder_rows(path, split)
    check_file(path)
    kind, read = reader_of(path)
    return kind, read(path)


def read_rows(
    path: Path, columns: Mapping[str, str] | None, limit: int | None = None, *, split: str = "train"
) -> list[Row]:
    """All rows of a file as `{wanted name: value}`; values are as the file has them (see `fields.text_of`).

    Args:
        path: JSON lines, JSON (a list, or an object holding one list), CSV, TSV, Parquet, Arrow, or plain text (one row
            a non-blank line, under the column `text`), compressed or not; or a folder of such files.
        columns: Wanted name -> column of the file. None: all columns as they are.
        limit: Read at most so many rows.
        split: Of a folder.
    """
    rows = [pick(row, columns, f"{path}, row {i}") for i, row in enumerate(islice(open_rows(path, split)[1], limit), 1)]
    if not rows:
        raise DataError("this data file holds no rows", value=str(path), fix="check the file")
    return rows


def hub_rows(
    name: str,
    config: str | None,
    split: str,
    *,
    columns: Mapping[str, str] | None,
    limit: int | None,
    data_dir: str | None = None,
) -> Iterable[Row]:
    """The rows of one split of a hub data set as `{wanted name: value}`. Without `columns`: as they are.

    Where a `limit` is given, they are streamed: no more of the data set is fetched than they take. Else it is fetched
    once, kept by `datasets` as an Arrow file, and read from there.
    """
    import datasets

    where = f"{name} (config {config}, split {split})"
    kept = Path(datasets.config.HF_DATASETS_CACHE) / name.replace("/", "___").lower()
    if not kept.is_dir() and is_offline():
        raise DataError(
            "the hub cannot be reached, and there is no copy of this data set here",
            value=where,
            fix="check the network (and HF_HUB_OFFLINE), or use local files: type: file, path: …",
        )
    streaming = limit is not None and not datasets.config.HF_HUB_OFFLINE
    with _hub_errors(where):
        rows: Any = datasets.load_dataset(name, config, split=split, data_dir=data_dir, streaming=streaming)
    if limit is not None:
        rows = rows.take(limit)
    have = rows.column_names
    missing = [c for c in (columns or {}).values() if have is not None and c not in have]
    if missing:
        raise unknown_column(missing[0], have, name)
    if columns is not None and have is not None:
        rows = rows.select_columns(list(dict.fromkeys(columns.values())))
    return _picked(rows, columns, name, where)


def _picked(rows: Iterable[Row], columns: Mapping[str, str] | None, name: str, where: str) -> Iterator[Row]:
    with _hub_errors(where):
        yield from (pick(row, columns, f"{name}, row {i}") for i, row in enumerate(rows, start=1))


@contextmanager
def _hub_errors(where: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError) as e:
        raise DataError(
            f"the hub data set cannot be loaded ({type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''})",
            value=where,
            fix="check name, config, split and network, or use local files: type: file, path: …",
        ) from e


def hub_version(name: str, config: str | None, data_dir: str | None) -> str | None:
    """What names the content of a hub data set as it is now, or as it is cached; None if that is not known."""
    import datasets

    try:
        return str(datasets.load_dataset_builder(name, config, data_dir=data_dir).hash or "") or None
    except (OSError, ValueError, RuntimeError):
        return None


def pick(row: Row, columns: Mapping[str, str] | None, where: str) -> Row:
    """The wanted columns of one row. Raises DataError naming the columns there are."""
    if columns is None:
        return row
    for column in columns.values():
        if column not in row:
            raise unknown_column(column, row, where)
    return {want: row[column] for want, column in columns.items()}
