"""The system calls that nothing in the jail may use, as a seccomp filter (classic BPF), on x86_64 and aarch64.

Memory that belongs to no process (System V and POSIX queues, memfds, anonymous shared mappings, io_uring), keys and
other state that outlives its processes, new namespaces (in which a program could mount what it likes), and reaching
into other processes. They fail with EPERM; another architecture's calls (32 bit) end the process.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
RET_ALLOW, RET_ERRNO, RET_KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
LOAD, JUMP_EQ, JUMP_GE, JUMP_SET, AND, RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
NR, ARCH, FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data; arguments are 8 bytes each, low half first
NEW_NAMESPACES = 0x7E020080  # CLONE_NEWNS, CGROUP, UTS, IPC, USER, PID, NET and TIME
SHARED_ANONYMOUS = 0x21  # MAP_SHARED (or MAP_SHARED_VALIDATE) with MAP_ANONYMOUS
X32 = 0x40000000

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

# name: number on x86_64, on aarch64
DENIED: dict[str, tuple[int, int]] = {
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "semget": (64, 190), "msgget": (68, 186),
    "mq_open": (240, 180), "memfd_create": (319, 279), "memfd_secret": (447, 447), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219), "bpf": (321, 280),
    "perf_event_open": (298, 241), "fanotify_init": (300, 262), "unshare": (272, 97), "setns": (308, 268),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "open_tree": (428, 428),
    "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432),
    "fspick": (433, 433), "mount_setattr": (442, 442), "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265), "ptrace": (101, 117), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "pidfd_getfd": (438, 438), "process_madvise": (440, 440), "kcmp": (312, 272),
    "move_pages": (279, 239), "migrate_pages": (256, 238), "personality": (135, 92), "quotactl": (179, 60),
    "sethostname": (170, 161), "setdomainname": (171, 162), "settimeofday": (164, 170), "adjtimex": (159, 171),
    "clock_settime": (227, 112), "clock_adjtime": (305, 266), "acct": (163, 89), "reboot": (169, 142),
    "swapon": (167, 224), "swapoff": (168, 225), "kexec_load": (246, 104), "kexec_file_load": (320, 294),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
}  # fmt: skip
CLONE, CLONE3, MMAP = (56, 220), (435, 435), (9, 222)


def restrict(libc: ctypes.CDLL) -> None:
    """Put the filter on this process and all that it starts, for ever. Needs PR_SET_NO_NEW_PRIVS.

    Raises:
        OSError: this kernel has no seccomp filters, or this machine's calls are not known.
    """
    machine = os.uname().machine
    if machine not in ARCHITECTURES:
        raise OSError(errno.ENOSYS, "no list of system calls for this machine", machine)
    code = b"".join(_program(machine))
    held = ctypes.create_string_buffer(code, len(code))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(held)))
    if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, header, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "seccomp")


def _program(machine: str) -> list[bytes]:
    column = list(ARCHITECTURES).index(machine)
    refused = RET_ERRNO | errno.EPERM
    code = [
        _do(LOAD, ARCH),
        _do(JUMP_EQ, ARCHITECTURES[machine], 1, 0),
        _do(RETURN, RET_KILL_PROCESS),
        _do(LOAD, NR),
        *_if(JUMP_EQ, CLONE3[column], RET_ERRNO | errno.ENOSYS),  # its flags lie in memory; clone will do
    ]
    if machine == "x86_64":
        code += _if(JUMP_GE, X32, RET_ERRNO | errno.ENOSYS)
    for numbers in DENIED.values():
        code += _if(JUMP_EQ, numbers[column], refused)
    code += [
        _do(JUMP_EQ, CLONE[column], 0, 3),
        _do(LOAD, FIRST_ARGUMENT),
        *_if(JUMP_SET, NEW_NAMESPACES, refused),
    ]
    code += [
        _do(LOAD, NR),
        _do(JUMP_EQ, MMAP[column], 0, 4),
        _do(LOAD, FIRST_ARGUMENT + 3 * 8),
        _do(AND, SHARED_ANONYMOUS),
        *_if(JUMP_EQ, SHARED_ANONYMOUS, refused),
        _do(RETURN, RET_ALLOW),
    ]
    return code


def _if(test: int, value: int, result: int) -> list[bytes]:
    return [_do(test, value, 0, 1), _do(RETURN, result)]


def _do(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, value)
