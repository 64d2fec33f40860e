"""Work that goes through a model part by part, and that a kill does not lose: its state is saved every so often.

    at = Halfway(folder / ".scores.half", key)
    state = at.found(device)                                  # of an earlier start with the same key, or None
    for part in range(...):
        ...
        at.reached(part + 1, parts, lambda: {"hidden": hidden, ...})

Saved whenever a tenth of the parts are done since the last time, and some seconds have passed: quick work writes
nothing. Whoever ends the stage calls `clear`.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from prunetune.common.files import json_sha, remove, replacing

SECONDS = 5.0
"""Not more often than this."""
SHARE = 10
"""Parts of the work in which it is saved."""


@dataclass
class Halfway:
    """Where a piece of work keeps its state, and from what it is made.

    Attributes:
        path: A hidden file in a folder of ours.
        key: JSON-serialisable description of all inputs; a state of another key is not taken up.
    """

    path: Path
    key: object
    _last: int = field(default=0, init=False)
    _time: float = field(default_factory=time.monotonic, init=False)

    def found(self, device: torch.device | str = "cpu") -> dict[str, Any] | None:
        """The state that an earlier start left, its tensors on the device; None if there is none, or none of this."""
        try:
            head, _, body = self.path.read_bytes().partition(b"\n")
            note = json.loads(head)
            if note != {"key": json_sha(self.key), "sha": hashlib.sha256(body).hexdigest(), "done": note["done"]}:
                return None
            self._last = int(note["done"])
            state: dict[str, Any] = torch.load(io.BytesIO(body), map_location=device, weights_only=True)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError):
            return None
        return state

    def reached(self, done: int, total: int, state: Callable[[], dict[str, Any]]) -> None:
        """Save, if it is time to.

        Args:
            done: Parts that are done.
            total: Parts in all; the last one is not saved, for its result is.
            state: What to go on from: tensors, numbers, text, in lists and dicts.
        """
        now = time.monotonic()
        if done >= total or (done - self._last) * SHARE < total or now - self._time < SECONDS:
            return
        buffer = io.BytesIO()
        torch.save(state(), buffer)
        body = buffer.getvalue()
        head = {"key": json_sha(self.key), "sha": hashlib.sha256(body).hexdigest(), "done": done}
        with replacing(self.path) as tmp, tmp.open("wb") as file:
            file.write(json.dumps(head).encode() + b"\n")
            file.write(body)
        self._last, self._time = done, time.monotonic()

    def clear(self) -> None:
        """Its stage is at its end."""
        remove(self.path)
