"""A model on several devices, as the process that asks sees it.

with workers(launcher, folder, device) as held:        # started at the first question
scores = held.score(batches=..., neuron_criterion="greedy")
evaluate(held, tokenizer, task, ...)               # as a model in this process
"""

from __future__ import annotations

import os
import pickle
import secrets
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from threading import Thread
from typing import IO, Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunetune.common.progress import Progress
from prunetune.errors import RecipeError, TuneError
from prunetune.evaluation.spread import Limits, Scored
from prunetune.models.folders import load_config, load_model
from prunetune.models.generation import Answer
from prunetune.pruning.compensate import compensate
from prunetune.pruning.patch import Patch
from prunetune.pruning.plan import PrunePlan
from prunetune.pruning.scores import Batch, score
from prunetune.pruning.tensors import Scores
from prunetune.tune.launch import command_of, end_all, last_words, shared_by

ADDRESS = "PRUNETUNE_WORKERS"
"""Environment variable: port and key of the asker."""


def send(to: Connection, message: object) -> None:
    """As plain bytes: `Connection.send` would share the memory of tensors, which only a process's children may see."""
    to.send_bytes(pickle.dumps(message))


def receive(of: Connection) -> Any:
    """What `send` was given. EOFError, OSError: the other end is gone. It is a process that we have started."""
    return pickle.loads(of.recv_bytes())  # noqa: S301 - from who knows the key


@dataclass(frozen=True)
class Request:
    """What all processes are to do: a method of `Worker`, and its arguments."""

    what: str
    asked: dict[str, Any]


class Workers:
    """Processes of a launcher that hold one model. They start when first asked, and end with `close`.

    Args:
        launcher: As a recipe has it.
        folder: Of the model.
        device: `cpu`, `cuda`.
    """

    def __init__(self, launcher: str, folder: Path, device: str) -> None:
        self.launcher, self.folder, self.device = launcher, folder, device
        self.config: Any = load_config(folder)
        self._running: _Running | None = None
        self._told: object = None  # the tokenizer that the processes have

    def score(self, progress: Progress | None = None, **asked: Any) -> Scores:
        """Scores; the arguments are those of `scores.score` but for model and progress."""
        (found,) = self._ask("score", progress, **asked)
        return found  # type: ignore[no-any-return]  # what `Worker.score` yields

    def compensate(self, progress: Progress | None = None, **asked: Any) -> Patch:
        """A patch; the arguments are those of `compensate.compensate` but for model, device and progress."""
        (found,) = self._ask("compensate", progress, **asked)
        return found  # type: ignore[no-any-return]  # what `Worker.compensate` yields

    def answers(
        self, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[list[int]], limits: Limits, size: int | None
    ) -> Iterator[list[Answer]]:
        """Greedy answers, batch by batch, in order; see `spread.answered`."""
        new = None if self._running and self._told is tokenizer else tokenizer
        self._told = tokenizer
        yield from self._ask("answers", tokenizer=new, prompts=list(prompts), limits=limits, size=size)

    def losses(self, rows: Sequence[Scored]) -> list[tuple[float, int]]:
        """Of each row its summed loss and count; see `loss.losses_of`."""
        (found,) = self._ask("losses", rows=list(rows))
        return found  # type: ignore[no-any-return]  # what `Worker.losses` yields

    def alone(self) -> PreTrainedModel:
        """The model in this process; the others have let go of it."""
        self.close()
        return load_model(self.folder, device=self.device)

    def close(self) -> None:
        """End the processes."""
        if self._running is not None:
            running, self._running = self._running, None
            running.close()

    def _ask(self, what: str, progress: Progress | None = None, **asked: Any) -> Iterator[Any]:
        if self._running is None:
            self._running = _Running(self.launcher, self.folder, self.device)
        yield from self._running.ask(Request(what, asked), progress)


@contextmanager
def held(folder: Path, device: str, launcher: str | None) -> Iterator[PreTrainedModel | Workers]:
    """A model that is to be asked: here, or in the processes of a launcher, if it starts several on this machine."""
    if (shared := shared_by(launcher)) is None:
        yield load_model(folder, device=device)
    else:
        with workers(shared, folder, device) as found:
            yield found


