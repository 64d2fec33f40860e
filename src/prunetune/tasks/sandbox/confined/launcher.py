"""The launcher of the sandbox: namespaces, an empty root, limits, then the program; and it watches their memory.

    launcher            ends with its caller; new user (unless root), mount, PID, network, IPC and host-name namespaces
    └── process 1       builds the root, waits for the program; its end is the end of every process in the namespace
        └── program     unprivileged, limited

The launcher ends last: when it is gone, so is every process, file and mount of the jail. Linux 5.12 or later.
"""

from __future__ import annotations

import ctypes
import marshal
import os
import resource
import select
import sys
import time

from .filters import restrict  # a package of its own, wherever it is put
from .group import make, write
from .watch import Watch

TYPE_CHECKING = False  # typing takes 8 ms of a start, signal as long
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from .group import Group

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 0x2, 0x4, 0x1000, 0x4000, 0x40000
MNT_DETACH = 2
SYS_MOUNT_SETATTR, SYS_PIVOT_ROOT = 442, {"x86_64": 155, "aarch64": 41}
AT_FDCWD, AT_RECURSIVE = -100, 0x8000
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 0x1, 0x2, 0x4
SIGKILL = 9
PR_SET_PDEATHSIG, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_SET_THP_DISABLE = 1, 24, 38, 41
LAST_CAPABILITY = 63
UNUSED_UIDS = (61184, 65519)  # systemd's range for users that own nothing: a uid of its own has its own process count
SYSTEM = ("/usr", "/lib", "/lib64", "/lib32", "/etc/ld.so.cache")
DEVICES = ("/dev/null", "/dev/urandom", "/dev/random")  # not /dev/zero: mapped, it is shared memory of no process

ROOT = "/proc"  # the new root is mounted here, in a mount namespace of its own: no folder has to be made for it
WORK = "/sandbox"  # the working folder
ENVIRONMENT = {"PATH": "/usr/bin", "HOME": WORK, "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"}
OVER_MEMORY = 213  # the launcher's exit status when it ended the program for that
ALONE, SEVERAL, IDLE = 0.005, 0.002, 0.1  # seconds between two looks at the memory: of one process, several, a server
EARLY = 0.9  # several processes are ended at this share of the limit: they grow while they are added up
URGENT = -10
GRACE = 5.0  # seconds after which the launcher ends what its caller should have ended

libc = ctypes.CDLL(None, use_errno=True)


def main() -> NoReturn:
    """Read the request, build the jail, run the program, exit with its status (128 + n for signal n).

    Arguments: file descriptors of the pipe with the request (marshalled; what comes on it later, or its end, is the
    order to end all), of the pipe that says `ready` or why not, and of the program's channel (-1: none).
    """
    orders, ready, channel = map(int, sys.argv[1:4])
    with os.fdopen(orders, "rb", closefd=False) as f:
        request = marshal.load(f)  # noqa: S302  # from our own caller
    os.set_inheritable(orders, False)
    os.set_inheritable(ready, False)
    real_root = os.geteuid() == 0
    try:
        watch = Watch()
        become_alone(real_root)
    except OSError as e:
        refuse(ready, e)
    group = make(request["limits"]["memory_bytes"])
    first = os.fork()
    if first == 0:
        os._exit(process_one(request, ready, channel, group, real_root))
    for fd in (ready, 0, 1, channel):  # only the program holds these: their end is seen even before ours
        if fd >= 0:
            os.close(fd)
    if real_root:
        os.setpriority(os.PRIO_PROCESS, 0, URGENT)  # on a busy machine, a look that comes late finds more memory
    over = supervise(first, orders, watch, group, request)
    _, status = os.waitpid(first, 0)  # only after every process of its namespace
    if group is not None:
        group.remove()
    os._exit(OVER_MEMORY if over else shell_status(status))


def refuse(ready: int, why: OSError) -> NoReturn:
    """Say why there can be no jail, and end."""
    os.write(ready, f"{why.strerror}: {why.filename or 'namespaces'}".encode())
    os._exit(1)


def become_alone(real_root: bool) -> None:
    """New namespaces. Without root, a user namespace gives the rights that the others need, inside it alone."""
    spaces = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS
    uid, gid = os.geteuid(), os.getegid()
    if real_root:
        call("unshare", spaces)
        return
    call("unshare", spaces | CLONE_NEWUSER)
    write("/proc/self/setgroups", "deny")
    write("/proc/self/gid_map", f"0 {gid} 1")
    write("/proc/self/uid_map", f"0 {uid} 1")


