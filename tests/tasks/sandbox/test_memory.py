"""Memory of all processes of a program together, of whatever kind: within 1.2 times the limit, and gone after it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.tasks.sandbox import leftovers

from prunetune.tasks.sandbox import jail
from prunetune.tasks.sandbox.confined.group import places
from prunetune.tasks.sandbox.program import Limits, Outcome, run_program, why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

LIMIT = 192 << 20
LIMITS = Limits(wall_seconds=6, cpu_seconds=4, memory_bytes=LIMIT, processes=16, file_bytes=2 << 20)
CALLS = """
import ctypes, mmap, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = libc.mmap.restype = ctypes.c_void_p
libc.shmat.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.shmdt.argtypes = [ctypes.c_void_p]
M = 16 << 20
"""

ATTACKS = {
    "twelve processes": "for _ in range(11):\n    if os.fork() == 0: break\nx = bytearray(60 << 20)\ntime.sleep(3)\nprint('HELD')",
    "processes that leave their parents": "for _ in range(40):\n    try:\n        if os.fork() == 0:\n            if os.fork() == 0:\n"
    "                os.setsid(); x = bytearray(60 << 20); time.sleep(3); print('HELD')\n            os._exit(0)\n    except OSError: break\ntime.sleep(4)",
    "a process that forks away from every look": "x = bytearray(60 << 20)\nfor i in range(200):\n"
    "    if os.fork(): x[::4096] = b'1' * len(x[::4096]); time.sleep(0.5); os._exit(0)\n    x[::4096] = b'1' * len(x[::4096])\nprint('HELD')",
    "children of threads": "import threading\ndef go():\n    if os.fork() == 0:\n        x = bytearray(60 << 20); time.sleep(3); print('HELD'); os._exit(0)\n"
    "    time.sleep(4)\nfor _ in range(5): threading.Thread(target=go).start()",
    "read-only pages of many processes": "for _ in range(11):\n    if os.fork() == 0: break\n"
    "p = libc.mmap(None, 60 << 20, 3, 0x22, -1, 0)\nlibc.memset(p, 1, 60 << 20)\n"
    "libc.mprotect(ctypes.c_void_p(p), ctypes.c_size_t(60 << 20), 1)\ntime.sleep(3)\nprint('HELD')",
    "System V shared memory": "for i in range(40):\n    n = libc.shmget(0, M, 0o1600)\n    if n < 0: sys.exit('refused')\n"
    "    p = libc.shmat(n, None, 0)\n    libc.memset(p, 1, M); libc.shmdt(p)\nprint('HELD')",
    "System V shared memory of a child": "for i in range(40):\n    if os.fork() == 0:\n        n = libc.shmget(i + 1, M, 0o1600)\n"
    "        if n >= 0:\n            p = libc.shmat(n, None, 0); libc.memset(p, 1, M); print('HELD')\n        os._exit(0)\n    os.wait()",
    "memfds": "fds = []\nfor i in range(40):\n    fd = os.memfd_create('x')\n    os.ftruncate(fd, 1 << 20)\n    os.write(fd, bytes(1 << 20))\n"
    "    fds.append(fd)\nprint('HELD')",
    "memfds by number": "import platform\nn = {'x86_64': 319, 'aarch64': 279}[platform.machine()]\nif libc.syscall(n, b'x', 0) >= 0: print('HELD')",
    "shared mappings that are not resident": "for i in range(6):\n    p = libc.mmap(None, M, 3, 0x21, -1, 0)\n    if p == 2**64 - 1: sys.exit('refused')\n"
    "    libc.memset(p, 1, M)\n    libc.madvise(p, M, 4)\nprint('HELD')",
    "shared mappings, validated": "p = libc.mmap(None, M, 3, 0x23, -1, 0)\nif p != 2**64 - 1: print('HELD')",
    "Python's own shared mappings": "maps = [mmap.mmap(-1, M) for _ in range(6)]\nprint('HELD')",
    "/dev/zero": "fd = os.open('/dev/zero', os.O_RDWR)\nmaps = [mmap.mmap(fd, M) for _ in range(6)]\nprint('HELD')",
    "/dev/shm": "open('/dev/shm/x', 'w')\nprint('HELD')",
    "files in the working folder": "for i in range(64): open(str(i), 'wb').write(bytes(1 << 20))\nprint('HELD')",
    "files that have no name any more": "fs = []\nfor i in range(40):\n    f = open('x', 'wb', buffering=0); f.write(bytes(1 << 20)); os.unlink('x'); fs.append(f)\nprint('HELD')",
    "a file system of its own": "if libc.unshare(0x10020000) == 0: print('HELD')",
    "a file system of its own, by clone": "import signal\nn = os.uname().machine\nr = libc.syscall({'x86_64': 56, 'aarch64': 220}[n], 0x10020011, 0, 0, 0, 0)\n"
    "if r == 0: os._exit(0)\nif r > 0: print('HELD')",
    "message queues": "for i in range(2000):\n    if libc.msgget(0, 0o1600) >= 0: print('HELD'); break",
    "keys": "for i in range(9):\n    for n in (248, 217):\n        if libc.syscall(n, b'user', str(i).encode(), b'x', 1, -4) > 0: print('HELD')",
    "one big list": "x = [0] * (LIMIT // 4)\nprint('HELD')".replace("LIMIT", str(LIMIT)),
    "a stack that grows": "import threading\nthreading.stack_size(64 << 20)\nts = [threading.Thread(target=time.sleep, args=[1]) for _ in range(8)]\n"
    "[t.start() for t in ts]\nprint('HELD')",
}  # fmt: skip


class Most:
    """The most memory that the descendants of this process, but those running already, held together."""

    def __init__(self) -> None:
        self.bytes, self._ended, self._thread = 0, threading.Event(), threading.Thread(target=self._look)

    def __enter__(self) -> Most:
        self._known = leftovers.processes()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(0.02):
            self.bytes = max(self.bytes, sum(held(p) for p in leftovers.processes() - self._known))


def held(pid: int) -> int:
    """Proportional share of anonymous and shared memory, swapped or not."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    keys = ("Pss_Anon:", "Pss_Shmem:", "SwapPss:")
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(keys))


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    before, running = leftovers.state(), leftovers.processes()
    yield
    assert leftovers.state() == before
    assert leftovers.gone(leftovers.processes() - running)


