"""Files -> raw rows (column -> value), by what a file holds; its name decides only what the content leaves open.

To add a format: one reader here, and the bytes or the suffix that tell it in `reader_of`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from prunetune.data.decode import READ, first_bytes, open_bytes, packing_of, read_lines
from prunetune.data.fields import Row
from prunetune.data.forms import is_row, is_turns
from prunetune.errors import DataError

Reader = Callable[[Path], Iterator[Row]]

TEXT_SUFFIXES = (".txt", ".raw", ".text", ".md")
LINE_SUFFIXES = (".jsonl", ".ndjson", ".jsonlines")
DATA_SUFFIXES = (*LINE_SUFFIXES, ".json", ".csv", ".tsv", ".parquet", ".arrow", ".feather", *TEXT_SUFFIXES)
_PACKED_SUFFIXES = (".gz", ".bz2", ".xz", ".zst", ".zstd", ".lz4")
WIDEST = 1 << 27  # bytes of one CSV field


def suffix_of(path: Path) -> str:
    """The suffix that names the format: `.jsonl` of `rows.jsonl.gz`."""
    inner = path.with_suffix("") if path.suffix.lower() in _PACKED_SUFFIXES else path
    return inner.suffix.lower()


def reader_of(path: Path) -> tuple[str, Reader]:
    """What a file is called, and its reader. Raises MissingPath or DataError for what is no data file."""
    head, suffix = first_bytes(path), suffix_of(path)
    if head.startswith(b"PAR1") or suffix == ".parquet":
        return "Parquet", _parquet
    if head.startswith((b"ARROW1", b"\xff\xff\xff\xff")) or suffix in (".arrow", ".feather"):
        return "Arrow", _arrow
    line = next((text for _, text in read_lines(path) if text.strip()), "").strip()
    if suffix in (*TEXT_SUFFIXES, ".csv", ".tsv", ".tab"):
        if line.startswith("{") and isinstance(_try(line), dict):
            return "JSON lines", _json
        return ("text", _text) if suffix in TEXT_SUFFIXES else ("CSV" if suffix == ".csv" else "TSV", _csv)
    if line and line[0] not in "[{" and suffix != ".json" and _is_header(line):
        return "CSV", _csv
    return "JSON", _json


# --------------------------------------------------------------------------------------------------------------- JSON


def _json(path: Path) -> Iterator[Row]:
    """JSON lines, a list, an object that holds one list, or objects one after another."""
    lines = ((n, text) for n, text in read_lines(path) if text.strip())
    first = next(lines, None)
    if first is None:
        return
    found = _try(first[1])
    if isinstance(found, dict):
        second = next(lines, None)
        if second is None:
            rows = _rows_in(_parsed(first[1], path, first[0]), path)
            yield from (_object(row, path, n) for n, row in enumerate(rows, start=1))
            return
        for number, (line, text) in enumerate(chain([first, second], lines), start=1):
            yield _object(_parsed(text, path, line), path, number)
        return
    if not first[1].lstrip().startswith(("[", "{")) or (suffix_of(path) in LINE_SUFFIXES and _is_broken(first[1])):
        _object(_parsed(first[1], path, first[0]), path, 1)
    whole = "".join(text for _, text in read_lines(path))
    yield from (_object(row, path, n) for n, row in enumerate(_values(whole, path), start=1))


def _values(text: str, path: Path) -> list[Any]:
    """The rows of a whole text: one value, or several one behind the other."""
    decoder, at, values = json.JSONDecoder(object_pairs_hook=_unique), 0, []
    try:
        while at < len(text):
            if text[at].isspace():
                at += 1
                continue
            value, at = decoder.raw_decode(text, at)
            values.append(value)
    except json.JSONDecodeError as e:
        raise _bad_json(e, path, e.lineno, text.splitlines()[e.lineno - 1 :][:1]) from None
    except (ValueError, RecursionError) as e:
        raise _bad_json(e, path, 1, [text]) from None
    return values if len(values) > 1 else _rows_in(values[0], path)


def _rows_in(value: Any, path: Path) -> list[Any]:
    """The rows of one JSON value: a list, a row alone, or an object that holds one list of rows."""
    if isinstance(value, dict):
        lists = [v for v in value.values() if isinstance(v, list) and v and isinstance(v[0], dict)]
        alone = suffix_of(path) in LINE_SUFFIXES and len(lists) != 1
        if alone or is_row(value) or any(is_turns(v) for v in lists):
            return [value]
        empty = [v for v in value.values() if isinstance(v, list)]
        value = lists[0] if len(lists) == 1 else empty[0] if len(empty) == 1 else value
    if not isinstance(value, list):
        raise DataError(
            "this JSON file holds no list of rows", value=str(path), fix="write a list of objects, or JSONL"
        )
    return value


class _Twice(ValueError):
    """A key that is in one object twice."""


def _unique(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise _Twice(f"the key {next(n for n in names if names.count(n) > 1)!r} is there twice")
    return row


def _try(text: str) -> Any:
    """The JSON value of a text, or None."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _is_broken(text: str) -> bool:
    """Whether a line is wrong JSON before its end: it is not the first of a value that goes on."""
    try:
        json.loads(text)
    except json.JSONDecodeError as e:
        return e.pos < len(text.rstrip()) and not e.msg.startswith("Unterminated")
    except (ValueError, RecursionError):
        return True
    return False


