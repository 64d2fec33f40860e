"""Files that are either whole or absent, and the only place of the package that deletes or overwrites.

    key = {"model": model_sha(source), "data": "3f…", "criterion": "contribution"}
    path = once(at / "scores.safetensors", key, lambda tmp: save_scores(scores(), tmp))

`once` builds under a hidden name in the same folder, flushes to disk and renames, so that a kill at any instant leaves
either the finished thing or a hidden leftover that the next start removes. The key (the hash of the inputs) and the
hashes of the bytes are kept beside it in `.NAME.key` (see `notes`); the thing is made again only if either differs.

The rule of `remove`: nothing goes that we did not make. Ours is what has a note beside it and is as the note says, what
lies in a folder that carries our mark (`.prunetune`), and what bears the name of our leftovers.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunetune.common import reading, stopping
from prunetune.common.disk import check_space, disk_errors, is_full
from prunetune.common.notes import Note, damage, foreign, full_sha, hashes, note_path, read_note
from prunetune.common.strict_json import to_json_text
from prunetune.errors import BadCheckpoint, NotWritable

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["check_space", "disk_errors", "is_full", "read_json"]  # of their own files, reached from here too

MARK = ".prunetune"
"""In a folder that is ours to write in and to clear: a run, a work folder. Its text says what the folder is."""
TMP, GONE = ".prunetune-tmp", ".prunetune-gone"
"""How the names of what is being made, and of what is being deleted, end."""


read_json = reading.read_json  # its older place


def json_sha(value: object) -> str:
    """SHA-256 (hex, 16 digits) of a JSON-serialisable value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def file_sha(path: Path) -> str:
    """SHA-256 (hex, 16 digits) of a file's bytes."""
    return full_sha(path)[:16]


def write_json(path: Path, value: object) -> None:
    """Write strict JSON readable by people (two-space indent), atomically; NotFinite where a number is none.

    In a run folder it is a record: its hash is noted beside it.
    """
    with replacing(path, seal=_is_record(path)) as tmp:
        tmp.write_text(to_json_text(value) + "\n", encoding="utf-8")


def _is_record(path: Path) -> bool:
    """Whether a file lies in a run folder, in none of its hidden or half-made parts."""
    full = path.parent.resolve() / path.name
    run = next((p for p in full.parents if (p / MARK).is_file()), None)
    return run is not None and mark_of(run) == "run" and not any(p.startswith(".") for p in full.relative_to(run).parts)


