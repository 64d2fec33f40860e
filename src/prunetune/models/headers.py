"""What a checkpoint's files say of themselves: the index, and the headers of its files. No torch, no weights.

    for path, tensors in read_headers(folder).items():      # {file: {tensor: Stored}}
        tensors["model.norm.weight"]                         # Stored(dtype="BF16", shape=(576,))

Format: https://github.com/huggingface/safetensors#format; the headers are read, and checked against the file's length,
by the safetensors library.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from prunetune.common.memory import is_memory
from prunetune.common.reading import read_model
from prunetune.errors import BadCheckpoint, MissingPath, PrunetuneError, TooLittleMemory

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

_PLAIN = re.compile(r"[^/\\\x00]+\.safetensors")


@dataclass(frozen=True)
class Stored:
    """A tensor as its file's header describes it: the format's own name of the type (`BF16`, `F8_E4M3`), the shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


Headers = Mapping[Path, Mapping[str, Stored]]


class Index(BaseModel):
    """`model.safetensors.index.json`: which file holds which tensor."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    weight_map: dict[str, str] = Field(min_length=1)

    @field_validator("weight_map")
    @classmethod
    def _plain_names(cls, value: dict[str, str]) -> dict[str, str]:
        for name in sorted(set(value.values())):
            if not _PLAIN.fullmatch(name) or name.startswith(".") or len(name.encode(errors="replace")) > 255:
                raise ValueError(f"it names {name[:80]!r}, which is no plain *.safetensors file inside its folder")
        return value


def read_index(folder: Path) -> Index:
    """The index of a folder's shards, validated: plain names of safetensors files inside the folder, nothing else."""
    fix = "make the index anew with save_pretrained, or download the model again; pickles (*.bin) are never read"
    return read_model(folder / INDEX, Index, "index of shards", fix=fix)


def shard_files(folder: Path) -> list[Path]:
    """The weight files that transformers would load from a model folder: the single file, or those of the index."""
    if there(folder / SINGLE):
        return [folder / SINGLE]
    if not there(folder / INDEX):
        raise MissingPath(
            f"this model folder has neither {SINGLE} nor {INDEX}",
            value=str(folder),
            fix="check the path; weights of another name: load them once with transformers and save_pretrained",
        )
    return [folder / name for name in sorted(set(read_index(folder).weight_map.values()))]


def there(path: Path) -> bool:
    """Whether a file is there. MissingPath for a link that leads nowhere: it looks like a file in every listing."""
    if path.is_symlink() and not path.exists():
        raise MissingPath(
            "this is a link that leads nowhere",
            value=f"{path} -> {path.readlink()}",
            fix="copy or download the file itself (cp -L follows links)",
        )
    return path.is_file()


def read_headers(folder: Path) -> dict[Path, dict[str, Stored]]:
    """The tensors of every weight file of a model folder, from the headers alone.

    Raises:
        MissingPath: a file is not there. BadCheckpoint: a file is truncated or no safetensors file, two files hold the
            same tensor, or a tensor of the index is not in the file that the index names.
    """
    found = {path: read_header(path) for path in shard_files(folder)}
    seen: dict[str, Path] = {}
    for path, tensors in found.items():
        for name in tensors:
            if name in seen:
                raise BadCheckpoint("two shards hold the same tensor", value=f"{path}: {name}", fix="remove one")
            seen[name] = path
    if folder / SINGLE not in found:
        for name, file in read_index(folder).weight_map.items():
            if (where := seen.get(name)) is None or where.name != file:
                raise BadCheckpoint(
                    "a tensor of the index is in no shard" if where is None else "a tensor is not where the index says",
                    value=name,
                    valid=f"{name} in {file}" + (f", not in {where.name}" if where else ""),
                    fix="download the model again",
                )
    return found


def read_header(path: Path) -> dict[str, Stored]:
    """The tensors of one safetensors file. BadCheckpoint, naming the file, if it is damaged."""
    with opened(path, "np") as file:
        return tensors_of(file)


def opened(path: Path, framework: str) -> Any:
    """A safetensors file, mapped; `framework` is that of the tensors it gives (`np`, `pt`).

    Raises:
        MissingPath: not there. BadCheckpoint: damaged. TooLittleMemory: it could not be mapped.
    """
    from safetensors import SafetensorError, safe_open

    if not there(path):
        raise MissingPath("a shard of this model is missing", value=str(path), fix="copy or download it again")
    try:
        return safe_open(path, framework=framework)
    except (SafetensorError, OSError, MemoryError) as e:
        raise unreadable(path, e) from e


def tensors_of(file: Any) -> dict[str, Stored]:
    """What an opened safetensors file holds."""
    parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    return {n: Stored(str(p.get_dtype()), tuple(int(d) for d in p.get_shape())) for n, p in parts.items()}


def unreadable(path: Path, why: object) -> PrunetuneError:
    """What is said of a safetensors file that cannot be read: too little memory, or damage."""
    if isinstance(why, BaseException) and is_memory(why):
        return TooLittleMemory(
            "there is too little memory to read these weights", value=str(path), fix="free memory, or a larger machine"
        )
    return BadCheckpoint(
        f"this shard cannot be read ({why})",
        value=str(path),
        fix="it is truncated or damaged: copy or download it again",
    )
