"""A control group for a program's memory, where this process may make one: the kernel then holds it to the limit.

Version 1: below our own group. Version 2: beside it, because a group with processes can have no limited groups below.
Where neither is allowed, `watch.py` alone adds up and ends what is over the limit.
"""

from __future__ import annotations

import os
import time

NAME = "prunetune-"
TRIES = 50  # to remove a group whose last process is just ending


class Group:
    """One group, made and limited; processes enter it by `enter`."""

    def __init__(self, folder: str, version: int) -> None:
        """A folder that was just made."""
        self.folder, self.version = folder, version
        self.procs = os.open(
            f"{folder}/cgroup.procs", os.O_WRONLY
        )  # `enter` is called where the folder is out of sight
        self.events = os.open(f"{folder}/{('memory.oom_control', 'memory.events')[version - 1]}", os.O_RDONLY)
        self.parent = os.open(os.path.dirname(folder), os.O_RDONLY | os.O_DIRECTORY)

    def limit(self, most: int) -> None:
        """Hold all its processes together to `most` bytes, swapped or not."""
        memory, swap = (("limit_in_bytes", "memsw.limit_in_bytes"), ("max", "swap.max"))[self.version - 1]
        write(f"{self.folder}/memory.{memory}", str(most))
        try:
            write(f"{self.folder}/memory.{swap}", str(most if self.version == 1 else 0))
        except OSError:
            return  # swap is not counted here: `watch.py` counts it

    def enter(self) -> None:
        """Put this process into it. Of its descriptors it keeps none."""
        os.write(self.procs, b"0")
        for fd in (self.procs, self.events, self.parent):
            os.close(fd)

    def killed(self) -> bool:
        """Whether the kernel has ended a process of it for its memory."""
        said = os.pread(self.events, 4096, 0).decode().split()
        return "oom_kill" in said and said[said.index("oom_kill") + 1] != "0"

    def remove(self) -> None:
        """Remove it, when its processes have ended."""
        for _ in range(TRIES):
            try:
                os.rmdir(os.path.basename(self.folder), dir_fd=self.parent)
            except OSError:
                time.sleep(0.02)
            else:
                return


def make(most: int) -> Group | None:
    """A group that holds at most so many bytes. None: this process may not make one."""
    for version, parent in places(read("/proc/self/cgroup"), read("/proc/self/mountinfo")):
        folder = f"{parent}/{NAME}{os.getpid()}"
        try:
            os.mkdir(folder)
        except OSError:
            continue
        try:
            group = Group(folder, version)
            group.limit(most)
        except OSError:
            os.rmdir(folder)
            continue
        return group
    return None


def places(groups: str, mounts: str) -> list[tuple[int, str]]:
    """(version, folder) where a group of ours could be made, from `/proc/self/cgroup` and `/proc/self/mountinfo`."""
    found = []
    for line in groups.splitlines():
        _, controllers, own = line.split(":", 2)
        version = 2 if not controllers else 1
        if version == 1 and "memory" not in controllers.split(","):
            continue
        for mount in mounts.splitlines():
            fields, _, kind = mount.partition(" - ")
            root, point = fields.split()[3:5]
            name, _, options = kind.split(" ", 2)
            fitting = name == "cgroup2" if version == 2 else name == "cgroup" and "memory" in options.split(",")
            if fitting and (own + "/").startswith(root.rstrip("/") + "/"):
                folder = point + own[len(root.rstrip("/")) :].rstrip("/")
                found.append((version, folder if version == 1 else os.path.dirname(folder)))
    return found


def read(path: str) -> str:
    """The text of a file, "" where there is none."""
    try:
        with open(path, encoding="utf-8") as f:
            return f.read()
    except OSError:
        return ""


def write(path: str, text: str) -> None:
    """Write a file."""
    with open(path, "w", encoding="utf-8", errors="surrogatepass") as f:
        f.write(text)
