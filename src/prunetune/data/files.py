"""Rows from files, folders and the hub: JSON, CSV, Parquet, Arrow and plain text, with a column mapping.

    read_rows(Path("train.jsonl"), {"question": "problem", "answer": "solution"})  # -> [{"question": …, "answer": …}]

Nothing is skipped in silence: a row without a column, or a line that is not JSON, is an error that says where it is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path

from prunetune.data.decode import check_file
from prunetune.data.fields import Row, unknown_column
from prunetune.data.folders import folder_rows
from prunetune.data.formats import reader_of
from prunetune.errors import DataError

__all__ = ["Row", "expand_path", "hub_rows", "open_rows", "pick", "read_rows", "unknown_column"]


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
) -> list[Row]:
    """All rows of one split of a hub data set as `{wanted name: value}`. Without `columns`: as they are."""
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
    missing = [c for c in (columns or {}).values() if c not in rows.column_names]
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