def _sync(path: Path) -> None:
    """Flush to disk; files that safetensors wrote for their owner alone become readable like all others."""
    for p in [path, *path.rglob("*")] if path.is_dir() else [path]:
        if p.is_symlink():
            continue
        if p.is_file() and p.stat().st_mode & 0o777 == 0o600:
            p.chmod(0o644)
        fd = os.open(p, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# ------------------------------------------------------------------------------------------------------- what is ours


def temporary(path: Path) -> Path:
    """The hidden name under which `path` is made."""
    return path.with_name(f".{path.name}{TMP}")


def is_temporary(name: str) -> bool:
    """Whether a file name is that of something being made or deleted."""
    return name.startswith(".") and name.endswith((TMP, GONE))


def mark(folder: Path, what: str) -> None:
    """Make a folder ours to write in and to clear. The caller has seen to it that nothing else is in it.

    Several processes may do so at once: one of them places the mark, the others find their hidden file gone.
    """
    while not (folder / MARK).is_file():
        with contextlib.suppress(FileNotFoundError), replacing(folder / MARK) as tmp:
            tmp.write_text(what + "\n", encoding="utf-8")


def mark_of(path: Path) -> str | None:
    """What the nearest marked folder is that `path` lies in, or is; None where nothing is ours."""
    full = path.parent.resolve() / path.name
    for p in (full, *full.parents):
        if (p / MARK).is_file():
            return (p / MARK).read_text(encoding="utf-8", errors="replace").strip()
    return None


def holds_nothing(folder: Path) -> bool:
    """Whether a folder is empty, leftovers of ours aside."""
    return all(is_temporary(p.name) for p in folder.iterdir())


def is_needed(path: Path) -> bool:
    """Whether `path` is the root, a mount point, the current or the home folder, or a folder around one of these."""
    place = path.resolve()
    lived_in = (Path.cwd().resolve(), Path(os.environ.get("HOME") or "/").resolve())
    return place == place.parent or any(p.is_relative_to(place) for p in lived_in) or os.path.ismount(place)


def check_ours(path: Path) -> None:
    """The rule: NotWritable unless `path` is ours to delete or to overwrite."""
    full = path.parent.resolve() / path.name
    named = any(is_temporary(p.name) for p in (full, *full.parents))
    why = "prunetune did not make this, so it is not deleted"
    if is_needed(path) or (path.is_symlink() and not named):
        raise NotWritable(why, value=str(path), fix="choose another --out")
    if named or (path.is_dir() and not any(path.iterdir())):
        return
    with contextlib.suppress(BadCheckpoint):
        note = read_note(path)
        if note and path.is_dir() and (others := foreign(path, note)):
            listed = ", ".join(others[:3]) + (", …" if len(others) > 3 else "")
            raise NotWritable(
                "this folder holds files that prunetune did not write, so it is not deleted",
                value=f"{path}: {listed}",
                fix="move them elsewhere, then run again",
            )
        if note and note.files and damage(path) is None:
            return
    if mark_of(path) is None:
        raise NotWritable(why, value=str(path), fix="choose another --out, or move it away")


def remove(path: Path) -> None:
    """Delete a file or a folder of ours if it is there. Nothing else in the package deletes.

    A folder is renamed first, so that it never looks whole while going. Links are not followed.

    Raises:
        NotWritable: It is not ours (see `check_ours`).
    """
    if not os.path.lexists(path):
        return
    check_ours(path)
    if path.is_symlink() or not path.is_dir():
        path.unlink()
        return
    gone = path if is_temporary(path.name) else path.with_name(f".{path.name.lstrip('.')}{GONE}")
    if gone != path:
        remove(gone)
        path.rename(gone)
    shutil.rmtree(gone)


# ------------------------------------------------------------------------------------------------------ whole or absent


@contextmanager
def replacing(path: Path, *, seal: bool = False, key: str | None = None) -> Iterator[Path]:
    """A hidden path to write to; on a clean exit it is flushed and takes the place of the file `path`.

    Args:
        path: A file, which may be there. A folder is never replaced. Whose file it is the caller knows.
        seal: Note its hash beside it, as is done in any case where there is a note.
        key: Hash of the inputs, for that note.
    """
    tmp = temporary(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(tmp)
        with _cleared(tmp):
            yield tmp
            _sync(tmp)
            if path.is_dir():
                raise NotWritable("this is a folder, not a file", value=str(path), fix="name a file")
            _place(tmp, path, seal=seal, key=key)


@contextmanager
def _cleared(tmp: Path) -> Iterator[None]:
    """Take what is half made away where it fails; only a kill leaves it."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            remove(tmp)
        raise


def _place(tmp: Path, path: Path, *, seal: bool, key: str | None = None, more: dict[str, Any] | None = None) -> None:
    """Rename into place. The note comes first, and until then names the old content too: a kill may leave either."""
    old = None
    with contextlib.suppress(BadCheckpoint):
        old = read_note(path)
    if seal or (old and old.files):
        files = hashes(tmp, path.name)
        if old and path.is_file() and (now := full_sha(path)) in old.files.get(path.name, ()):
            files[path.name] = tuple(dict.fromkeys([*files[path.name], now]))
        write_note(path, Note((old.key if old else "") if key is None else key, files, more or {}))
    tmp.rename(path)
    _sync_folder(path.parent)


@contextmanager
def fresh(path: Path) -> Iterator[Path]:
    """A hidden path to make a folder at; on a clean exit it becomes `path`, which must be free or an empty folder."""
    tmp = temporary(path)
    with disk_errors(path):
        if os.path.lexists(path) and (path.is_symlink() or not path.is_dir() or any(path.iterdir())):
            raise NotWritable("the output folder is not empty", value=str(path), fix="choose another one")
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(tmp)
        with _cleared(tmp):
            yield tmp
            _sync(tmp)
            remove(path)
            tmp.rename(path)
            _sync_folder(path.parent)


def write_note(path: Path, note: Note) -> None:
    """Write the note of `path`, atomically."""
    place = note_path(path)
    tmp = temporary(place)
    tmp.write_text(note.text(), encoding="utf-8")
    _sync(tmp)
    tmp.rename(place)


def is_made(path: Path, key: object) -> bool:
    """Whether `path` is there, was made from inputs with this key, and is as it was made."""
    try:
        note = read_note(path)
    except BadCheckpoint:
        return False
    return note is not None and note.key == json_sha(key) and path.exists() and damage(path) is None


def once(path: Path, key: object, make: Callable[[Path], object], more: dict[str, Any] | None = None) -> Path:
    """Make `path` (a file or a folder) unless it was already made from the same inputs and is unharmed.

    Args:
        path: What to make.
        key: JSON-serialisable description of all inputs; a change means "make again".
        make: Called with a hidden temporary path, which it must create as file or folder.
        more: Kept in the note; read after `make`, which may fill it.

    Returns:
        `path`, which exists and is whole.

    Raises:
        NotWritable: Something that we did not make is in the way; a full disk; no permission.
    """
    if is_made(path, key):
        return path
    stopping.raise_if_asked()
    if found := _harmed(path, key):
        print(f"{found} is not what was written (its hash differs): it is made anew", file=sys.stderr)
    tmp = temporary(path)
    with disk_errors(path):
        if os.path.lexists(path):
            check_ours(path)  # before the work
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(tmp)
        with _cleared(tmp):
            make(tmp)
            _sync(tmp)
            remove(path)  # from here to the rename `path` is absent, so an old content never meets the new key
            _place(tmp, path, seal=True, key=json_sha(key), more=more)
    return path


def _harmed(path: Path, key: object) -> Path | None:
    """The damaged file of a thing that has the right key."""
    try:
        note = read_note(path)
    except BadCheckpoint:
        return note_path(path)
    found = damage(path) if note is not None and note.key == json_sha(key) else None
    return found[0] if found else None