def supervise(first: int, orders: int, watch: Watch, group: Group | None, request: dict[str, Any]) -> bool:
    """Wait for the end of process 1. End it on order, some time after the wall limit, or if all hold too much memory.

    Returns whether they did.
    """
    limits = request["limits"]
    waiting = select.poll()
    for fd in (os.pidfd_open(first), orders):
        waiting.register(fd, select.POLLIN)
    wall, most = limits["wall_seconds"], limits["memory_bytes"]
    latest = None if wall is None else time.monotonic() + wall + GRACE
    alone = ALONE if wall is not None else IDLE
    pause, over = ALONE, False
    while not waiting.poll(pause * 1000):
        pids = watch.descendants(first)
        several = len(pids) > 1
        pause = SEVERAL if several else alone
        over = watch.exceeds(pids, int(most * (EARLY if several else 1)) - in_files())
        late = latest is not None and time.monotonic() > latest
        if over or late or (group is not None and group.killed()) or os.getppid() != request["caller"]:
            break
    os.kill(first, SIGKILL)  # where it has ended, it is not reaped yet: its number is its own
    return over or (group is not None and group.killed())


def in_files() -> int:
    """Bytes of memory that the working folder's files take."""
    try:
        found = os.statvfs(WORK)
    except OSError:
        return 0  # it is not mounted yet
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def process_one(request: dict[str, Any], ready: int, channel: int, group: Group | None, real_root: bool) -> int:
    """Build the root, start the program, wait for it."""
    call("prctl", PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
    try:
        build_root(request)
    except OSError as e:
        refuse(ready, e)
    program = os.fork()
    if program == 0:
        try:
            if group is not None:
                group.enter()
            run(request, ready, channel, real_root)
        except OSError as e:
            refuse(ready, e)
    for fd in (ready, 0, 1, channel):
        if fd >= 0:
            os.close(fd)
    while True:  # orphans are ours: reap them, and end with the program
        pid, status = os.waitpid(-1, 0)
        if pid == program:
            return shell_status(status)


def build_root(request: dict[str, Any]) -> None:
    """An empty file system in memory, with the interpreter and the system's libraries bound into it, read-only."""
    limits = request["limits"]
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    mount("tmpfs", ROOT, "tmpfs", MS_NOSUID, b"size=1m,mode=755")
    for path in [*DEVICES, *SYSTEM, *request["visible"]]:
        bind(path, ROOT + path)
    for target, source in request["bound"].items():
        bind(source, ROOT + target)
    work = ROOT + WORK
    os.mkdir(work)
    read_only(ROOT)
    size = 4 * limits["file_bytes"]
    mount("tmpfs", work, "tmpfs", MS_NOSUID | MS_NODEV, f"size={size},nr_inodes=1000,mode=1777".encode())
    os.chdir(ROOT)
    call("syscall", SYS_PIVOT_ROOT[os.uname().machine], b".", b".")  # the old root now lies on top of the new one
    call("umount2", b".", MNT_DETACH)
    os.chdir(WORK)
    for path, text in request["files"].items():
        write(path, text)


def bind(source: str, target: str) -> None:
    """Show a file or folder of the outside at `target`, read-only. What is not there is left out."""
    if os.path.islink(source):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.symlink(os.readlink(source), target)
    elif os.path.exists(source) and not os.path.exists(target):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if os.path.isdir(source):
            os.mkdir(target)
        else:
            write(target, "")
        mount(source, target, None, MS_BIND | MS_REC)
        read_only(target)


def run(request: dict[str, Any], ready: int, channel: int, real_root: bool) -> NoReturn:
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
        (resource.RLIMIT_MSGQUEUE, 0),
    ]
    for capability in range(LAST_CAPABILITY + 1):
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)  # fails for numbers that this kernel does not have
    if real_root:  # in a user namespace there is no other user: the caller's own remains, without rights
        uid = UNUSED_UIDS[0] + int.from_bytes(os.urandom(4), "big") % (UNUSED_UIDS[1] - UNUSED_UIDS[0])
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    call("prctl", PR_SET_THP_DISABLE, 1, 0, 0, 0)  # memory grows by small pages: `supervise` sees it in time
    for kind, most in hard:
        resource.setrlimit(kind, (most, most))
    cpu = limits["cpu_seconds"]
    if cpu is not None:
        resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))
    restrict(libc)
    if channel >= 0:
        os.write(channel, b"hello\n")  # by its process number the caller knows who may speak
    os.write(ready, b"ready")
    os.execve(argv[0], argv, {**ENVIRONMENT, **request["environment"]})  # noqa: S606  # no shell is the point


def read_only(path: str) -> None:
    """A mount and all mounts below it become read-only, without devices and set-user-id programs."""
    only = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID
    attributes = (ctypes.c_uint64 * 4)(only, 0, 0, 0)
    call("syscall", SYS_MOUNT_SETATTR, AT_FDCWD, path.encode(), AT_RECURSIVE, ctypes.byref(attributes), 32)


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
