"""A run whose disk fills up again and again: `python -m tests.loop.full_disks AT SEED TIMES` (a process of its own forks).

Every child may write a drawn number of bytes; the write that goes beyond raises as its library does: Python's an OSError,
safetensors its own error, torch a RuntimeError. Each child must end with one message; the last one may write all it wants.
Prints the messages.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from tests.loop.kills import recipe_of

from prunetune.common.progress import Watch
from prunetune.errors import NotWritable
from prunetune.loop.loop import prune_tune_loop
from prunetune.models.shards import ShardWriter


class Disk:
    """Counts bytes and refuses those beyond `room`."""

    def __init__(self, room: float) -> None:
        self.room, self.used = room, 0

    def take(self, size: int, path: Any, error: Callable[[], Exception]) -> None:
        """Note `size` bytes, or leave half of them in the file and raise."""
        if self.used + size > self.room:
            self.room = self.used  # a full disk stays full
            with open(path, "ab") as f:  # noqa: PTH123 - not the patched one
                f.write(b"\0" * (size // 2))
            raise error()
        self.used += size

    def patch(self) -> None:
        """Put this disk under all that a run writes with."""
        full = OSError(errno.ENOSPC, "No space left on device")
        text, raw, shard = Path.write_text, Path.write_bytes, ShardWriter.write
        serialize, save = safetensors.torch.serialize_file, torch.save

        def write_text(path: Path, data: str, *args: Any, **more: Any) -> int:
            self.take(len(data), path, lambda: full)
            return text(path, data, *args, **more)

        def write_bytes(path: Path, data: bytes) -> int:
            self.take(len(data), path, lambda: full)
            return raw(path, data)

        def write(writer: ShardWriter, name: str, tensor: torch.Tensor) -> None:
            self.take(tensor.numel() * tensor.element_size(), writer.path, lambda: full)
            shard(writer, name, tensor)

        def serialize_file(tensors: Any, path: Any, metadata: Any = None) -> None:
            said = "Error while serializing: I/O error: No space left on device (os error 28)"
            serialize(tensors, path, metadata=metadata)
            size = Path(path).stat().st_size
            if self.used + size > self.room:
                os.truncate(path, 0)
            self.take(size, path, lambda: SafetensorError(said))

        def torch_save(value: Any, path: Any, *args: Any, **more: Any) -> None:
            said = "[enforce fail at inline_container.cc:664] . PytorchStreamWriter failed writing file data/0: file write failed"
            self.take(1 << 16, path, lambda: RuntimeError(said))
            save(value, path, *args, **more)

        Path.write_text, Path.write_bytes, ShardWriter.write = write_text, write_bytes, write  # type: ignore[method-assign]
        safetensors.torch.serialize_file, torch.save = serialize_file, torch_save


def child(at: Path, out: Path, room: float, answer: Path) -> int:
    """One start with so much room; its exit code. What it said, or the bytes that it wrote, is in `answer`."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.chdir(at)
    disk = Disk(room)
    said = os.open(answer, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    try:
        disk.patch()
        prune_tune_loop(recipe_of(at), out, Watch(quiet=True))
    except NotWritable as e:
        os.write(said, str(e).encode())
        os._exit(2)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os.write(said, str(disk.used).encode())
    os._exit(0)


def chain(at: Path, seed: int, times: int) -> list[str]:
    """Fill the disk under a run in `AT/filled`, `times` times; what each start said. `AT/straight` is undisturbed."""
    draw, answer, said = random.Random(seed), at / "answer", list[str]()
    whole = 3 * sum(p.stat().st_size for p in (at / "straight").rglob("*") if p.is_file())
    rooms = [draw.randrange(whole // 2) if i % 2 else draw.randrange(whole // 20) for i in range(times)]
    for room in [*rooms, float("inf")]:
        code = child(at, at / "filled", room, answer)
        if code not in (0, 2):
            sys.exit(f"with room for {room} bytes: exit {code}")
        if code == 0:
            break
        said.append(answer.read_text())
    return said


if __name__ == "__main__":
    place, number, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    recipe_of(place)
    shutil.rmtree(place / "filled", ignore_errors=True)
    print(json.dumps(chain(place, number, count)))
