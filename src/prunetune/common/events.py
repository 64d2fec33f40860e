"""What happens in a run, a JSON line each, for whoever looks on: `RUN/events.jsonl`.

    journal = Journal.open(run / "events.jsonl")         # mends what a kill left half written
    journal.write(kind="run", state="started")
    with journal.action("score") as progress: progress(3, 8)     # a line a step, with the time left
    last_events(run / "events.jsonl")                    # the newest ones; a torn last line is left out

A line is one `write` to a file opened for appending, so that lines of several processes do not mix (POSIX, `write`).
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prunetune.common.disk import disk_errors
from prunetune.common.memory import used_bytes

EVENTS = "events.jsonl"
"""Its name in a run folder."""
TAIL = 1 << 17
"""Bytes of the end of the file that are read to tell where a run is."""
DENSE, SPARSE, MANY = 1.0, 10.0, 100
"""Seconds between two lines of one action: the first `MANY` lines, and the others."""

Progress = Callable[[int, int], None]


class Event(BaseModel):
    """A line of events.jsonl. What is not known is left out.

    Attributes:
        time: When, UTC.
        kind: `run` (started, ended), `step` (of an action), `stage` (a finished one was measured).
        stage: Folder of the round, `original`, or empty.
        action: What is done: `score`, `tune cpt`, `evaluate gsm8k`.
        step: Steps done of `of`.
        left: Seconds to the end of this action, from its own pace.
        loss: Training loss of the step, nats a token; of a stage the held-out loss.
        lr: Learning rate.
        tokens_per_s: Trained tokens a second since the action began, padding left out.
        memory: Bytes: highest memory of the GPU, or resident memory of the process.
        accuracy: Task -> share of right answers (or the task's own metric).
        params: Parameters of the stage's model.
        state: Of a run.
        why: Of a failure, the first line of its message; of a run that was stopped by an answer, which.
        pid: Process, on `host`.
        host: Name of the machine.
    """

    model_config = ConfigDict(frozen=True, extra="allow", ser_json_inf_nan="null")

    time: datetime = Field(default_factory=lambda: datetime.now(UTC))
    kind: Literal["run", "step", "stage"]
    stage: str = ""
    action: str = ""
    step: int | None = None
    of: int | None = None
    left: float | None = None
    loss: float | None = None
    lr: float | None = None
    tokens_per_s: float | None = None
    memory: int | None = None
    accuracy: dict[str, float] | None = None
    params: int | None = None
    state: Literal["started", "finished", "stopped", "failed"] | None = None
    why: str | None = None
    pid: int | None = None
    host: str | None = None


class Journal:
    """Appends events of one stage after another to a file."""

    def __init__(self, path: Path, stage: str = "") -> None:
        self.path, self.stage = path, stage

    @staticmethod
    def open(path: Path) -> Journal:
        """The journal of a run that is held; the half line that a kill or a full disk has left goes."""
        if path.is_file():
            with disk_errors(path), path.open("r+b") as f:
                f.truncate(_whole_bytes(f))
        return Journal(path)

    def write(self, **values: Any) -> None:
        """Append one event; `values` are fields of `Event`. NotWritable where the disk is full."""
        event = Event(**{"stage": self.stage, **values})
        line = event.model_dump_json(exclude_none=True).encode() + b"\n"
        with disk_errors(self.path):
            number = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                written = os.write(number, line)
                if written < len(line):  # a full disk: the next write says so
                    os.write(number, line[written:])
            finally:
                os.close(number)

    def started(self) -> None:
        """A process has begun to work on the run."""
        self.write(kind="run", state="started", pid=os.getpid(), host=socket.gethostname())

    @contextmanager
    def action(self, name: str) -> Iterator[Progress]:
        """A callback (done, total) for the steps of an action."""
        pace = Pace()

        def progress(done: int, total: int) -> None:
            if pace.due(done, total):
                left = pace.left(done, total)
                self.write(kind="step", action=name, step=done, of=total, left=left, memory=used_bytes())

        yield progress


class Pace:
    """When the next line of an action is due, and how long it will still take.

    Args:
        begun: Steps done before; None: those that the first call to `left` names, for what goes on where it was killed.
    """

    def __init__(self, begun: int | None = None) -> None:
        self.begun, self.start = begun, time.monotonic()
        self._last, self._lines = -float("inf"), 0

    @property
    def seconds(self) -> float:
        """Since the action began."""
        return time.monotonic() - self.start

    def due(self, done: int, total: int) -> bool:
        """Whether to write a line: of the first and the last step, and of others not too often."""
        now = time.monotonic()
        if done < total and now - self._last < (DENSE if self._lines < MANY else SPARSE):
            return False
        self._last, self._lines = now, self._lines + 1
        return True

    def left(self, done: int, total: int) -> float | None:
        """Seconds; None before a step was timed."""
        if self.begun is None:
            self.begun, self.start = done, time.monotonic()
        if done >= total:
            return 0.0
        return round(self.seconds / (done - self.begun) * (total - done), 1) if done > self.begun else None


def last_events(path: Path, most: int = TAIL) -> list[Event]:
    """The events in the last `most` bytes of a file, in order; none without a file. What is no event is left out."""
    try:
        with path.open("rb") as f:
            end = f.seek(0, os.SEEK_END)
            start = f.seek(max(0, end - most))
            data = f.read(most)
    except (FileNotFoundError, NotADirectoryError):
        return []
    lines = data.split(b"\n")[1 if start else 0 : -1]  # the last one is empty, or torn
    found = []
    for line in lines:
        try:
            found.append(Event.model_validate_json(line))
        except ValidationError:
            continue
    return found


def _whole_bytes(file: Any) -> int:
    """How many bytes of an open file are whole lines."""
    at = file.seek(0, os.SEEK_END)
    while at > 0:
        start = max(0, at - 4096)
        file.seek(start)
        cut = file.read(at - start).rfind(b"\n")
        if cut >= 0:
            return int(start + cut + 1)
        at = start
    return 0
