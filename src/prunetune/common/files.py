"""Files that are either whole or absent: content hashes, atomic writes, `once`.

    key = {"model": model_sha(source), "data": "3f…", "criterion": "contribution"}
    path = once(at / "scores.safetensors", key, lambda tmp: save_scores(scores(), tmp))

`once` builds under a hidden name in the same folder, flushes to disk and renames, so that a kill at any instant leaves
either the finished thing or a hidden leftover that the next start removes. The key (the hash of the inputs) is kept
beside it in `.NAME.key`; the thing is made again only if the key differs.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from prunetune.common import reading, stopping
from prunetune.common.strict_json import to_json_text
from prunetune.errors import NotWritable

if TYPE_CHECKING:
    from collections.abc import Iterator


read_json = reading.read_json  # its older place


def json_sha(value: object) -> str:
    """SHA-256 (hex, 16 digits) of a JSON-serialisable value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def file_sha(path: Path) -> str:
    """SHA-256 (hex, 16 digits) of a file's bytes."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()[:16]


def write_json(path: Path, value: object) -> None:
    """Write strict JSON readable by people (two-space indent), atomically; NotFinite where a number is none."""
    with replacing(path) as tmp:
        tmp.write_text(to_json_text(value) + "\n", encoding="utf-8")


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk or a folder without write permission into one clear message."""
    try:
        yield
    except PermissionError as e:
        raise NotWritable(
            "this place cannot be written", value=e.filename or str(path), fix="choose another --out"
        ) from e
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NotWritable("no space left on the disk", value=str(path), fix="free space, then run again") from e
        if e.errno in (errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise NotWritable("this place cannot be written", value=str(path), fix="choose another --out") from e
        raise


def remove(path: Path) -> None:
    """Delete a file or a folder if it is there. A folder is renamed first, so that it never looks whole while going."""
    if path.is_dir() and not path.is_symlink():
        gone = path.with_name(f".{path.name.lstrip('.')}.gone")
        shutil.rmtree(gone, ignore_errors=True)
        path.rename(gone)
        shutil.rmtree(gone)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Flush to disk; files that safetensors wrote for their owner alone become readable like all others."""
    for p in [path, *path.rglob("*")] if path.is_dir() else [path]:
        if p.is_file() and p.stat().st_mode & 0o777 == 0o600:
            p.chmod(0o644)
        fd = os.open(p, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A hidden path to write to; on a clean exit it is flushed and takes the place of `path`."""
    tmp = path.with_name(f".{path.name}.tmp")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(tmp)
        yield tmp
        _sync(tmp)
        if path.is_dir():
            remove(path)
        tmp.rename(path)
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def is_made(path: Path, key: object) -> bool:
    """Whether `path` is there and was made from inputs with this key."""
    note = path.with_name(f".{path.name}.key")
    return path.exists() and note.exists() and note.read_text(encoding="utf-8") == json_sha(key)


def once(path: Path, key: object, make: Callable[[Path], object]) -> Path:
    """Make `path` (a file or a folder) unless it was already made from the same inputs.

    Args:
        path: What to make.
        key: JSON-serialisable description of all inputs; a change means "make again".
        make: Called with a hidden temporary path, which it must create as file or folder.

    Returns:
        `path`, which exists and is whole.
    """
    if is_made(path, key):
        return path
    stopping.raise_if_asked()
    tmp, note = path.with_name(f".{path.name}.tmp"), path.with_name(f".{path.name}.key")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(tmp)
        make(tmp)
        _sync(tmp)
        remove(path)  # from here to the rename `path` is absent, so an old content never meets the new key
        with replacing(note) as n:
            n.write_text(json_sha(key), encoding="utf-8")
        tmp.rename(path)
        _sync_folder(path.parent)
    return path