def _parsed(text: str, path: Path, line: int) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as e:
        raise _bad_json(e, path, line, [text]) from None


def _bad_json(error: Exception, path: Path, line: int, shown: list[str]) -> DataError:
    words = getattr(error, "msg", "") or ("nested too deeply" if isinstance(error, RecursionError) else str(error))
    if isinstance(error, _Twice):
        what = f"line {line}: {words}" if len(shown[0]) < 1 << 20 else words
    else:
        what = f"line {line} is not valid JSON ({words})"
    return DataError(what, value=f"{path}: {(shown or [''])[0][:80]!r}", valid=READ, fix="mend it")


def _object(row: Any, path: Path, number: int) -> Row:
    if not isinstance(row, dict):
        raise DataError(f"row {number} is not an object", value=f"{path}: {row!r:.80}", fix='write {"question": …}')
    return row


# ----------------------------------------------------------------------------------------------------------- CSV, text


def _csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(WIDEST)
    lines = (text for _, text in read_lines(path))
    first = next((text for text in lines if text.strip()), None)
    if first is None:
        return
    reader = csv.reader(chain([first], lines), delimiter=_delimiter(first, path), strict=True)
    try:
        names = [name.strip() for name in next(reader)]
        if len(set(names)) < len(names):
            twice = next(n for n in names if names.count(n) > 1)
            raise DataError("two columns have the same name", value=f"{path}: {twice!r}", fix="rename one of them")
        for number, fields in enumerate((f for f in reader if f), start=1):
            if len(fields) != len(names):
                raise DataError(
                    f"row {number} has {len(fields)} fields, and the header {len(names)}",
                    value=f"{path}, line {reader.line_num}: {fields[:4]!r:.120}",
                    fix='put fields that hold a comma, a quote or a line end into quotes ("…", a quote as "")',
                )
            yield dict(zip(names, fields, strict=True))
    except csv.Error as e:
        raise DataError(
            f"line {reader.line_num} is not valid CSV ({e})",
            value=str(path),
            fix='mend the quotes ("…", a quote as "")',
        ) from None


def _delimiter(header: str, path: Path) -> str:
    if suffix_of(path) in (".tsv", ".tab"):
        return "\t"
    return max(",\t;|", key=lambda mark: (len(_header(header, mark)), -",\t;|".index(mark)))


def _header(line: str, delimiter: str) -> list[str]:
    try:
        return [name.strip() for name in next(csv.reader([line], delimiter=delimiter, strict=True))]
    except (csv.Error, StopIteration):
        return []


def _is_header(line: str) -> bool:
    """Whether a line names well-known columns."""
    return any(is_row(dict.fromkeys(names)) for mark in ",\t;|" if len(names := _header(line, mark)) > 1)


def _text(path: Path) -> Iterator[Row]:
    for _, line in read_lines(path):
        for part in line.rstrip("\n").split("\r"):
            if part.strip():
                yield {"text": part}


# ------------------------------------------------------------------------------------------------------ Parquet, Arrow


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with _table_file(path) as file, pyarrow.parquet.ParquetFile(file) as table:
            for batch in table.iter_batches():
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as e:
        raise _no_table("a Parquet", path, e) from None


def _arrow(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.ipc

    try:
        with _table_file(path) as file:
            if first_bytes(path).startswith(b"ARROW1"):
                with pyarrow.ipc.open_file(file) as table:
                    for i in range(table.num_record_batches):
                        yield from table.get_batch(i).to_pylist()
                return
            with pyarrow.ipc.open_stream(file) as batches:
                for batch in batches:
                    yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as e:
        raise _no_table("an Arrow", path, e) from None


def _table_file(path: Path) -> Any:
    """A file for pyarrow, which reads from its end: unpacked in memory where it is compressed."""
    import pyarrow

    if packing_of(path) is None:
        return pyarrow.OSFile(str(path), "r")
    with open_bytes(path) as stream:
        return pyarrow.BufferReader(stream.read())


def _no_table(kind: str, path: Path, error: Exception) -> DataError:
    words = str(error).splitlines()[0] if str(error) else type(error).__name__
    return DataError(f"this is not {kind} file ({words})", value=str(path), fix="check the file")
