"""What a study measured, in one file: `studies/NN-name/records.jsonl`, a line a record, sorted by name.

    {"name": "once-0.6-80000-s0", "value": {…}}            a finished cell
    {"name": "questions/3f…", "value": ["0", "1", …]}      the ids that a string of verdicts belongs to
    {"name": "cpu-2/0", "value": {…}}                      a repetition of study 10

The file is written whole and renamed, under a lock, so that workers can add to it side by side.
"""

from __future__ import annotations

import copy
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Records:
    """The records of one study."""

    file: Path

    def all(self) -> dict[str, Any]:
        """Name -> value; empty if nothing is measured yet."""
        if not self.file.is_file():
            return {}
        stamp = self.file.stat()
        return dict(_read(self.file, stamp.st_mtime_ns, stamp.st_size))

    def get(self, name: str) -> Any:
        """A record, the caller's own, or None."""
        return copy.deepcopy(self.all().get(name))

    def put(self, name: str, value: object) -> None:
        """Add a record, or replace it."""
        with _locked(self.file):
            self._write({**self.all(), name: value})

    def drop(self, name: str) -> None:
        """Take a record away, so that its cell is measured again."""
        with _locked(self.file):
            self._write({k: v for k, v in self.all().items() if k != name})

    def _write(self, values: dict[str, Any]) -> None:
        hidden = self.file.with_name(f".{self.file.name}.{os.getpid()}")
        lines = [json.dumps({"name": k, "value": values[k]}, separators=(",", ":")) + "\n" for k in sorted(values)]
        hidden.write_text("".join(lines), encoding="utf-8")
        hidden.rename(self.file)
        _CACHE.pop(self.file, None)


_CACHE: dict[Path, tuple[tuple[int, int], dict[str, Any]]] = {}


def _read(file: Path, mtime_ns: int, size: int) -> dict[str, Any]:
    """The file's records, parsed once as long as it does not change: a page asks for hundreds of them."""
    stamp = (mtime_ns, size)
    if file not in _CACHE or _CACHE[file][0] != stamp:
        rows = (json.loads(line) for line in file.read_text(encoding="utf-8").splitlines())
        _CACHE[file] = stamp, {r["name"]: r["value"] for r in rows}
    return _CACHE[file][1]


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    with file.with_name(f".{file.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
