"""Too little memory, told as that: allocators say it in five ways, and none of them names what was wanted."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread

import psutil

from prunetune.common.progress import Progress
from prunetune.errors import TooLittleMemory

_WORDS = (
    "DefaultCPUAllocator",
    "out of memory",
    "not enough memory",
    "Cannot allocate memory",
    "can't allocate memory",
    "bad_alloc",
)


def is_memory(e: BaseException) -> bool:
    """Whether an error means that memory ran out: Python's, torch's on the CPU or a GPU, or a file's mapping."""
    if isinstance(e, MemoryError) or (isinstance(e, OSError) and e.errno == errno.ENOMEM):
        return True
    if any(kind.__name__ == "OutOfMemoryError" for kind in type(e).__mro__):  # torch's, which is not imported for this
        return True
    return any(word in str(e) for word in _WORDS)


@contextmanager
def filling(progress: Progress, expected: int, every: float = 1.0) -> Iterator[None]:
    """Tell how much of the memory that a call will need it has by now: for calls that tell nothing themselves.

    Args:
        progress: Called with (MB taken since the beginning, MB expected), from a thread.
        expected: Bytes.
        every: Seconds.
    """
    over, process = Event(), psutil.Process()
    start, total = process.memory_info().rss, max(1, expected // 10**6)

    def look() -> None:
        while not over.wait(every):
            taken = (process.memory_info().rss - start) // 10**6
            progress(min(max(taken, 0), total), total)

    thread = Thread(target=look, daemon=True)
    progress(0, total)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def memory_errors(what: str, value: object, fix: str) -> Iterator[None]:
    """Turn running out of memory inside into TooLittleMemory: `what` needed it, `value` is what it was done on."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as e:
        if not is_memory(e):
            raise
        raise TooLittleMemory(f"there is too little memory to {what}", value=value, fix=fix) from e


def used_bytes() -> int:
    """Memory in use: the highest of the GPU where torch has one at work, else what is resident of this process."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    return int(psutil.Process().memory_info().rss)
