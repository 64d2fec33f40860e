"""A command of ours that is really killed (SIGKILL) once it has written so much: no handler, no clean-up."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path


def killed_after(args: list[str], file: Path, *, lines: int, seconds: float = 240.0) -> None:
    """Start `prunetune ARGS`, kill it when `file` holds `lines` lines, and see that it was still at work."""
    child = subprocess.Popen(
        [sys.executable, "-m", "prunetune", *args], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + seconds
    while child.poll() is None and time.monotonic() < deadline:
        if file.is_file() and file.read_bytes().count(b"\n") >= lines:
            break
        time.sleep(0.02)
    child.kill()
    _, said = child.communicate()
    assert child.returncode == -signal.SIGKILL, said
