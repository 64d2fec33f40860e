"""Bytes on disk -> text: compression and encoding are told by the first bytes, not by the name.

    for number, line in read_lines(Path("rows.jsonl.gz")): ...

UTF-8 is read, with or without a byte order mark; UTF-16 and UTF-32 where a mark says so. Anything else is a DataError
with file, line, byte and position: a guess at an encoding would be text that nobody wrote.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from prunetune.common.reading import regular_file
from prunetune.errors import DataError, MissingPath

HEAD = 4096
"""Bytes that are looked at to tell what a file is."""

_PACKED: dict[bytes, str] = {
    b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"\x04\x22\x4d\x18": "lz4"
}  # fmt: skip
_MARKS = (  # UTF-32's little-endian mark begins with UTF-16's
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_OTHER = {
    b"PK\x03\x04": ("a ZIP archive or a workbook", "unpack it, or save the sheet as CSV"),
    b"\xd0\xcf\x11\xe0": ("an old workbook", "save the sheet as CSV"),
    b"SQLite format 3": ("an SQLite database", "write the rows as JSONL or CSV"),
    b"%PDF": ("a PDF", "write the rows as JSONL or CSV"),
    b"\x80\x04\x95": ("a Python pickle, which can run code when read", "write the rows as JSONL"),
    b"\x89HDF": ("an HDF5 file", "write the rows as JSONL or Parquet"),
    b"ORC": ("an ORC file", "write the rows as Parquet"),
    b"Obj\x01": ("an Avro file", "write the rows as Parquet"),
    b"version https://git-lfs": ("a git-lfs pointer, not the data", "run `git lfs pull` in its folder"),
}


def check_file(path: Path) -> None:
    """Raise unless this is a file that can be read."""
    if path.is_dir():
        raise MissingPath("this is a folder, not a file", value=str(path), fix="check the path")
    regular_file(path, "data file", error=DataError)


def packing_of(path: Path) -> str | None:
    """How a file is compressed, by its first bytes. None: it is not."""
    with path.open("rb") as raw:
        head = raw.read(16)
    return next((kind for magic, kind in _PACKED.items() if head.startswith(magic)), None)


@contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """The unpacked bytes of a file. Raises DataError if it is damaged, or of a kind that is not read."""
    check_file(path)
    try:
        with _unpacked(path, packing_of(path)) as stream:
            yield stream
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as e:
        words = f"this compressed file is damaged or cut short ({e})"
        raise DataError(words, value=str(path), fix="copy it again") from None
    except PermissionError:
        raise DataError("this file may not be read", value=str(path), fix="check its permissions") from None
    except OSError as e:
        raise DataError(f"this file cannot be read ({e})", value=str(path), fix="check the file") from None


def first_bytes(path: Path) -> bytes:
    """The first bytes of the unpacked file. Raises DataError for kinds of files that are never read."""
    with open_bytes(path) as stream:
        head = stream.read(HEAD)
    for magic, (kind, fix) in _OTHER.items():
        if head.startswith(magic):
            raise DataError(f"this is {kind}", value=str(path), valid=READ, fix=fix)
    return head


READ = "JSONL, JSON, CSV, TSV, Parquet, Arrow, plain text; each also .gz, .bz2, .xz, .zst"


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, line with its newline) of a text file, split at line feeds alone."""
    head = first_bytes(path)
    encoding = next((name for mark, name in _MARKS if head.startswith(mark)), "utf-8")
    with open_bytes(path) as stream:
        if encoding not in ("utf-8", "utf-8-sig"):
            yield from _wide_lines(path, stream, encoding)
            return
        for number, line in enumerate(stream, start=1):
            data = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if b"\x00" in data:
                raise _binary(path, number, data)
            try:
                yield number, data.decode("utf-8")
            except UnicodeDecodeError as e:
                raise DataError(
                    f"{path.name}, line {number} is not UTF-8 (byte 0x{data[e.start]:02x} at {e.start})",
                    value=str(path),
                    valid="UTF-8, or UTF-16 with a byte order mark",
                    fix=f"convert it: iconv -f ITS-ENCODING -t UTF-8 {path.name} > utf8-{path.name}",
                ) from None


def read_text(path: Path) -> str:
    """A whole text file, with one kind of line end."""
    text = "".join(line for _, line in read_lines(path))
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _wide_lines(path: Path, stream: BinaryIO, encoding: str) -> Iterator[tuple[int, str]]:
    number = 0
    try:
        with io.TextIOWrapper(stream, encoding, newline="\n") as wide:
            for number, line in enumerate(wide, start=1):
                if "\x00" in line:
                    raise _binary(path, number, line.encode())
                yield number, line
    except UnicodeError as e:
        raise DataError(
            f"{path.name}, line {number + 1} is not {encoding.upper()} ({e})",
            value=str(path),
            fix="convert it to UTF-8",
        ) from None


def _binary(path: Path, number: int, line: bytes) -> DataError:
    at = line.index(b"\x00")
    wide = line.count(b"\x00") > len(line) // 3
    return DataError(
        f"{path.name}, line {number} holds a NUL byte at {at}, so it is no text"
        + (" (or UTF-16 without a byte order mark)" if wide else ""),
        value=str(path),
        valid=READ,
        fix="convert it to UTF-8" if wide else "check the file",
    )


@contextmanager
def _unpacked(path: Path, packed: str | None) -> Iterator[BinaryIO]:
    openers: dict[str, Any] = {"gzip": gzip.open, "bz2": bz2.open, "xz": lzma.open}
    if packed in openers:
        with openers[packed](path, "rb") as stream:
            yield stream
    elif packed is None:
        with path.open("rb") as stream:
            yield stream
    else:
        import pyarrow

        with pyarrow.input_stream(str(path), compression=packed) as arrow, io.BufferedReader(arrow) as stream:
            yield stream
