"""What lies beside a thing that we made: `.NAME.key`, which says from what it was made and what its bytes were.

    {"key": "3f2a…", "files": {"config.json": ["9b1c…"], "model.safetensors": ["77e0…"]}}

`key` is the hash of the inputs (see `files.once`), `files` the SHA-256 of every file, so that a flipped byte is noticed
when the thing is read. A file that is replaced has two hashes for as long as a kill could leave either content. Notes
of earlier versions hold the key alone: their things are used unchecked.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Any

from prunetune.common.progress import bar
from prunetune.errors import BadCheckpoint

LARGE = 1 << 20
"""Files from this size on are hashed once a process for as long as their size and time stay."""
PIECE = 1 << 24
"""Larger files are hashed in pieces of so many bytes."""
LOOSE = ("README.md",)
"""Files of a folder of ours that may be written anew later: ours, but not hashed."""
_seen: dict[tuple[int, int, int, int], str] = {}


@dataclass(frozen=True)
class Note:
    """The content of a `.NAME.key`.

    Attributes:
        key: Hash of the inputs; empty where nothing but the content counts.
        files: Path below the thing (its own name, for a file) -> the SHA-256 it may have; empty: unknown.
        more: What else its maker wants to find again.
    """

    key: str = ""
    files: dict[str, tuple[str, ...]] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """As JSON."""
        return json.dumps({"key": self.key, "files": self.files} | ({"more": self.more} if self.more else {})) + "\n"


def note_path(path: Path) -> Path:
    """Where the note of `path` lies."""
    return path.with_name(f".{path.name}.key")


def read_note(path: Path) -> Note | None:
    """The note of `path`; None without one. BadCheckpoint if it is damaged."""
    if not path.name:
        return None
    place = note_path(path)
    try:
        text = place.read_bytes().decode("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except UnicodeDecodeError:
        raise _bad_note(place) from None
    if len(text) == 16 and not set(text) - set("0123456789abcdef"):  # version 0.1
        return Note(text)
    try:
        value = json.loads(text)
        files = {str(k): tuple(map(str, v)) for k, v in value["files"].items()}
        return Note(str(value["key"]), files, dict(value.get("more", {})))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise _bad_note(place) from None


def _bad_note(place: Path) -> BadCheckpoint:
    return BadCheckpoint(
        "this note of what was made here is damaged",
        value=str(place),
        fix="restore it from a copy, or remove it: what lies beside it is then used unchecked",
    )


def full_sha(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes; a large file's is kept until its size or time changes."""
    with path.open("rb") as f:
        digest = _seen.get(_identity(path))
        return digest or remember(path, _hashed(f, path.name, path.stat().st_size))


def _hashed(file: BufferedReader, name: str, size: int) -> str:
    """SHA-256 of an open file, piece by piece, so that a bar can tell how far it is."""
    if size < PIECE:
        return hashlib.file_digest(file, "sha256").hexdigest()
    digest, done = hashlib.sha256(), 0
    with bar(f"hash {name} (MB)", size // 10**6) as progress:
        while piece := file.read(PIECE):
            digest.update(piece)
            done += len(piece)
            progress(done // 10**6, size // 10**6)
    return digest.hexdigest()


def remember(path: Path, digest: str) -> str:
    """Keep the hash of a large file that was found, or computed while it was written; returns it."""
    found = _identity(path)
    if found[2] >= LARGE:
        _seen[found] = digest
    return digest


def _identity(path: Path) -> tuple[int, int, int, int]:
    """What changes when a file's bytes do."""
    stat = path.stat()
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def files_of(path: Path) -> list[str]:
    """The files of a folder by their paths below it, or the name of a file."""
    if path.is_dir():
        return sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.is_symlink() or not p.is_dir())
    return [path.name]


def hashes(path: Path, name: str | None = None) -> dict[str, tuple[str, ...]]:
    """SHA-256 of every file of `path`, which will be called `name`."""
    if path.is_dir():
        return {f: (full_sha(path / f),) for f in files_of(path) if f not in LOOSE}
    return {name or path.name: (full_sha(path),)}


def foreign(path: Path, note: Note) -> list[str]:
    """The files in the folder `path` that are not those of its note."""
    return [f for f in files_of(path) if f not in note.files and f not in LOOSE] if note.files else []


def damage(path: Path) -> tuple[Path, str, str] | None:
    """The first file of `path` that is not what was written: (file, found, expected); None: unharmed, or unknown."""
    note = read_note(path)
    if note is None or not path.exists():
        return None
    at = path if path.is_dir() else path.parent
    for name, expected in note.files.items():
        found = full_sha(at / name) if (at / name).is_file() else "no such file"
        if found not in expected:
            return at / name, found, expected[0]
    return None


def verify(path: Path) -> Path:
    """`path`, unless a byte of it is not what was written: then BadCheckpoint, with file, hashes and what to do."""
    if found := damage(path):
        file, is_, was = found
        raise BadCheckpoint(
            "this file is not what prunetune wrote",
            value=f"{file}: sha256 {is_[:16]}",
            valid=f"sha256 {was[:16]}",
            fix="restore it from a copy or make it anew; "
            f"if it was changed on purpose, remove the note {note_path(path)}",
        )
    return path
