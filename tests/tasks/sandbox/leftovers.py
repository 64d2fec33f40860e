"""What a sandbox could leave behind on the machine: processes, System V objects, files in shared memory and temp folders."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

SYSV = [Path(f"/proc/sysvipc/{kind}") for kind in ("shm", "msg", "sem")]


def below(first: int) -> set[int]:
    """All living processes below one, by the kernel's list."""
    found: set[int] = set()
    waiting = [first]
    while waiting:
        try:
            tasks = list(Path(f"/proc/{waiting.pop()}/task").iterdir())
            pids = {int(p) for task in tasks for p in (task / "children").read_text().split()}
        except OSError:
            continue
        waiting += pids - found
        found |= pids
    return found


def strangers() -> set[int]:
    """Processes of users that only a sandbox uses, wherever they hang."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if 61184 <= entry.stat().st_uid <= 65519:
                found.add(int(entry.name))
        except OSError:
            continue
    return found


def abandoned() -> list[str]:
    """Control groups of launchers that have ended."""
    found = []
    for folder, below_it, _ in os.walk("/sys/fs/cgroup"):
        names = [n for n in below_it if n.startswith("prunetune-") and not Path("/proc", n.partition("-")[2]).exists()]
        found += [f"{folder}/{n}" for n in names]
    return sorted(f for f in found if Path(f).exists())  # another test's may have been removed meanwhile


def state() -> dict[str, object]:
    """Everything that must be the same before and after."""
    return {
        "shared memory, queues, semaphores": [p.read_text() for p in SYSV if p.exists()],
        "/dev/shm": sorted(p.name for p in Path("/dev/shm").iterdir()) if Path("/dev/shm").is_dir() else [],
        "temporary files": sorted(p.name for p in Path(tempfile.gettempdir()).iterdir() if "jail" in p.name),
        "mounts": [m for m in Path("/proc/self/mountinfo").read_text().splitlines() if "sandbox" in m],
        "control groups": abandoned(),
        "host name": os.uname().nodename,
    }


def processes() -> set[int]:
    """Of this test process: all that it has started and not ended."""
    return below(os.getpid())


def gone(pids: set[int], seconds: float = 5) -> bool:
    """Whether processes end within a time."""
    deadline = time.monotonic() + seconds
    while any(Path(f"/proc/{p}").exists() for p in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(Path(f"/proc/{p}").exists() for p in pids)
