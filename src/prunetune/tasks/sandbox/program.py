r"""Model-written Python, run so that it can harm nothing: own namespaces, an empty root, an unprivileged user, limits.

    outcome = run_program("def double(x): return 2 * x\nassert double(2) == 4", allowed=True)
    outcome.ok, outcome.reason

The program is process 2 of a PID namespace whose process 1 is ours (`jail.py`): when that one ends, for whatever
reason, the kernel ends all the rest. It sees the interpreter and the system's libraries, read-only, and one small empty
folder in memory; it has no network, no other user's processes, and limits on time, memory, files, processes, output.
Where the kernel or the container refuses namespaces, nothing is run (TaskError): a weaker cage would be a false
promise.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from prunetune.errors import TaskError

PROGRAM = "/sandbox/program.py"


@dataclass(frozen=True)
class Limits:
    """What a program may use.

    Attributes:
        wall_seconds: From start to end. None: no limit.
        cpu_seconds: CPU time of each process. None: no limit.
        memory_bytes: Address space of each process.
        file_bytes: Size of one file; the working folder holds four times as much.
        processes: Processes and threads at any time.
        open_files: File descriptors of each process.
        output_bytes: What it may print.
    """

    wall_seconds: float | None = 10.0
    cpu_seconds: int | None = 5
    memory_bytes: int = 512 << 20
    file_bytes: int = 8 << 20
    processes: int = 8
    open_files: int = 64
    output_bytes: int = 64 << 10


@dataclass(frozen=True)
class Outcome:
    """How a program ended.

    Attributes:
        ok: It ran to its last line.
        reason: Why not, in a few words ("" if ok).
        output: What it printed, both streams, cut at the limit.
        seconds: Wall time.
    """

    ok: bool
    reason: str
    output: str = field(repr=False)
    seconds: float


def run_program(program: str, *, allowed: bool, limits: Limits = Limits()) -> Outcome:
    """Run a Python program in the sandbox.

    `ok` means that its last line was reached: a program that ends itself early, with whatever exit code, has failed.

    Args:
        program: Source text.
        allowed: The user's explicit permission to run model-written code.
        limits: What it may use.

    Raises:
        TaskError: not allowed, or this machine cannot isolate it.
    """
    if not allowed:
        raise TaskError(
            "model-written code runs only with your explicit permission",
            fix="--allow-code-execution (allow_code_execution: true)",
        )
    token = secrets.token_hex(16)
    ending = f"\nimport sys as _sys\n_sys.stdout.write('\\n{token}\\n')\n_sys.stdout.flush()\n"
    python = os.path.realpath(sys.executable)
    start = time.monotonic()
    with Jail([python, "-I", "-B", PROGRAM], files={PROGRAM: program + ending}, limits=limits, output=True) as jail:
        output, why = _read(jail, limits)
        status = jail.wait(kill=why is not None)
    text, found, _ = output.partition(f"\n{token}\n")
    ok = why is None and status == 0 and bool(found)
    return Outcome(ok, "" if ok else why or _reason(status, text), text, time.monotonic() - start)


def why_not() -> str | None:
    """Why this machine cannot isolate model-written code, or None if it can."""
    try:
        run_program("", allowed=True)
    except TaskError as e:
        return e.what
    return None


class Jail:
    """One confined process: starts on entry, and is gone with all its descendants after `wait` or on exit."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        files: Mapping[str, str] | None = None,
        visible: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        limits: Limits = Limits(),
        output: bool = False,
    ) -> None:
        """Prepare.

        Args:
            argv: Program and arguments, in the jail's paths (which are the host's, where it sees them).
            files: Path below `/sandbox` -> text.
            visible: Further host folders that it may read.
            environment: Environment variables beyond `PATH`, `HOME` and `LANG`.
            limits: What it may use.
            output: Catch what it prints (both streams as one). Otherwise the caller gets stdin and stdout as pipes.
        """
        self._request = {
            "argv": list(argv),
            "files": dict(files or {}),
            "visible": [sys.base_prefix, *visible],
            "environment": dict(environment or {}),
            "limits": asdict(limits),
        }
        self._output = output
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self.process: subprocess.Popen[bytes]

    def __enter__(self) -> Jail:
        return self.start()

    def start(self) -> Jail:
        """Start the process. Raises TaskError if this machine cannot isolate it."""
        if not sys.platform.startswith("linux"):
            raise TaskError("running model-written code needs Linux namespaces", value=sys.platform, fix="use Linux")
        self._folder = tempfile.TemporaryDirectory(prefix="prunetune-jail-")
        ready, ready_end = os.pipe()
        request, request_end = os.pipe()
        script = str(Path(__file__).with_name("jail.py"))
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", script, self._folder.name, str(request), str(ready_end)],
                stdin=subprocess.DEVNULL if self._output else subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT if self._output else subprocess.DEVNULL,
                bufsize=0,
                pass_fds=(request, ready_end),
                start_new_session=True,
                env={},
                cwd="/",
            )
        finally:
            os.close(ready_end)
            os.close(request)
        with contextlib.suppress(BrokenPipeError), os.fdopen(request_end, "wb") as f:
            f.write(json.dumps(self._request).encode())
        with os.fdopen(ready, "rb") as f:
            said = f.read().decode(errors="replace")
        if said != "ready":
            self.stop()
            raise TaskError(
                f"this machine cannot isolate model-written code ({said.strip() or 'no answer'})",
                fix="allow namespaces: user.max_user_namespaces > 0, kernel.apparmor_restrict_unprivileged_userns=0; "
                "or docker run --cap-add SYS_ADMIN --security-opt apparmor=unconfined",
            )
        return self

    def wait(self, kill: bool) -> int:
        """The exit status (minus a signal's number); `kill` ends the process first."""
        if kill:
            self.process.kill()
        status = self.process.wait()
        self.stop()
        return status if status < 128 else 128 - status

    def stop(self) -> None:
        """End the process and everything it started; remove the (empty) folder that its root was mounted on."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def __exit__(self, *_: object) -> None:
        self.stop()


def _read(jail: Jail, limits: Limits) -> tuple[str, str | None]:
    """All output, and why the program must be ended (None: it ended by itself)."""
    if jail.process.stdout is None:
        raise TaskError("this jail's output is not caught")
    fd, held, size = jail.process.stdout.fileno(), [], 0
    deadline = None if limits.wall_seconds is None else time.monotonic() + limits.wall_seconds
    why = None
    while True:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            why = f"timed out after {limits.wall_seconds:g} s"
            break
        if not select.select([fd], [], [], left)[0]:
            continue
        chunk = os.read(fd, 1 << 16)
        if not chunk:
            break
        held.append(chunk)
        size += len(chunk)
        if size > limits.output_bytes:
            why = f"printed more than {limits.output_bytes} bytes"
            break
    return b"".join(held)[: limits.output_bytes].decode(errors="replace"), why


def _reason(status: int, output: str) -> str:
    if status == -signal.SIGXCPU:
        return "used up its CPU time"
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    lines = [line for line in output.splitlines() if line.strip()]
    if status == 0:
        return "ended before its last line"
    return lines[-1][:200] if lines else f"exit status {status}"
