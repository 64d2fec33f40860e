"""One of the processes that hold a model together; started by a launcher for `pool.Workers`, which says what to do.

The first process hears it on a connection (address and key in the environment) and passes it on; all work, each on its
share; the first one answers. When the asker is gone, so are they.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any

import torch

from prunetune.common.device import Processes
from prunetune.errors import PrunetuneError
from prunetune.evaluation.loss import losses_of
from prunetune.evaluation.spread import answered
from prunetune.loop.workers.pool import ADDRESS, Request, receive, send
from prunetune.models.folders import load_model
from prunetune.pruning.compensate import compensate
from prunetune.pruning.scores import score
from prunetune.tune.launch import MARK

PATIENCE = timedelta(days=30)
"""For which processes wait for another one: the asker may think about an answer for long."""


@dataclass
class Worker:
    """What one process has."""

    processes: Processes
    device: str
    folder: Path
    tell: Callable[[tuple[str, Any]], None]
    kept: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def model(self) -> Any:
        """The model, on this process's device."""
        return load_model(self.folder, device=self.device)

    def progress(self, done: int, total: int) -> None:
        """Tell how far the first process is: all have equally much to do."""
        self.tell(("progress", (done, total)))

    def score(self, **asked: Any) -> Iterator[Any]:
        """`Scores`; see `scores.score`."""
        yield score(self.model, **asked, progress=self.progress, processes=self.processes)

    def compensate(self, **asked: Any) -> Iterator[Any]:
        """`Patch`; see `compensate.compensate`. Layers are read from disk."""
        ways: dict[str, Any] = {"device": self.device, "progress": self.progress, "processes": self.processes}
        yield compensate(self.folder, **asked, **ways)

    def answers(self, **asked: Any) -> Iterator[Any]:
        """Answers, batch by batch; see `spread.answered`."""
        self.kept["tokenizer"] = asked.pop("tokenizer") or self.kept["tokenizer"]
        yield from answered(self.model, self.kept["tokenizer"], **asked, processes=self.processes)

    def losses(self, **asked: Any) -> Iterator[Any]:
        """Of every row its loss; see `loss.losses_of`."""
        yield losses_of(self.model, asked["rows"], "", self.processes)


def main() -> int:
    """Do what is asked until the asker has enough."""
    folder, device = Path(sys.argv[1]), sys.argv[2]
    processes, device = _joined(device)
    asker: Connection | None = None
    if processes.rank == 0:
        port, key = os.environ[ADDRESS].split(":")
        asker = Client(("127.0.0.1", int(port)), authkey=bytes.fromhex(key))

    def tell(message: tuple[str, Any]) -> None:
        if asker is not None:
            send(asker, message)

    worker = Worker(processes, device, folder, tell)
    try:
        while (request := processes.first(_heard(asker))) is not None:
            for part in getattr(worker, request.what)(**request.asked):
                tell(("part", part))
            tell(("end", None))
    except PrunetuneError as e:
        print(f"{MARK}{e}", file=sys.stderr, flush=True)
        os._exit(2)  # the others wait for this one: the launcher ends them
    torch.distributed.destroy_process_group()
    return 0


def _heard(asker: Connection | None) -> Request | None:
    """What is asked next; None: nothing more, or the asker is gone."""
    if asker is None:
        return None
    try:
        heard: Request | None = receive(asker)
    except (EOFError, OSError):
        return None
    return heard


def _joined(device: str) -> tuple[Processes, str]:
    """Which process of all it is, as accelerate sets them up, and its device."""
    from accelerate import PartialState

    state = PartialState(cpu=device == "cpu", timeout=PATIENCE)
    import torch.distributed as dist

    if not dist.is_initialized():  # a launcher of one process
        return Processes(), str(state.device)
    group = None if dist.get_backend() == "gloo" else dist.new_group(backend="gloo", timeout=PATIENCE)
    return Processes(state.process_index, state.num_processes, str(state.device), group), str(state.device)


if __name__ == "__main__":
    sys.exit(main())
