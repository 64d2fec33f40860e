"""Two tensors of a checkpoint compared as bytes, without torch and a block at a time."""

from __future__ import annotations

import json
from pathlib import Path

from prunetune.models.headers import Headers, unreadable

BLOCK = 1 << 20


def same_bytes(headers: Headers, a: str, b: str) -> bool:
    """Whether two tensors hold the same bytes; True if one of them is not there. Ends at the first difference."""
    where = {name: path for path, tensors in headers.items() for name in tensors if name in (a, b)}
    if len(where) < 2:
        return True
    (start, size), (other, length) = _place(where[a], a), _place(where[b], b)
    if size != length or headers[where[a]][a] != headers[where[b]][b]:
        return False
    with where[a].open("rb") as f, where[b].open("rb") as g:
        f.seek(start), g.seek(other)
        while size > 0:
            block = min(BLOCK, size)
            if f.read(block) != g.read(block):
                return False
            size -= block
    return True


def _place(path: Path, name: str) -> tuple[int, int]:
    """(first byte in the file, bytes) of a tensor, from the header that the safetensors library has accepted."""
    try:
        with path.open("rb") as f:
            length = int.from_bytes(f.read(8), "little")
            begin, end = json.loads(f.read(length))[name]["data_offsets"]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise unreadable(path, e) from e
    return 8 + length + begin, end - begin
