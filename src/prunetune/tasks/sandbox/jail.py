"""The confined side of `sandbox.py`, started as a script: namespaces, an empty root, limits, then the program.

    launcher            dies with its caller; new user (unless root), mount, PID, network, IPC and host-name namespaces
    └── process 1       builds the root, waits for the program; its end is the end of every process in the namespace
        └── program     unprivileged, limited

Standard library only, and nothing of the package: it runs with `-I -S`. Linux 5.12 or later.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import secrets
import signal
import sys
from pathlib import Path
from typing import Any

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 0x2, 0x4, 0x1000, 0x4000, 0x40000
MNT_DETACH = 2
SYS_MOUNT_SETATTR, SYS_PIVOT_ROOT = 442, {"x86_64": 155, "aarch64": 41}
AT_FDCWD, AT_RECURSIVE = -100, 0x8000
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 0x1, 0x2, 0x4
PR_SET_PDEATHSIG, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 24, 38
LAST_CAPABILITY = 63
UNUSED_UIDS = (61184, 65519)  # systemd's range for users that own nothing: a uid of its own has its own process count
SYSTEM = ("/usr", "/lib", "/lib64", "/lib32", "/etc/ld.so.cache")
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")

WORK = "/sandbox"  # the working folder
ENVIRONMENT = {"PATH": "/usr/bin", "HOME": WORK, "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"}

libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Read the request, build the jail, run the program, exit with its status (128 + n for signal n)."""
    root, request_fd, ready = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    with os.fdopen(request_fd, "rb") as f:
        request = json.loads(f.read())
    call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    os.set_inheritable(ready, False)
    real_root = os.geteuid() == 0
    try:
        become_alone(real_root)
    except OSError as e:
        os.write(ready, f"{e.strerror}: {e.filename or 'namespaces'}".encode())
        os._exit(1)
    first = os.fork()
    if first == 0:
        os._exit(process_one(root, request, ready, real_root))
    os.close(ready)
    os.close(0)
    os.close(1)  # only the program holds the pipe: its end is seen even before ours
    _, status = os.waitpid(first, 0)
    os._exit(shell_status(status))


def become_alone(real_root: bool) -> None:
    """New namespaces. Without root, a user namespace gives the rights that the others need, inside it alone."""
    spaces = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS
    uid, gid = os.geteuid(), os.getegid()
    if real_root:
        call("unshare", spaces)
        return
    call("unshare", spaces | CLONE_NEWUSER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")


def process_one(root: Path, request: dict[str, Any], ready: int, real_root: bool) -> int:
    """Build the root, start the program, wait for it. Ends itself in any case some time after the wall limit."""
    call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    limits = request["limits"]
    try:
        build_root(root, request["visible"], limits)
        for path, text in request["files"].items():
            Path(path).write_text(text, encoding="utf-8", errors="surrogatepass")
        os.write(ready, b"ready")
    except OSError as e:
        os.write(ready, f"{e.strerror}: {e.filename}".encode())
        return 1
    os.close(ready)
    if limits["wall_seconds"] is not None:
        signal.alarm(int(limits["wall_seconds"]) + 5)
    program = os.fork()
    if program == 0:
        run(request, real_root)
    os.close(0)
    os.close(1)
    while True:  # orphans are ours: reap them, and end with the program
        pid, status = os.waitpid(-1, 0)
        if pid == program:
            return shell_status(status)


def build_root(root: Path, visible: list[str], limits: dict[str, Any]) -> None:
    """An empty file system in memory, with the interpreter and the system's libraries bound into it, read-only."""
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    mount("tmpfs", str(root), "tmpfs", MS_NOSUID, b"size=1m,mode=755")
    for source in [*DEVICES, *SYSTEM, *visible]:
        path = Path(source)
        target = root / source.lstrip("/")
        if path.is_symlink():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path.readlink())
        elif path.exists() and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.mkdir() if path.is_dir() else target.touch()
            mount(source, str(target), None, MS_BIND | MS_REC)
            read_only(target)
    work = root / WORK.lstrip("/")
    work.mkdir()
    read_only(root)
    size = 4 * limits["file_bytes"]
    mount("tmpfs", str(work), "tmpfs", MS_NOSUID | MS_NODEV, f"size={size},nr_inodes=1000,mode=1777".encode())
    os.chdir(root)
    call("syscall", SYS_PIVOT_ROOT[os.uname().machine], b".", b".")  # the old root now lies on top of the new one
    call("umount2", b".", MNT_DETACH)
    os.chdir(WORK)


def run(request: dict[str, Any], real_root: bool) -> None:
    """Drop every privilege, set the limits, become the program."""
    os.umask(0o077)
    os.setsid()
    argv, limits = request["argv"], request["limits"]
    hard: list[tuple[int, int]] = [
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_FSIZE, limits["file_bytes"]),
        (resource.RLIMIT_NOFILE, limits["open_files"]),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, limits["processes"]),
        (resource.RLIMIT_MEMLOCK, 0),
    ]
    for capability in range(LAST_CAPABILITY + 1):
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)  # fails for numbers that this kernel does not have
    if real_root:  # in a user namespace there is no other user: the caller's own remains, without rights
        uid = UNUSED_UIDS[0] + secrets.randbelow(UNUSED_UIDS[1] - UNUSED_UIDS[0])
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    for kind, most in hard:
        resource.setrlimit(kind, (most, most))
    cpu = limits["cpu_seconds"]
    if cpu is not None:
        resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))
    os.execve(argv[0], argv, {**ENVIRONMENT, **request["environment"]})  # noqa: S606  # no shell is the point


def read_only(path: Path) -> None:
    """A mount and all mounts below it become read-only, without devices and set-user-id programs."""
    only = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID
    attributes = (ctypes.c_uint64 * 4)(only, 0, 0, 0)
    call("syscall", SYS_MOUNT_SETATTR, AT_FDCWD, str(path).encode(), AT_RECURSIVE, ctypes.byref(attributes), 32)


def mount(source: str, target: str, kind: str | None, flags: int, data: bytes | None = None) -> None:
    """Mount `source` on `target`."""
    call("mount", source.encode(), target.encode(), kind.encode() if kind else None, ctypes.c_ulong(flags), data)


def call(name: str, *args: Any) -> None:
    """A libc function that returns 0 (or more), or raises OSError with its name."""
    if getattr(libc, name)(*args) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)


def shell_status(status: int) -> int:
    """A wait status as a shell gives it."""
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


if __name__ == "__main__":
    main()
