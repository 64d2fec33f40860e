"""Finished samples on disk: JSON lines appended batch by batch, so that a killed evaluation can go on."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from typing import Any

from prunetune.common.files import disk_errors, json_sha, mark_of, replacing, write_note
from prunetune.common.notes import Note, hashes, read_note
from prunetune.common.reading import read_json_lines
from prunetune.common.strict_json import to_json_text
from prunetune.errors import BadCheckpoint, NotWritable


def read_samples(path: Path) -> list[dict[str, Any]]:
    """The samples of a JSONL file; a last line that a kill cut short is left out."""
    if not path.is_file():
        return []
    fix = "delete the file and evaluate again"
    found = list(read_json_lines(path, "samples file", fix=fix, whole=True))
    for number, row in found:
        if not isinstance(row.get("id"), str):
            raise BadCheckpoint("a sample has no id", value=f"{path}, line {number}", fix=fix)
    return [row for _, row in found]


def open_samples(path: Path, settings: object) -> dict[str, dict[str, Any]]:
    """The finished samples of `path`; a line that is not as it was written goes, and is asked again.

    In a run what was made with other settings is made anew; in a folder of `prunetune eval` it is refused.

    Raises:
        NotWritable: Answers with other settings, or a file that is not ours, are there.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = _whole_lines(path, settings)
        if path.is_file() and lines is not None and b"".join(lines) == path.read_bytes():
            return {r["id"]: r for r in read_samples(path)}
        write_note(path, Note(json_sha(settings)))
        with replacing(path) as tmp:
            tmp.write_bytes(b"".join(lines or []))
    return {r["id"]: r for r in read_samples(path)}


def _whole_lines(path: Path, settings: object) -> list[bytes] | None:
    """The lines of `path` that may be used again; None if it was made with other settings or is not there."""
    if not path.exists():
        return None
    note = read_note(path) if path.is_file() else None
    if note is None and mark_of(path) is not None:
        return None  # a run copied without its hidden files
    if note is None:
        raise NotWritable("prunetune did not write this file", value=str(path), fix="choose another --out")
    lines = path.read_bytes().splitlines(keepends=True)
    if note.key != json_sha(settings):
        if lines and mark_of(path) == "eval":
            raise NotWritable(
                "this folder holds answers to this task with other settings",
                value=str(path),
                fix="choose another --out, or move these answers away",
            )
        return None
    known = note.more.get("lines")
    good = [x for x in lines if x.endswith(b"\n") and (known is None or _line_sha(x) in known)]
    if known is not None and (bad := len(lines) - len(good)):
        print(f"{path}: {bad} answers are not as they were written, and are asked again", file=sys.stderr)
    return good


def _line_sha(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()[:12]


def seal_samples(path: Path) -> None:
    """All samples are there: note the hashes of the file and of its lines, so that a flipped byte is noticed."""
    if note := read_note(path):
        lines = [_line_sha(x) for x in path.read_bytes().splitlines(keepends=True)]
        write_note(path, Note(note.key, hashes(path), {"lines": lines}))


def append_samples(path: Path, records: list[dict[str, Any]]) -> None:
    """Append finished samples, and see them on disk."""
    with disk_errors(path):
        if (note := read_note(path)) and note.files:
            write_note(path, Note(note.key))
        _append(path, records)


def _append(path: Path, records: list[dict[str, Any]]) -> None:
    with path.open("a", encoding="utf-8") as f:
        f.writelines(to_json_text(r, indent=None) + "\n" for r in records)
        f.flush()
        os.fsync(f.fileno())
