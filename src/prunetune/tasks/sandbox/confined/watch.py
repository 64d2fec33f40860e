"""How much memory a process and all its descendants hold together, from `/proc` of the machine outside.

Shared memory of no process cannot be made inside (`filters.py`), so what counts is anonymous memory, what of it is
swapped out, page tables, and the files in the working folder. Pages that a fork shares with its parent count once.
"""

from __future__ import annotations

import os

PAGE = os.sysconf("SC_PAGE_SIZE")
TRIES = 3  # walks in a row, where a process ended during one: its children are then found elsewhere


class Watch:
    """Reads `/proc` through a descriptor that was opened before the root changed."""

    def __init__(self) -> None:
        """Open `/proc`. Raises OSError where the kernel does not tell a process's children."""
        self.proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
        self._read(f"self/task/{os.getpid()}/children")

    def descendants(self, first: int) -> set[int]:
        """All living processes below `first`."""
        found: set[int] = set()
        for _ in range(TRIES):
            missed, waiting = False, [first]
            while waiting:
                pid = waiting.pop()
                try:
                    threads = self._list(f"{pid}/task")
                    below = [int(p) for t in threads for p in self._read(f"{pid}/task/{t}/children").split()]
                except OSError:
                    missed = True
                    continue
                waiting += below
                found.update(below)
            if not missed:
                break
        return found

    def exceeds(self, pids: set[int], most: int) -> bool:
        """Whether these processes hold more than `most` bytes. Cheap while their address spaces are small."""
        if sum(self._address_space(p) for p in pids) <= most:
            return False
        if sum(self._status(p) for p in pids) <= most:
            return False
        return sum(self._proportional(p) for p in pids) > most

    def _address_space(self, pid: int) -> int:
        try:
            return int(self._read(f"{pid}/statm").split(b" ", 1)[0]) * PAGE
        except (OSError, IndexError, ValueError):
            return 0  # it has ended

    def _status(self, pid: int) -> int:
        return self._sum(f"{pid}/status", (b"RssAnon:", b"VmSwap:", b"VmPTE:"))

    def _proportional(self, pid: int) -> int:
        try:
            return self._sum(f"{pid}/smaps_rollup", (b"Pss_Anon:", b"SwapPss:"), whole=True)
        except PermissionError:
            return self._status(pid)

    def _sum(self, path: str, keys: tuple[bytes, ...], whole: bool = False) -> int:
        """Sum of some lines `Key:  123 kB`, in bytes."""
        try:
            lines = self._read(path).splitlines()
        except PermissionError:
            if whole:
                raise
            return 0
        except OSError:
            return 0  # it has ended
        return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(keys))

    def _list(self, path: str) -> list[str]:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY, dir_fd=self.proc)
        try:
            return os.listdir(folder)
        finally:
            os.close(folder)

    def _read(self, path: str) -> bytes:
        file = os.open(path, os.O_RDONLY, dir_fd=self.proc)
        try:
            parts = []
            while part := os.read(file, 1 << 16):
                parts.append(part)
            return b"".join(parts)
        finally:
            os.close(file)
