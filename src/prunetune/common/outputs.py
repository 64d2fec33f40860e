"""What a command may write to: checked before any work, held by one process at a time.

    with output_file(out, is_scores) as tmp:        # score --out: a file
        scores.write(tmp)
    with output_new(out, key) as made:              # apply, tune: a folder that is made at once
        if made is None: once(out, key, make)
    with own_folder(out, "eval"):                   # eval, run: a folder that grows

A file's place is free or holds a file of ours. A folder's is new, empty, or ours and made by the same call; what
another call made is never thrown away for it. Links are refused: what they point to is not ours.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from prunetune.common.files import (
    MARK,
    TMP,
    disk_errors,
    holds_nothing,
    is_needed,
    is_temporary,
    json_sha,
    mark,
    mark_of,
    remove,
    replacing,
)  # fmt: skip
from prunetune.common.notes import Note, damage, read_note, verify
from prunetune.errors import NotWritable

OTHER = "choose another one, or move this one away"


@contextmanager
def held(lock: Path, what: Path) -> Iterator[None]:
    """Hold a lock file; NotWritable if another process has it."""
    with disk_errors(what):
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            taken = FileLock(lock, timeout=0.2)  # whoever only looks (`is_held`) has it for an instant
            taken.acquire()
        except Timeout:
            raise NotWritable(
                "another prunetune process is working here", value=str(what), fix="wait for it, or choose another --out"
            ) from None
    try:
        yield
    finally:
        taken.release()


def is_held(lock: Path) -> bool:
    """Whether a process holds a lock file. Nothing is written, and it is taken for an instant, shared."""
    import fcntl

    try:
        file = os.open(lock, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(file)
    return False


@contextmanager
def _held_beside(path: Path) -> Iterator[None]:
    """Hold `.NAME.lock` beside an output; it goes again."""
    lock = path.with_name(f".{path.name}.lock{TMP}")
    with held(lock, path):
        try:
            yield
        finally:
            remove(lock)


def full_path(path: Path) -> Path:
    """An output as a full path, whose last part is a name and is not followed."""
    return path.resolve() if path.name in ("", "..") else path.parent.resolve() / path.name


def is_unchanged(path: Path) -> bool:
    """Whether a file is one that we made, byte for byte, by its note."""
    note = read_note(path)
    return note is not None and bool(note.files) and damage(path) is None


def check_file(path: Path, ours: Callable[[Path], bool] = is_unchanged) -> None:
    """NotWritable unless a file may be written here: nothing is there, or a file of ours of the same kind.

    Args:
        path: The place.
        ours: Recognises our files of this kind; by their content, where it is like no other.
    """
    if path.is_symlink():
        raise NotWritable("this is a link; what it points to is not ours", value=str(path), fix="name another file")
    if path.is_dir():
        raise NotWritable("this is a folder, not a file", value=str(path), fix="name a file, such as one in it")
    if os.path.lexists(path) and not (path.is_file() and ours(path)):
        raise NotWritable(
            "there is a file already, and it is none that this command made", value=str(path), fix=f"--out: {OTHER}"
        )


@contextmanager
def output_file(
    path: Path,
    ours: Callable[[Path], bool] = is_unchanged,
    key: object = None,
    say: Callable[[str], None] | None = None,
    seal: bool = True,
) -> Iterator[Path]:
    """A hidden path to write to; on a clean exit it takes the place of `path`, whose hash is noted.

    Args:
        path: What the user named. Checked before the body runs; no second process may have it meanwhile.
        ours: See `check_file`.
        key: From what it is made; kept in the note.
        say: Told before the work if what is there, and will be replaced, was made from something else.
        seal: Whether its hash is noted. Not of what people are to edit.
    """
    place = full_path(path)
    check_file(place, ours)
    with _held_beside(place):
        check_file(place, ours)
        before = read_note(place) if place.is_file() else None
        if say and place.is_file() and (before is None or before.key != json_sha(key)):
            say(f"{path} was made with other arguments: it is replaced when this is done")
        with replacing(place, seal=seal, key=json_sha(key)) as tmp:
            yield tmp


def check_new(path: Path, key: object, *, folder: bool = True) -> Note | None:
    """NotWritable unless a thing may be made here: nothing is there, or an empty folder, or what this very call made.

    Args:
        path: The place.
        key: From what it is to be made.
        folder: Whether it is a folder.

    Returns:
        The note of what this call has made before, which is whole; None where it is still to be made.

    Raises:
        NotWritable: Something else is there. BadCheckpoint: What this call made has been changed since.
    """
    kind = "folder" if folder else "file"
    if path.is_symlink():
        raise NotWritable("this is a link; what it points to is not ours", value=str(path), fix=f"name another {kind}")
    if not os.path.lexists(path):
        return None
    if path.is_dir() != folder:
        raise NotWritable(
            f"this is a {'file' if folder else 'folder'}, not a {kind}", value=str(path), fix=f"name another {kind}"
        )
    if folder and is_needed(path):
        raise NotWritable("this folder is in use", value=str(path), fix="name a new folder, such as one in it")
    if folder and not any(path.iterdir()):
        return None
    note = read_note(path)
    if note is None or not note.files:
        raise NotWritable(
            f"the output {kind} is there already, and prunetune did not make it", value=str(path), fix=OTHER
        )
    if note.key != json_sha(key):
        raise NotWritable(
            f"the output {kind} is there already, made with other arguments",
            value=str(path),
            fix=f"nothing is thrown away: {OTHER}",
        )
    verify(path)
    return note


@contextmanager
def output_new(path: Path, key: object, *, folder: bool = True) -> Iterator[Note | None]:
    """Hold the place of what is to be made whole by `once(path, key, …)`; yields its note if it has been made."""
    place = full_path(path)
    check_new(place, key, folder=folder)
    with _held_beside(place):
        yield check_new(place, key, folder=folder)


@contextmanager
def own_folder(path: Path, what: str, known: Callable[[Path], bool] | None = None) -> Iterator[None]:
    """Hold a folder that grows: new, empty, or marked as ours by an earlier call; `.lock` and the mark are left in it.

    Args:
        path: The folder.
        what: What it is: `run`, `eval`.
        known: Recognises a folder of an earlier version, which had no mark.
    """
    check_own(path, what, known)
    with held(path / ".lock", path), disk_errors(path, denied=False):
        with disk_errors(path):
            mark(path, what)
        yield


def check_own(path: Path, what: str, known: Callable[[Path], bool] | None = None) -> None:
    """NotWritable unless a folder that grows may be here, see `own_folder`. Nothing is written."""
    if os.path.lexists(path) and not path.is_dir():
        raise NotWritable("this is a file, not a folder", value=str(path), fix="name another folder")
    if path.is_dir() and not _is_own(path, what, known):
        raise NotWritable(
            f"this folder holds other things than a prunetune {what}",
            value=str(path),
            valid=f"a new or an empty folder, or one that `prunetune {what}` made",
            fix="choose another --out",
        )


def _is_own(path: Path, what: str, known: Callable[[Path], bool] | None) -> bool:
    if (path / MARK).is_file():
        return (path / MARK).read_text(encoding="utf-8", errors="replace").strip() == what
    there = [p.name for p in path.iterdir() if not is_temporary(p.name)]
    return set(there) <= {".lock"} or (known is not None and known(path))


def claim(folder: Path, key: object) -> None:
    """Make a hidden work folder, or go on in it: it belongs to one call.

    Raises:
        NotWritable: It holds what another call has left unfinished, or what is not ours.
    """
    said = f"work {json_sha(key)}"
    if folder.is_symlink() or (os.path.lexists(folder) and not folder.is_dir()):
        raise NotWritable("this is in the way of unfinished work", value=str(folder), fix="move it away")
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / MARK).is_file():
            if (folder / MARK).read_text(encoding="utf-8", errors="replace").strip() == said:
                return
            raise NotWritable(
                "a call with other arguments has left its unfinished work here",
                value=str(folder),
                fix="give that call's arguments to go on with it, choose another output, or remove this folder",
            )
        if not holds_nothing(folder):
            raise NotWritable(
                "this folder is in the way of unfinished work, and is not known",
                value=str(folder),
                fix="choose another output, or remove this folder",
            )
        mark(folder, said)


WORK = ("checkpoint-*", "job.json", "launch.log", "result.json", "diverged", "teacher-*", ".teacher-*", "runs", "logs")
"""What a work folder of version 0.1 may hold."""


def work_folder(folder: Path) -> None:
    """Make a folder for checkpoints, or go on in it: one inside a folder of ours, a new or empty one, or of 0.1."""
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if mark_of(folder) is not None:
            return
        others = [p.name for p in folder.iterdir() if not any(p.match(w) for w in WORK) and not is_temporary(p.name)]
        if others:
            raise NotWritable(
                "this folder for checkpoints holds other files",
                value=f"{folder}: {', '.join(others[:3])}",
                fix="name another",
            )
        mark(folder, "work")
