"""Finished samples on disk: JSON lines appended batch by batch, so that a killed evaluation can go on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from prunetune.common.files import disk_errors, is_made, json_sha, remove, replacing
from prunetune.common.strict_json import to_json_text
from prunetune.errors import BadCheckpoint


def read_samples(path: Path) -> list[dict[str, Any]]:
    """The samples of a JSONL file; a last line that a kill cut short is left out."""
    if not path.is_file():
        return []
    *lines, rest = path.read_bytes().split(b"\n")
    del rest  # whatever follows the last newline was not finished
    try:
        return [json.loads(line) for line in lines if line.strip()]
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise BadCheckpoint(
            f"a line of these samples is not valid JSON ({e})",
            value=str(path),
            fix="delete the file and evaluate again",
        ) from None


def open_samples(path: Path, settings: object) -> dict[str, dict[str, Any]]:
    """The finished samples of `path`, which is made empty if it was made with other settings."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if not is_made(path, settings):
            remove(path)
            path.touch()
            with replacing(path.with_name(f".{path.name}.key")) as note:
                note.write_text(json_sha(settings), encoding="utf-8")
        records = read_samples(path)
        whole = path.read_bytes().rpartition(b"\n")
        if whole[2]:  # a kill cut this line short: appending to it would spoil the next one
            os.truncate(path, len(whole[0]) + len(whole[1]))
    return {r["id"]: r for r in records}


def append_samples(path: Path, records: list[dict[str, Any]]) -> None:
    """Append finished samples, and see them on disk."""
    with disk_errors(path), path.open("a", encoding="utf-8") as f:
        f.writelines(to_json_text(r, indent=None) + "\n" for r in records)
        f.flush()
        os.fsync(f.fileno())
