r"""Fragile graders (math-verify, reasoning-gym's scorers) in a process of their own, limited in CPU time and memory.

A model's answer can be `9^{9^{9^9}}`: symbolic algebra then computes for ever, in C, where no exception reaches it. A
server process imports the libraries once and forks a child that grades; a child that uses up its CPU time for one
answer is ended by the kernel (SIGPROF) and the server forks the next one. Works from any thread, and on a busy machine.
Of an answer, math-verify evaluates digits and operators alone (`tests/tasks/sandbox/test_grader.py` holds it to that).

    grader("math").ask({"output": "… \\boxed{1/2}", "reference": "0.5"})  # -> {"correct": True, "extracted": "1/2"}
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from prunetune.errors import TaskError
from prunetune.tasks.sandbox import gym
from prunetune.tasks.sandbox.jail import Jail, Limits
from prunetune.tasks.sandbox.talk import readable

CPU_SECONDS = 0.8  # for one answer
MEMORY_BYTES = 6 << 30
WALL_SECONDS = 60.0  # on the slowest machine; the CPU limit ends an answer long before

Reply = dict[str, Any]


class Grader:
    """The caller's end of one grading server. Starts it at the first question and again after a crash."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._lock = threading.Lock()
        self._server: subprocess.Popen[bytes] | None = None
        self._jail: Jail | None = None
        self._owner = 0

    def ask(self, job: dict[str, Any]) -> Reply:
        """Grade one answer: the reply of the grader with its `cpu_seconds`, or `{"error": why, …}` where it failed."""
        with self._lock:
            for _ in range(2):
                if self._server is None or self._server.poll() is not None or self._owner != os.getpid():
                    self._start()
                self._send(json.dumps(job).encode() + b"\n")
                reply = self._receive()
                if "begun" in reply:
                    reply = self._receive()
                    died = {"error": reply.get("died"), "cpu_seconds": CPU_SECONDS}
                    return died if "died" in reply else reply
                self.close()  # a child that somebody killed while idle may or may not have taken the job with it
            return {"error": "the grader ended"}

    def close(self) -> None:
        """End the server."""
        if self._server is not None and self._owner == os.getpid():
            for pipe in (self._server.stdin, self._server.stdout):
                if pipe is not None:
                    pipe.close()
            if self._jail is not None:
                self._jail.stop()
            else:
                self._server.kill()
                self._server.wait()
        self._server = self._jail = None

    def _start(self) -> None:
        self.close()
        code = f"from prunetune.tasks.sandbox.grader import serve; serve({self.kind!r})"
        if self.kind in JAILED:
            paths = [p for p in sys.path if Path(p).is_dir()]
            self._jail = Jail(
                [os.path.realpath(sys.executable), "-B", "-c", code],
                visible=paths,
                environment={"PYTHONPATH": os.pathsep.join(paths)},
                limits=Limits(wall_seconds=None, cpu_seconds=None, memory_bytes=MEMORY_BYTES),
            ).start()
            self._server = self._jail.process
        else:
            pipe = subprocess.PIPE
            self._server = subprocess.Popen(  # bufsize 0: `readable` must see every line that has come
                [sys.executable, "-c", code], stdin=pipe, stdout=pipe, bufsize=0, start_new_session=True
            )
        self._owner = os.getpid()
        if "error" in self._receive():
            raise TaskError(f"the grader {self.kind!r} does not start", fix="is the package installed whole?")

    def _send(self, line: bytes) -> None:
        if self._server is None or self._server.stdin is None:
            raise TaskError("the grader is not running", value=self.kind)
        while line:
            line = line[self._server.stdin.write(line) :]

    def _receive(self) -> Reply:
        if self._server is None or self._server.stdout is None:
            raise TaskError("the grader is not running", value=self.kind)
        out = self._server.stdout
        line = out.readline() if readable([out.fileno()], WALL_SECONDS) else b""
        if line:
            reply: Reply = json.loads(line)
            return reply
        self.close()
        return {"error": "the grader ended"}