@contextmanager
def alone_or_held(
    folder: Path, device: str, launcher: str | None, *, offload: bool
) -> Iterator[PreTrainedModel | Workers | Offloaded]:
    """The same, or with `offload` a folder whose layers are read one by one: by one process."""
    if offload and shared_by(launcher):
        raise RecipeError(
            "layers are read from disk by one process", value=f"--offload --launcher {launcher!r}", fix="one of the two"
        )
    if offload:
        yield Offloaded(folder, device)
    else:
        with held(folder, device, launcher) as found:
            yield found


@dataclass(frozen=True)
class Offloaded:
    """A model's folder, whose layers are read one by one."""

    folder: Path
    device: str


def score_held(
    model: PreTrainedModel | Workers | Offloaded, progress: Progress, batches: Sequence[Batch], **asked: Any
) -> Scores:
    """`scores.score` of a model, wherever it is held."""
    if isinstance(model, Workers):
        return model.score(progress, batches=batches, **asked)
    if isinstance(model, Offloaded):
        return score(model.folder, batches, **asked, device=model.device, progress=progress)
    return score(model, batches, **asked, progress=progress)


def fold_folder(
    folder: Path, device: str, launcher: str | None, progress: Progress, plan: PrunePlan, **asked: Any
) -> Patch:
    """`compensate.compensate` of a model's folder: here, or in the processes of a launcher."""
    if (shared := shared_by(launcher)) is None:
        return compensate(folder, plan, **asked, device=device, progress=progress)
    with workers(shared, folder, device) as found:
        return found.compensate(progress, plan=plan, **asked)


@contextmanager
def workers(launcher: str, folder: Path, device: str) -> Iterator[Workers]:
    """`Workers` that end with the block."""
    held = Workers(launcher, folder, device)
    try:
        yield held
    finally:
        held.close()


class _Running:
    """The processes, and the connection to the first of them."""

    def __init__(self, launcher: str, folder: Path, device: str) -> None:
        command, given = command_of(launcher, "prunetune.loop.workers", str(folder), device)
        self.log: IO[str] = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - while they run
        key = secrets.token_bytes(16)
        with Listener(("127.0.0.1", 0), authkey=key) as listener:
            port = listener.address[1]
            environment = {**os.environ, **given, ADDRESS: f"{port}:{key.hex()}", "PYTHONUNBUFFERED": "1"}
            self.child = subprocess.Popen(
                command,
                stdout=self.log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                text=True,
                env=environment,
                start_new_session=True,
            )
            Thread(target=self._watch, args=(port, key), daemon=True).start()
            try:
                self.asked: Connection = listener.accept()
            except BaseException:
                self.end()
                raise

    def _watch(self, port: int, key: bytes) -> None:
        """Where the launcher ends before its processes have called, call in their place, and hang up."""
        self.child.wait()
        with suppress(OSError, EOFError):
            Client(("127.0.0.1", port), authkey=key).close()

    def ask(self, request: Request, progress: Progress | None) -> Iterator[Any]:
        """What the processes answer, part by part."""
        try:
            send(self.asked, request)
            while (message := receive(self.asked))[0] != "end":
                if message[0] == "part":
                    yield message[1]
                elif progress is not None:
                    progress(*message[1])
        except (EOFError, OSError) as e:
            end_all(self.child)
            self.log.seek(0)
            said = last_words(self.log.read())
            self.end()
            raise TuneError(
                f"a process that was to work at `{request.what}` failed: {said}",
                value=" ".join(map(str, self.child.args)),  # type: ignore[arg-type]  # a list of texts
                fix="the same command goes on from what is done; without `launcher` it runs in this process",
            ) from e
        except BaseException:  # Ctrl-C, or whoever asks has failed: nothing is as it should be in the middle
            self.end()
            raise

    def close(self) -> None:
        """Let the processes end by themselves, for a while."""
        with suppress(OSError):
            send(self.asked, None)
        with suppress(subprocess.TimeoutExpired):
            self.child.wait(timeout=GRACE)
        self.end()

    def end(self) -> None:
        """End whatever is left of them."""
        end_all(self.child)
        self.child.wait()
        self.log.close()


GRACE = 10.0
"""Seconds for processes to end once they are told to."""
