"""Scores and patches as safetensors files: tensors, and a note of what they are, both checked when read.

The note is JSON under `prunetune` in the file's metadata.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel
from safetensors import SafetensorError, safe_open
from torch import Tensor

from prunetune.common.reading import parse_json, regular_file, validated
from prunetune.errors import BadCheckpoint, plain

N = TypeVar("N", bound=BaseModel)

Shapes = dict[str, tuple[int, ...]]
FLOATS = {"F64", "F32", "F16", "BF16"}


def read_tensors(
    path: Path, note: type[N], what: str, fix: str, check: Callable[[N, Shapes], str | None]
) -> tuple[N, dict[str, Tensor]]:
    """The note and the tensors of a file.

    Args:
        path: The file.
        note: What its note must be.
        what: What it is called in messages.
        fix: What to do about a file that is none.
        check: Called with note and shapes before any tensor is read; says what is wrong with them, or None.

    Raises:
        MissingPath: it is not there. BadCheckpoint: it is damaged, or something else.
    """

    def bad(told: str) -> BadCheckpoint:
        return BadCheckpoint(f"this is not a {what}: {told}", value=str(path), fix=fix)

    regular_file(path, what, fix=fix)
    try:
        with safe_open(path, framework="pt") as f:
            text = (f.metadata() or {}).get("prunetune")
            if text is None:
                raise bad("its metadata have no `prunetune`")
            found = validated(note, parse_json(text, path, f"{what}'s note", fix=fix), path, f"{what}'s note", fix=fix)
            slices = {name: f.get_slice(name) for name in f.keys()}  # noqa: SIM118 - no mapping
            for name, part in slices.items():
                if part.get_dtype() not in FLOATS:
                    raise bad(f"{plain(name, 80)} is stored as {part.get_dtype()}, not as floating-point numbers")
            if told := check(found, {name: tuple(part.get_shape()) for name, part in slices.items()}):
                raise bad(told)
            tensors = {name: f.get_tensor(name) for name in slices}
    except (SafetensorError, OSError) as e:
        raise bad(plain(str(e), 200)) from None
    return found, tensors
