"""Work that goes through a model part by part, and that a kill does not lose: its state is saved every so often.

    at = Halfway(folder / ".scores.half", key)
    state = at.found(device)                                  # of an earlier start with the same key, or None
    for part in range(...):
        ...
        at.reached(part + 1, parts, lambda: {"hidden": hidden, ...})

Saved whenever a twentieth of the parts are done since the last time, and some seconds have passed: quick work writes
nothing. A state never lies in memory as a whole: it is written as it is walked, and mapped when it is read, so that
what is on disk stays there. With ten parts or more a kill loses a tenth at most; `in_parts` makes more of few batches.
Whoever ends the stage calls `clear`.

Of several processes each keeps a state of its own (`of`). Where they go from part to part together, a kill can come
between two of their saves: each keeps the state before, too, and they go on from the newest that all of them have.
"""

from __future__ import annotations

import glob
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from prunetune.common.device import ALONE, Processes
from prunetune.common.files import json_sha, remove, replacing

SECONDS = 5.0
"""Not more often than this."""
SHARE = 20
"""It is saved so many times at most."""
PARTS = 10
"""Work has so many parts at least, if it can be divided."""
NOTE = 512
"""Bytes at the end of a state that say what it is of."""
BLOCK = 1 << 20


def in_parts(batches: Sequence[dict[str, Tensor]], parts: int = PARTS) -> list[dict[str, Tensor]]:
    """The batches, or, where there are fewer than `parts`, their rows in as many or a few more: in the same order."""
    if len(batches) >= parts:
        return list(batches)
    each = math.ceil(parts / max(1, len(batches)))
    found = []
    for batch in batches:
        rows = max(1, len(next(iter(batch.values()))) // each)
        columns = {name: values.split(rows) for name, values in batch.items()}
        found += [dict(zip(columns, part, strict=True)) for part in zip(*columns.values(), strict=True)]
    return found


def _sha(file: BinaryIO, size: int) -> str:
    """Of the first bytes of a file."""
    file.seek(0)
    found = hashlib.sha256()
    while size > 0 and (block := file.read(min(size, BLOCK))):
        found.update(block)
        size -= len(block)
    return found.hexdigest()


@dataclass
class Halfway:
    """Where a piece of work keeps its state, and from what it is made.

    Attributes:
        path: A hidden file in a folder of ours.
        key: JSON-serialisable description of all inputs; a state of another key is not taken up.
    """

    path: Path
    key: object
    _processes: Processes = field(default=ALONE, init=False)
    _last: int = field(default=0, init=False)
    _time: float = field(default_factory=time.monotonic, init=False)

    @property
    def _sha(self) -> str:
        return json_sha([4, PARTS, SHARE, self.key])  # the form of the states, and how the work is divided

    def of(self, processes: Processes, *, abreast: bool = False) -> Halfway:
        """Where one of several processes keeps its state; itself for one alone.

        Args:
            processes: Who works.
            abreast: They go from part to part together: all save, and take up, the same part.
        """
        if processes.count == 1:
            return self
        name = f"{self.path.stem}.{processes.rank + 1}of{processes.count}.half"
        mine = Halfway(self.path.with_name(name), [self.key, processes.rank, processes.count])
        if abreast:
            mine._processes = processes
        return mine

    @property
    def _before(self) -> Path:
        """Where the state before the newest lies, of processes that go abreast."""
        return self.path.with_suffix(".before.half")

    def found(self, device: torch.device | str = "cpu") -> dict[str, Any] | None:
        """The state that an earlier start left, its tensors on the device; None if there is none, or none of this."""
        places = (self._before, self.path) if self._processes.count > 1 else (self.path,)
        kept = {done: path for path in places if (done := self._done(path)) is not None}
        common = set[int].intersection(*self._processes.gather(set(kept)))
        if not common:
            return None
        self._last = max(common)
        state: dict[str, Any] = torch.load(kept[self._last], mmap=True, map_location=device, weights_only=True)
        return state

    def _done(self, path: Path) -> int | None:
        """Parts that were done when a file was written; None where it is not there, is broken, or is of another key."""
        try:
            with path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - NOTE))
                note = json.loads(file.read())
                whole = note == {"key": self._sha, "sha": _sha(file, size - NOTE), "done": note["done"]}
            return int(note["done"]) if whole else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def reached(self, done: int, total: int, state: Callable[[], dict[str, Any]], *, result: bool = False) -> None:
        """Save, if it is time to.

        Args:
            done: Parts that are done.
            total: Parts in all; the last one is not saved where its result is.
            state: What to go on from: tensors, numbers, text, in lists and dicts.
            result: Whether the state is all that there is of the result, so that the last part is saved too.
        """
        now = time.monotonic()
        due = result if done >= total else (done - self._last) * SHARE >= total
        if not self._processes.first(due and now - self._time >= SECONDS):
            return
        if self._processes.count > 1 and self.path.is_file():
            with replacing(self._before) as tmp:
                tmp.hardlink_to(self.path)
        with replacing(self.path) as tmp, tmp.open("w+b") as file:
            torch.save(state(), file)
            note = {"key": self._sha, "sha": _sha(file, file.tell()), "done": done}
            file.seek(0, os.SEEK_END)
            file.write(json.dumps(note).encode().ljust(NOTE))
        self._last, self._time = done, time.monotonic()

    def clear(self) -> None:
        """Its stage is at its end; whoever worked at it, alone or as one of several."""
        for path in (self.path, *self.path.parent.glob(f"{glob.escape(self.path.stem)}.*of*.half")):
            remove(path)