@functools.cache
def grader(kind: str) -> Grader:
    """The grader of a kind of `SERVED` in this process; it ends with the process."""
    found = Grader(kind)
    atexit.register(found.close)
    return found


# ------------------------------------------------------------------------------------------------------- server side


def serve(kind: str) -> None:
    """Server: import once, then keep one grading child alive until the caller goes."""
    import resource

    prepare, grade = SERVED[kind]
    out = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # whatever a library prints must not look like a reply
    context = prepare()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    os.write(out, b"{}\n")
    if kind in JAILED:
        _serve_fresh(grade, context, out)
    while True:
        child = os.fork()
        if child == 0:
            _grade_all(grade, context, out, _lines(0))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):  # the caller closed its end (0), or a bug of ours (its traceback is on stderr)
            os._exit(os.WEXITSTATUS(status))
        _tell_death(status, out)


def _serve_fresh(grade: Callable[[Any, dict[str, Any]], Reply], context: Any, out: int) -> NoReturn:
    """One child an answer: whatever an answer could do there, it is over with that child."""
    for line in _lines(0):
        with contextlib.suppress(Exception):  # the child will meet the same, and say so
            gym.warm(context, json.loads(line))
        child = os.fork()
        if child == 0:
            _grade_all(grade, context, out, [line])
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status != 0:
            _tell_death(status, out)
    os._exit(0)


def _tell_death(status: int, out: int) -> None:
    number = os.WTERMSIG(status)
    why = "timed out" if number == signal.SIGPROF else f"killed by signal {number}"
    os.write(out, json.dumps({"died": why}).encode() + b"\n")


def _grade_all(grade: Callable[[Any, dict[str, Any]], Reply], context: Any, out: int, lines: Iterable[bytes]) -> None:
    for line in lines:
        os.write(out, b'{"begun": true}\n')
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # SIGPROF's default action ends the process
        try:
            reply = grade(context, json.loads(line))
        except (
            Exception,
            RecursionError,
            MemoryError,
        ) as e:  # a grader's own bug is this answer's verdict, not our end
            reply = {"error": f"{type(e).__name__}: {str(e)[:200]}"}
        left, _ = signal.setitimer(signal.ITIMER_PROF, 0)
        reply["cpu_seconds"] = CPU_SECONDS - left
        os.write(out, json.dumps(reply).encode() + b"\n")


def _lines(fd: int) -> Iterator[bytes]:
    held = b""
    while chunk := os.read(fd, 1 << 16):
        held += chunk
        *whole, held = held.split(b"\n")
        yield from whole


def _prepare_math() -> Any:
    import logging

    import math_verify

    logging.disable(logging.CRITICAL)  # it reports every answer that it cannot read

    math_verify.verify(math_verify.parse(r"\boxed{\frac{1}{2}}"), math_verify.parse("0.5"))
    return math_verify


def _grade_math(math_verify: Any, job: dict[str, Any]) -> Reply:
    off = {"parsing_timeout": None}
    reference = job["reference"]
    gold = math_verify.parse(reference if "\\boxed" in reference else f"\\boxed{{{reference}}}", **off)
    found = math_verify.parse(job["output"], **off)
    correct = bool(gold and found) and math_verify.verify(gold, found, timeout_seconds=None)
    return {"correct": correct, "extracted": str(found[-1]) if found else None, "gold": bool(gold)}


SERVED: dict[str, tuple[Callable[[], Any], Callable[[Any, dict[str, Any]], Reply]]] = {
    "math": (_prepare_math, _grade_math),
    "gym": (gym.prepare, gym.grade),
    "gym-code": (gym.prepare, gym.grade),
}
JAILED = frozenset({"gym-code"})  # scorers that evaluate: in a jail, and in a fresh process for each answer
