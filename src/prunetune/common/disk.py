"""What a disk may refuse: space, quota, permission; each as one message."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prunetune.errors import NotWritable, PrunetuneError

FULL = ("No space left on device", "Disk quota exceeded", "os error 28", "os error 122", "PytorchStreamWriter failed")
"""What libraries that write by themselves (safetensors, torch) say of a full disk."""
DENIED = (errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTEMPTY)


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, is a full disk or a used-up quota."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(words in str(error) for words in FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def disk_errors(path: Path | None = None, *, denied: bool = True) -> Iterator[None]:
    """Turn a full disk or a folder without write permission into one clear message.

    Args:
        path: What is being written; None where that is not known.
        denied: Also tell what may not be written; False around work that reads other places too.
    """
    try:
        yield
    except PrunetuneError:
        raise
    except Exception as e:
        named = e.filename if isinstance(e, OSError) and isinstance(e.filename, str) else None
        if is_full(e):
            place = str(path) if path else named
            raise NotWritable("no space left on the disk", value=place, fix="free space, then run again") from e
        if denied and isinstance(e, OSError) and (isinstance(e, PermissionError) or e.errno in DENIED):
            why = f"this place cannot be written ({e.strerror})"
            raise NotWritable(why, value=named or str(path), fix="choose another --out") from e
        raise


def check_space(path: Path, needed: int, what: str) -> None:
    """Better to stop before the first byte than in the midst: NotWritable unless `needed` bytes are free at `path`."""
    at = path.absolute()
    while not at.exists():
        at = at.parent
    free = shutil.disk_usage(at).free
    if free < needed:
        raise NotWritable(
            f"no space left for {what} of {_size(needed)}",
            value=f"{path}: {_size(free)} free",
            fix="free space, then run again: nothing is lost",
        )


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
