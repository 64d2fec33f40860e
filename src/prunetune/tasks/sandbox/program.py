r"""Model-written Python, run so that it can harm nothing: own namespaces, an empty root, an unprivileged user, limits.

    outcome = run_program("def double(x): return 2 * x\nprint(double(2))", allowed=True)
    outcome.ok, outcome.reason, outcome.output

The program is process 2 of a PID namespace whose process 1 is ours (`confined/launcher.py`): when that one ends, for
whatever reason, the kernel ends all the rest. It sees the interpreter and the system's libraries, read-only, and one
small empty folder in memory; it has no network, no other user's processes, and limits on time, memory, files,
processes, output. Where the kernel or the container refuses namespaces, nothing is run (TaskError): a weaker cage would
be a false promise. That a program ran to its end is its own word; whether it is right is for `judge.py` to say.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunetune.errors import TaskError
from prunetune.tasks.sandbox.confined import runner
from prunetune.tasks.sandbox.jail import OVER_MEMORY, USUAL, Jail, Limits
from prunetune.tasks.sandbox.talk import Dialogue, Ended

__all__ = ["Jail", "Limits", "Outcome", "run_program", "why_not"]

PROGRAM = "/sandbox/program.py"
CONFINED = "/judge/confined"  # where the jail shows the package that runs inside it


@dataclass(frozen=True)
class Outcome:
    """How a program ended.

    Attributes:
        ok: It ran to its last line, as it says itself; of a judged program: every test is right.
        reason: Why not, in a few words ("" if ok).
        output: What it printed, both streams, cut at the limit.
        seconds: Wall time.
    """

    ok: bool
    reason: str
    output: str = field(repr=False)
    seconds: float


def run_program(program: str, *, allowed: bool, limits: Limits = USUAL) -> Outcome:
    """Run a Python program in the sandbox.

    `ok` means that its last line was reached: a program that ends itself early, with whatever exit code, has failed.
    No verdict may rest on it, since a program can lie about itself: `judge.judge_program` judges.

    Args:
        program: Source text.
        allowed: The user's explicit permission to run model-written code.
        limits: What it may use.

    Raises:
        TaskError: not allowed, or this machine cannot isolate it.
    """
    check_allowed(allowed)
    start = time.monotonic()
    with program_jail(program, limits) as jail:
        talk = Dialogue(jail, limits)
        loaded, why = False, None
        try:
            talk.loaded()
            loaded = True
            talk.send(b"{'end': True}\n")
            talk.drain()
        except Ended as e:
            why = e.reason
        status = jail.wait(kill=why is not None)
    ok = loaded and why is None and status == 0
    return Outcome(ok, "" if ok else why or reason_of(status, talk.output), talk.output, time.monotonic() - start)


def check_allowed(allowed: bool) -> None:
    """Raise TaskError without the user's permission."""
    if not allowed:
        raise TaskError(
            "model-written code runs only with your explicit permission",
            fix="--allow-code-execution (allow_code_execution: true)",
        )


def why_not() -> str | None:
    """Why this machine cannot isolate model-written code, or None if it can."""
    try:
        run_program("", allowed=True)
    except TaskError as e:
        return e.what
    return None


def program_jail(program: str, limits: Limits) -> Jail:
    """A jail, not yet started, in which a program runs and then answers over a channel (`confined/runner.py`)."""
    return confined_jail(
        "runner", f"{{channel}}, {PROGRAM!r}", files={PROGRAM: program}, limits=limits, output=True, talks=True
    )


def confined_jail(module: str, arguments: str = "", **options: Any) -> Jail:
    """A jail, not yet started, in which `main(arguments)` of a module of `confined` runs; `{channel}`: see `Jail`."""
    code = f"import sys; sys.path.insert(0, '/judge'); from confined.{module} import main; sys.path.pop(0); "
    python = os.path.realpath(sys.executable)
    folder = str(Path(runner.__file__).parent)
    argv = [python, "-I", "-B", "-c", f"{code}main({arguments})"]
    return Jail(argv, bound={CONFINED: folder}, **options)


def reason_of(status: int, output: str) -> str:
    """Why a program failed, from its exit status (as `Jail.wait` gives it) and what it printed."""
    if status == OVER_MEMORY:
        return "used more memory than it may, all its processes together"
    if status == -signal.SIGXCPU:
        return "used up its CPU time"
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    lines = [line for line in output.splitlines() if line.strip()]
    if status == 0:
        return "ended before its last line"
    return lines[-1][:200] if lines else f"exit status {status}"
