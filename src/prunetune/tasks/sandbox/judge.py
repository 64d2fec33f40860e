r"""Is a model-written program right? Its tests run in another process, which it can neither see nor reach.

    judge_program("def double(x): return 2 * x", tests=["assert double(2) == 4"], allowed=True).ok

    caller (here)  ──  a judge: the tests, in their own jail, a fresh process for each program (`confined/asserts.py`)
          └──────────  the program, in another jail (`confined/runner.py`)

The judge asks for calls, the program answers with plain data, and this process carries the messages: it believes only
the process that it started. `docs/sandbox.md` says what that protects from, and what not.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator, Sequence

from prunetune.tasks.sandbox.jail import USUAL, Jail, Limits
from prunetune.tasks.sandbox.program import Outcome, check_allowed, confined_jail, program_jail, reason_of
from prunetune.tasks.sandbox.talk import Dialogue, Ended, readable

JUDGING = Limits(wall_seconds=None, cpu_seconds=None, memory_bytes=1 << 30)
PATIENCE = 30.0  # seconds for a judge to say something, on the slowest machine


def judge_program(
    program: str, *, tests: Sequence[str], setup: str = "", allowed: bool, limits: Limits = USUAL
) -> Outcome:
    """Run a program, then the tests against it; `ok` if every test is right.

    A test is Python that raises where the program is wrong, as `assert f(2) == 4`. It runs outside the program: what it
    compares with never enters the program's process, and what the program gives back is rebuilt from plain data.

    Args:
        program: Source text.
        tests: Test code, piece after piece in one name space.
        setup: Code to run before them, in theirs.
        allowed: The user's explicit permission to run model-written code.
        limits: What the program may use.

    Raises:
        TaskError: not allowed, or this machine cannot isolate it.
    """
    check_allowed(allowed)
    job = json.dumps({"setup": setup, "tests": list(tests)}).encode() + b"\n"
    outcome, whole = _run(program, job, limits)
    return outcome if whole else _run(program, job, limits)[0]


def _run(program: str, job: bytes, limits: Limits) -> tuple[Outcome, bool]:
    """How a program fared, and whether the judge lived to say so."""
    start = time.monotonic()
    with _borrowed_judge() as judge, program_jail(program, limits) as jail:
        talk = Dialogue(jail, limits)
        try:
            why = _judged(talk, judge, job)
        except Ended as e:
            why = e.reason or reason_of(jail.wait(kill=False), talk.output)
        return Outcome(why == "", why, talk.output, time.monotonic() - start), judge.alive()


def _judged(talk: Dialogue, judge: Judge, job: bytes) -> str:
    """Why the program is wrong, "" if it is right."""
    judge.send(job)
    try:
        talk.loaded()
        while True:
            line = judge.receive()
            if line.startswith(b"="):
                said = json.loads(line[1:])
                return "" if said["right"] is True else str(said["reason"]) or "wrong"
            talk.send(line[1:] + b"\n")
            judge.send(b"+" + talk.receive() + b"\n")
    except Ended:
        judge.abandon()
        raise


class Judge:
    """A judging server: one job at a time, each in a fresh process of it."""

    def __init__(self) -> None:
        """Start it. Raises TaskError where it cannot be isolated."""
        self._jail: Jail = confined_jail("asserts", limits=JUDGING).start()
        self._owner = os.getpid()
        self._held = b""
        self.receive()

    def alive(self) -> bool:
        """Whether it can take a job from this process."""
        return self._owner == os.getpid() and self._jail.process.poll() is None

    def send(self, line: bytes) -> None:
        """Send a line. Raises Ended."""
        pipe = self._jail.process.stdin
        while pipe is not None and line:
            try:
                line = line[pipe.write(line) :]
            except BrokenPipeError:
                raise Ended("the judge ended") from None

    def receive(self) -> bytes:
        """Its next line. Raises Ended, and ends it, if there is none."""
        pipe = self._jail.process.stdout
        while pipe is not None and b"\n" not in self._held:
            part = os.read(pipe.fileno(), 1 << 16) if readable([pipe.fileno()], PATIENCE) else b""
            if not part:
                self.close()
                raise Ended("the judge ended")
            self._held += part
        line, _, self._held = self._held.partition(b"\n")
        return line

    def abandon(self) -> None:
        """The program is gone: let this job end, whatever it says."""
        with contextlib.suppress(Ended):
            self.send(b"-\n")
            while not self.receive().startswith(b"="):
                continue

    def close(self) -> None:
        """End it."""
        if self._owner == os.getpid():
            self._jail.stop()


_idle: list[Judge] = []
_lock = threading.Lock()


@contextlib.contextmanager
def _borrowed_judge() -> Iterator[Judge]:
    """A judge for one job: an idle one, or a new one. It stays for the next job."""
    judge = None
    while judge is None:
        with _lock:
            found = _idle.pop() if _idle else None
        if found is None:
            judge = Judge()
        elif found.alive():
            judge = found
        else:
            found.close()
    try:
        yield judge
    finally:
        with _lock:
            _idle.append(judge)


@atexit.register
def close_judges() -> None:
    """End all idle judges."""
    with _lock:
        judges = list(_idle)
        _idle.clear()
    for judge in judges:
        judge.close()
