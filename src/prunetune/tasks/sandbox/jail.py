"""One confined process and its limits: started, spoken to, ended with all its descendants."""

from __future__ import annotations

import contextlib
import marshal
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prunetune.errors import TaskError

STOP_SECONDS = 20.0  # for a launcher to end all that it started
OVER_MEMORY = 213  # as in `confined/launcher.py`, which this process does not import
LAUNCH = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from confined.launcher import main; main()"


@dataclass(frozen=True)
class Limits:
    """What a program may use.

    Attributes:
        wall_seconds: From start to end. None: no limit.
        cpu_seconds: CPU time of each process. None: no limit.
        memory_bytes: Memory of all processes and of the files in the working folder together; address space of each.
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


USUAL = Limits()


class Jail:
    """One confined process: starts on entry, and is gone with all its descendants after `wait` or on exit."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        files: Mapping[str, str] | None = None,
        visible: Sequence[str] = (),
        bound: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
        limits: Limits = USUAL,
        output: bool = False,
        talks: bool = False,
    ) -> None:
        """Prepare.

        Args:
            argv: Program and arguments, in the jail's paths (which are the host's, where it sees them).
            files: Path below `/sandbox` -> text.
            visible: Further host folders that it may read.
            bound: Path in the jail -> host folder that it may read there.
            environment: Environment variables beyond `PATH`, `HOME` and `LANG`.
            limits: What it may use.
            output: Catch what it prints (both streams as one). Otherwise the caller gets stdin and stdout as pipes.
            talks: Give it a channel to `self.channel`. `{channel}` in its arguments stands for the number of its end.
        """
        self._argv = list(argv)
        self._request: dict[str, Any] = {
            "files": dict(files or {}),
            "visible": [sys.base_prefix, *visible],
            "bound": dict(bound or {}),
            "environment": dict(environment or {}),
            "limits": asdict(limits),
        }
        self._output, self._talks = output, talks
        self.channel: socket.socket | None = None
        self.process: subprocess.Popen[bytes]

    def __enter__(self) -> Jail:
        return self.start()

    def start(self) -> Jail:
        """Start the process. Raises TaskError if this machine cannot isolate it."""
        if not sys.platform.startswith("linux"):
            raise TaskError("running model-written code needs Linux namespaces", value=sys.platform, fix="use Linux")
        ready, ready_end = os.pipe()
        request, request_end = os.pipe()
        self.channel, channel_end = socket.socketpair() if self._talks else (None, None)
        if self.channel is not None:
            self.channel.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        channel = -1 if channel_end is None else channel_end.fileno()
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", LAUNCH, str(request), str(ready_end), str(channel)],
                stdin=subprocess.DEVNULL if self._output else subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT if self._output else subprocess.DEVNULL,
                bufsize=0,
                pass_fds=[fd for fd in (request, ready_end, channel) if fd >= 0],
                start_new_session=True,
                env={},
                cwd="/",
            )
        finally:
            os.close(ready_end)
            os.close(request)
            if channel_end is not None:
                channel_end.close()
        argv = [a.replace("{channel}", str(channel)) for a in self._argv]
        self._orders = os.fdopen(request_end, "wb", buffering=0)  # its end ends the jail
        with contextlib.suppress(BrokenPipeError):
            data = marshal.dumps({**self._request, "argv": argv, "caller": os.getpid()})
            while data:
                data = data[self._orders.write(data) :]
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
        """The exit status (minus a signal's number); `kill` ends the process first. Nothing runs any more after it."""
        if kill:
            self.stop()
        status = self.process.wait()
        self.stop()
        return status if status < 128 or status == OVER_MEMORY else 128 - status

    def stop(self) -> None:
        """End the process and everything it started."""
        with contextlib.suppress(BrokenPipeError, ValueError):  # it has ended; we have been here before
            self._orders.write(b"end")
        self._orders.close()
        try:  # the launcher ends when all the others have ended
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.channel):
            if pipe is not None:
                pipe.close()

    def __exit__(self, *_: object) -> None:
        self.stop()