def run(program: str) -> Outcome:
    return run_program(CALLS + program, allowed=True, limits=LIMITS)


@pytest.mark.parametrize("name", ATTACKS)
def test_it_holds_no_more_than_it_may(name: str) -> None:
    with Most() as most:
        outcome = run(ATTACKS[name])
    assert "HELD" not in outcome.output, outcome
    assert most.bytes <= 1.2 * LIMIT


def test_many_processes_that_share_their_parents_memory_are_no_attack() -> None:
    outcome = run(
        "x = bytearray(60 << 20)\nfor _ in range(6):\n    if os.fork() == 0: time.sleep(0.5); os._exit(0)\nfor _ in range(6): os.wait()\nprint('done')"
    )
    assert outcome.ok and outcome.output == "done\n", outcome


def test_the_reason_is_told() -> None:
    assert "more memory than it may" in run(ATTACKS["twelve processes"]).reason
    assert "Operation not permitted" in run(ATTACKS["memfds"]).reason


MOUNTS = """\
22 27 0:21 / /proc rw,relatime - proc proc rw
34 25 0:29 / /sys/fs/cgroup/memory rw,relatime shared:15 - cgroup cgroup rw,memory
35 25 0:30 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
36 25 0:31 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
"""
CONTAINED = "40 39 0:33 /docker/abc /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw,nsdelegate\n"


@pytest.mark.parametrize(
    ("groups", "mounts", "found"),
    [
        ("4:memory:/user/me\n3:cpu,cpuacct:/\n0::/\n", MOUNTS, [(1, "/sys/fs/cgroup/memory/user/me"), (2, "/sys/fs/cgroup")]),
        ("4:memory:/\n", MOUNTS, [(1, "/sys/fs/cgroup/memory")]),
        ("0::/user.slice/app.slice/x.scope\n", MOUNTS, [(2, "/sys/fs/cgroup/unified/user.slice/app.slice")]),
        ("0::/docker/abc/job\n", CONTAINED, [(2, "/sys/fs/cgroup")]),
        ("0::/docker/abcd\n", CONTAINED, []),
        ("", MOUNTS, []),
    ],
)  # fmt: skip
def test_where_a_control_group_could_be_made(groups: str, mounts: str, found: list[tuple[int, str]]) -> None:
    assert places(groups, mounts) == found


def test_without_a_control_group_the_sum_is_held_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where none may be made: the launcher looks for a file that is not there."""
    alone = jail.LAUNCH.replace("; main()", "; import confined.launcher as l; l.make = lambda most: None; main()")
    monkeypatch.setattr(jail, "LAUNCH", alone)
    with Most() as most:
        outcome = run(ATTACKS["twelve processes"])
    assert "more memory than it may" in outcome.reason
    assert most.bytes <= 1.5 * LIMIT  # how soon it is seen depends on how busy the machine is
