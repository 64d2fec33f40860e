"""A verifier that is not ours, watched while it judges: who is at work is said, and one that does not end is ended.

    verify = patient(task.verify, "judge.py:right", "mine")      # (problem, output) -> Verdict

Our own verifiers take time linear in an answer, or are graded in a process with a limit of its own (`sandbox/`). A
user's runs in this process, where it may keep what it likes between two calls. Counted is the CPU time of the thread
that calls it: a busy machine, other threads, or a wait for a process of the verifier's own take none of it.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from rich.markup import escape

from prunetune.common.progress import in_charge
from prunetune.errors import TaskError
from prunetune.tasks.problems import Problem
from prunetune.tasks.verifiers import Verdict

LIMIT = 60.0
"""Seconds of CPU for one answer: hundreds of answers are judged in each round."""
SOON = 10.0
"""Seconds after which it is said who is at work; of later answers only where one takes twice as long as was said."""
AGAIN = 1.0
"""CPU seconds until a verifier that catches what ends it is ended again."""

Verify = Callable[[Problem, str], Verdict]


class _OutOfTime(BaseException):
    """Raised inside a verifier; no Exception, which it may catch."""


class Patient:
    """A verifier that is watched.

    Attributes:
        verify: Judges an answer to a problem.
        verifier: Its name, as the recipe says it.
        task: Of the task.
    """

    def __init__(self, verify: Verify, verifier: str, task: str) -> None:
        self.verify, self.verifier, self.task = verify, verifier, task
        self._said = SOON

    def __call__(self, problem: Problem, output: str) -> Verdict:
        """Its verdict. TaskError if it does not end."""
        begun = time.monotonic()
        who = f"the verifier {self.verifier} of {self.task} is at work on row {problem.id}"
        try:
            with _told(who, self._said), _ended(LIMIT):
                return self.verify(problem, output)
        except _OutOfTime:
            raise TaskError(
                f"the verifier {self.verifier} of the task {self.task} does not end",
                value=f"row {problem.id}: an answer that ends in {output[-100:]!r}",
                valid=f"at most {LIMIT:g} s of CPU time for one answer",
                fix=f"mend {self.verifier.rpartition(':')[0] or self.verifier} (a loop, a pattern that backtracks), or "
                "let it ask a process of its own with a time-out; the same command then goes on",
            ) from None
        finally:
            while self._said < time.monotonic() - begun:
                self._said *= 2


def patient(verify: Verify, verifier: str, task: str) -> Verify:
    """A verifier that is watched; itself where it is already."""
    return verify if isinstance(verify, Patient) else Patient(verify, verifier, task)


@contextmanager
def _told(text: str, after: float) -> Iterator[None]:
    """Who is at work is said if this takes longer."""
    watch, since = in_charge(), f"for {after:g} s now (it is ended after {LIMIT:g} s of CPU time)"
    timer = threading.Timer(after, lambda: watch.line(f"  {escape(text)} {since}"))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def _ended(limit: float) -> Iterator[None]:
    """Raise _OutOfTime inside after so many CPU seconds of this thread; only the main one can be ended.

    The timer counts all threads, so it never comes too late; whether it comes too early this thread's clock tells.
    """
    mine = signal.getsignal(signal.SIGPROF) in (signal.SIG_DFL, signal.SIG_IGN)  # else a profiler's
    if threading.current_thread() is not threading.main_thread() or not mine:
        yield
        return
    inside, end = True, time.thread_time() + limit

    def over(number: int, frame: FrameType | None) -> None:
        if not inside:
            return
        left = end - time.thread_time()
        signal.setitimer(signal.ITIMER_PROF, max(left, AGAIN))
        if left <= 0:
            raise _OutOfTime

    before = signal.signal(signal.SIGPROF, over)
    try:
        signal.setitimer(signal.ITIMER_PROF, limit)
        yield
    finally:
        inside = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
