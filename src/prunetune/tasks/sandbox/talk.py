"""The talk with a program in a jail: lines of the process that was started, and of nobody else."""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections.abc import Sequence

from prunetune.errors import TaskError
from prunetune.tasks.sandbox.jail import Jail, Limits

FRAME_BYTES = 16 << 20  # longest message of a program
CREDENTIALS = struct.Struct("iII")  # struct ucred: pid, uid, gid


def readable(fds: Sequence[int], seconds: float | None) -> list[int]:
    """Wait for some of these to have something to read, or to end. [] when the time is over."""
    waiting = select.poll()  # not `select`: a process that trains may have more than 1,024 files open
    for fd in fds:
        waiting.register(fd, select.POLLIN)
    return [fd for fd, _ in waiting.poll(None if seconds is None else max(1, seconds * 1000))]


class Ended(Exception):
    """A program ended, or must be ended. `reason` is None where its exit status tells why."""

    def __init__(self, reason: str | None) -> None:
        super().__init__(reason)
        self.reason = reason


class Dialogue:
    """Messages to and from a program, a line each, while its output is caught and its time is kept.

    Only the process that was started may speak: the kernel says who sent a message. So nothing that a child of it or a
    second program sends is taken for its answer, and the end of that process is the end of the talk.
    """

    def __init__(self, jail: Jail, limits: Limits) -> None:
        """A jail that talks, just started, whose output is caught."""
        if jail.channel is None or jail.process.stdout is None:
            raise TaskError("this jail does not talk")
        self._channel, self._limits = jail.channel, limits
        self._out: int | None = jail.process.stdout.fileno()
        self._deadline = None if limits.wall_seconds is None else time.monotonic() + limits.wall_seconds
        self._held, self._printed, self._speaker = b"", bytearray(), 0

    @property
    def output(self) -> str:
        """What it has printed, cut at the limit."""
        return self._printed[: self._limits.output_bytes].decode(errors="replace")

    def left(self) -> float | None:
        """Seconds to the end of its time. None: no limit. Raises Ended when there are none."""
        if self._deadline is None:
            return None
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise Ended(f"timed out after {self._limits.wall_seconds:g} s")
        return left

    def loaded(self) -> None:
        """Wait until its last line was reached. Raises Ended."""
        if self.receive() != b"hello" or self.receive() != b'{"loaded":true}':
            raise Ended("spoke out of turn")

    def send(self, line: bytes) -> None:
        """Send a line. Raises Ended."""
        self._channel.settimeout(self.left())
        try:
            self._channel.sendall(line)
        except TimeoutError:
            self.left()
        except OSError:
            self.drain()
            raise Ended(None) from None

    def receive(self) -> bytes:
        """Its next line. Raises Ended."""
        parts = [self._held]
        size = len(self._held)
        while b"\n" not in parts[-1]:
            if self._channel.fileno() in self._ready(self._channel.fileno()):
                part = self._part()
                if not part:
                    self.drain()
                    raise Ended(None)
                parts.append(part)
                size += len(part)
                if size > FRAME_BYTES:
                    raise Ended(f"gave back more than {FRAME_BYTES >> 20} MiB")
        line, _, self._held = b"".join(parts).partition(b"\n")
        return line

    def drain(self) -> None:
        """Catch its output to the end. Raises Ended at a limit."""
        while self._out is not None:
            self._ready()

    def _ready(self, *fds: int) -> list[int]:
        """Wait; catch what was printed; which of the others can be read."""
        watched = [*fds, *([] if self._out is None else [self._out])]
        ready = readable(watched, self.left())
        if self._out in ready:
            chunk = os.read(self._out, 1 << 16)
            self._printed += chunk
            if not chunk:
                self._out = None
            if len(self._printed) > self._limits.output_bytes:
                raise Ended(f"printed more than {self._limits.output_bytes} bytes")
        return [fd for fd in fds if fd in ready]

    def _part(self) -> bytes:
        try:
            part, control, _, _ = self._channel.recvmsg(1 << 16, socket.CMSG_SPACE(CREDENTIALS.size))
        except ConnectionError:
            return b""
        if part:
            pids = [CREDENTIALS.unpack(d)[0] for _, kind, d in control if kind == socket.SCM_CREDENTIALS]
            self._speaker = self._speaker or pids[0]  # the first to speak is still our own code
            if pids != [self._speaker]:
                raise Ended("another process spoke for it")
        return part
