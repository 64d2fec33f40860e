"""Where a run is, for whoever looks on: running, stopped, finished or failed; its size, accuracy, last step.

    state_of(Path("runs/math")).state            # "running"
    for path in find_runs(Path("runs")): ...

Read from the records, the newest events and the run's lock; nothing is written. A run of version 0.1 has no events: it
says what its records say.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from prunetune.common.events import EVENTS, Event, last_events
from prunetune.common.files import mark_of
from prunetune.common.outputs import is_held
from prunetune.errors import MissingPath, PrunetuneError
from prunetune.runs.ours import is_run
from prunetune.runs.reading import RunRecord, read_run
from prunetune.runs.records import StageRecord

DEEP = 3
"""Folders below the one that is named, in which runs are looked for."""
State = Literal["running", "stopped", "finished", "failed"]


@dataclass(frozen=True)
class RunState:
    """A run as it stands.

    Attributes:
        path: The run folder.
        state: `stopped`: by a signal, or killed; the same command goes on.
        events: The newest, in order.
        record: What is recorded; None before the original is measured, or where a record cannot be read.
        why: Of a failure, of an answer that stopped it, or of a record that cannot be read.
    """

    path: Path
    state: State
    events: tuple[Event, ...] = ()
    record: RunRecord | None = None
    why: str = ""

    @property
    def newest(self) -> StageRecord | None:
        """The stage whose model is the current one."""
        if self.record is None:
            return None
        return self.record.final or self.record.original

    @property
    def ratio(self) -> float | None:
        """Parameters of the current model over the original's."""
        first = self.record.original if self.record else None
        if first is None or self.newest is None or not first.params or self.newest.params is None:
            return None
        return self.newest.params / first.params

    @cached_property
    def last(self) -> Event | None:
        """The last step of an action."""
        return next((e for e in reversed(self.events) if e.kind == "step"), None)

    @property
    def rungs(self) -> list[str]:
        """The folders of the rungs that are finished models, the largest first."""
        made = (p.name for p in self.path.glob("final-*") if (p / "config.json").is_file())
        return sorted(made, reverse=True)

    def where(self) -> str:
        """What is done now, or was last done: `02-width-64, tune cpt, step 120 of 400`."""
        if self.last is not None:
            parts = (self.last.stage, self.last.action, f"step {self.last.step} of {self.last.of}")
            return ", ".join(p for p in parts if p)
        return f"after {self.newest.name}" if self.newest else "before the first measurement"

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        newest = self.newest
        return {
            "run": str(self.path),
            "state": self.state,
            "params": newest.params if newest else None,
            "params_ratio": self.ratio,
            "accuracy": {e.task: e.value for e in newest.evals} if newest else {},
            "rungs": self.rungs,
            "rounds": len(self.record.accepted) if self.record else 0,
            "where": self.where(),
            "left": self.last.left if self.last and self.state == "running" else None,
            "why": self.why,
        }


def state_of(path: Path) -> RunState:
    """Where a run is. MissingPath if the folder is none."""
    if not _is_run(path):
        raise MissingPath("this is no run folder", value=str(path), fix="pass the folder of `prunetune run --out`")
    events, record, why = tuple(last_events(path / EVENTS)), None, ""
    try:
        record = read_run(path)
    except MissingPath:
        pass  # nothing is measured yet
    except PrunetuneError as e:
        why = e.what
    ended = next((e for e in reversed(events) if e.kind == "run"), None)
    state: State = "stopped"
    if is_held(path / ".lock"):
        state = "running"
    elif ended is not None and ended.state in ("failed", "stopped"):
        state, why = ended.state, ended.why or why
    elif record is not None and record.finished and (ended is None or ended.state == "finished"):
        state = "finished"
    return RunState(path, state, events, record, why)


def _is_run(path: Path) -> bool:
    if not path.is_dir():
        return False
    return ((path / ".prunetune").is_file() and mark_of(path) == "run") or is_run(path)


def find_runs(folder: Path) -> list[Path]:
    """The run folders in a folder, or the folder itself if it is one; controls belong to their runs. MissingPath."""
    if not folder.is_dir():
        raise MissingPath("no such folder", value=str(folder), fix="check the path")
    return sorted(_below(folder, DEEP))


def _below(folder: Path, deep: int) -> list[Path]:
    if _is_run(folder):
        return [folder]
    if not deep:
        return []
    try:
        inner = [Path(e.path) for e in os.scandir(folder) if e.is_dir(follow_symlinks=False) and e.name[0] != "."]
    except PermissionError:
        return []
    return [run for each in inner for run in _below(each, deep - 1)]
