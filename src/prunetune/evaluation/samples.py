"""Finished samples on disk: JSON lines appended batch by batch, so that a killed evaluation can go on."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StrictBool, field_validator

from prunetune.common.files import disk_errors, json_sha, mark_of, replacing, write_note
from prunetune.common.notes import Note, hashes, read_note
from prunetune.common.reading import read_json_lines, validated
from prunetune.common.strict_json import to_json_text
from prunetune.errors import NotWritable


class Row(BaseModel):
    """A line of such a file."""

    model_config = ConfigDict(frozen=True, extra="ignore", coerce_numbers_to_str=True)

    id: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values of what was set, in the order of the fields."""
        return self.model_dump(mode="json", exclude_unset=True)


class Sample(Row):
    """One question, and what a model answered.

    Attributes:
        prompt: The text that the model was given.
        reference: The right answer.
        output: The model's whole answer.
        extracted: What the verifier took from it; None: nothing, or it does not say (one's own).
        reason: Why it is wrong; "" if it is right.
        ended: `eos`, `stop` or `length`.
        scores: What else the verifier says, such as an F1.
        seconds: Its share of its batch's time.
    """

    question: str = ""
    prompt: str = ""
    reference: str = ""
    output: str
    extracted: str | None = None
    correct: StrictBool
    reason: str = ""
    prompt_tokens: int | None = None
    new_tokens: int | None = None
    ended: str | None = None
    scores: dict[str, float] = Field(default_factory=dict)
    seconds: float = 0.0

    @field_validator("reason", mode="before")
    @classmethod
    def _none(cls, value: object) -> object:
        return "" if value is None else value


class Kept(Row):
    """An answer to one of lm-eval's requests: text, or log-likelihoods."""

    answer: JsonValue


R = TypeVar("R", bound=Row)


def read_rows(path: Path, of: type[R], *, whole: bool = True) -> list[R]:
    """The lines of a JSONL file, [] if there is none. BadCheckpoint for a broken one.

    Args:
        path: The file.
        of: What its lines are.
        whole: Leave out a last line that a kill cut short.
    """
    if not path.is_file():
        return []
    fix = "delete the file and evaluate again"
    rows = read_json_lines(path, "samples file", fix=fix, whole=whole)
    return [validated(of, row, f"{path}, line {number}", "sample", fix=fix) for number, row in rows]


def read_samples(path: Path) -> list[Sample]:
    """The samples of a JSONL file; a last line that a kill cut short is left out."""
    return read_rows(path, Sample)


def open_samples(path: Path, settings: object, of: type[R]) -> dict[str, R]:
    """The finished rows of `path`; a line that is not as it was written goes, and is asked again.

    In a run what was made with other settings is made anew; in a folder of `prunetune eval` it is refused.

    Raises:
        NotWritable: Answers with other settings, or a file that is not ours, are there.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = _whole_lines(path, settings)
        if path.is_file() and lines is not None and b"".join(lines) == path.read_bytes():
            return {r.id: r for r in read_rows(path, of)}
        write_note(path, Note(json_sha(settings)))
        with replacing(path) as tmp:
            tmp.write_bytes(b"".join(lines or []))
    return {r.id: r for r in read_rows(path, of)}


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


def append_samples(path: Path, records: Sequence[Row]) -> None:
    """Append finished samples, and see them on disk."""
    with disk_errors(path):
        if (note := read_note(path)) and note.files:
            write_note(path, Note(note.key))
        _append(path, records)


def _append(path: Path, records: Sequence[Row]) -> None:
    with path.open("a", encoding="utf-8") as f:
        f.writelines(to_json_text(r.to_json(), indent=None) + "\n" for r in records)
        f.flush()
        os.fsync(f.fileno())
