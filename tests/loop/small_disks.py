"""A run on a real disk that is full at a drawn byte: `unshare -Urm python -m tests.loop.small_disks AT SEED TIMES`.

The disk is a tmpfs, which a mount namespace of its own allows whoever runs this. Every other start meets a disk that is
too small from the beginning: its size is drawn from the bytes that an undisturbed run takes at most. In the others the
disk is filled up at a drawn moment, but for some pages; these come first. Each such start must end with status 2 and one message; the same
command on a disk with room must end with the undisturbed run's tensors and files. Prints what was said, as JSON.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

from tests.loop.kills import recipe_of

PAGE, ROOM = 4096, 1 << 30
SPARE = 16
"""Pages that are left at most when a disk is filled up at a moment."""


def resize(disk: Path, size: int) -> None:
    """Let so many bytes lie on the disk: a page at least."""
    pages = max(1, -(-size // PAGE))
    options = f"remount,size={pages * PAGE}" if os.path.ismount(disk) else f"size={pages * PAGE}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)], check=True)


def used(disk: Path) -> int:
    """Bytes that lie on it."""
    found = os.statvfs(disk)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def started(at: Path, disk: Path) -> int:
    """The run, as the command line does it, in a child; its id. What it says is in `AT/said`."""
    if pid := os.fork():
        return pid
    os.chdir(at)
    said = os.open(at / "said", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    from prunetune.cli.app import main

    sys.argv = ["prunetune", "--quiet", "run", str(at / "recipe.json"), "--out", str(disk / "run"), "--yes"]
    try:
        main()
    except SystemExit as e:
        os._exit(e.code if isinstance(e.code, int) else 1)
    os._exit(0)


def ended(pid: int) -> int:
    """The exit code of a child."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def files(run: Path) -> tuple[dict[str, bytes], set[str]]:
    """Tensors, and the names of all files."""
    names = {str(p.relative_to(run)) for p in run.rglob("*")}
    return {n: (run / n).read_bytes() for n in names if n.endswith(".safetensors")}, names


def undisturbed(at: Path, disk: Path) -> tuple[tuple[dict[str, bytes], set[str]], int, float]:
    """(files, bytes that lay on the disk at most, seconds) of a run with room."""
    most, over, begin = used(disk), threading.Event(), time.monotonic()

    def look() -> None:
        nonlocal most
        while not over.wait(0.002):
            most = max(most, used(disk))

    pid = started(at, disk)
    watch = threading.Thread(target=look)
    watch.start()
    code = ended(pid)
    over.set()
    watch.join()
    if code:
        sys.exit(f"the undisturbed run failed: {(at / 'said').read_text()}")
    return files(disk / "run"), most, time.monotonic() - begin


def filled(at: Path, disk: Path, draw: random.Random, most: int, seconds: float, late: bool) -> tuple[int, int]:
    """(exit code, bytes that could lie on it) of a start whose disk is too small, or too small from a moment on."""
    if not late:
        resize(disk, room := draw.randrange(most))
        return ended(started(at, disk)), room
    pid = started(at, disk)
    time.sleep(draw.uniform(0.05, 0.9) * seconds)
    resize(disk, room := used(disk) + draw.randrange(SPARE) * PAGE)
    return ended(pid), room


def chain(at: Path, seed: int, times: int) -> list[str]:
    """What was said, so many times; on stderr also how many bytes could lie on the disk."""
    draw, disk = random.Random(seed), at / "disk"
    disk.mkdir(exist_ok=True)
    resize(disk, ROOM)
    straight, most, seconds = undisturbed(at, disk)
    found = list[str]()
    while len(found) < times:
        for old in disk.iterdir():
            shutil.rmtree(old)
        code, room = filled(at, disk, draw, most, seconds, late=len(found) % 2 == 0)
        said = (at / "said").read_text()
        if code == 0:  # it had been done before, or wrote no more
            resize(disk, ROOM)
            continue
        if code != 2:
            sys.exit(f"on a disk for {room:,} bytes: exit {code}\n{said}")
        resize(disk, ROOM)
        if code := ended(started(at, disk)):
            sys.exit(f"after a disk for {room:,} bytes: exit {code}\n{(at / 'said').read_text()}\nbefore: {said}")
        if files(disk / "run") != straight:
            other = files(disk / "run")[1] ^ straight[1]
            sys.exit(f"after a disk for {room:,} bytes: other files or tensors: {sorted(other)}\nbefore: {said}")
        found.append(said)
        print(f"{room:,} of {most:,} bytes: {' '.join(said.split())}", file=sys.stderr)
    return found


if __name__ == "__main__":
    place, number, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    (place / "recipe.json").write_text(json.dumps(recipe_of(place).model_dump(mode="json")))
    print(json.dumps(chain(place, number, count)))
