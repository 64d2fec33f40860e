"""Safetensors shards, read and written tensor by tensor: one tensor in memory, whatever the size of the checkpoint.

    shards = open_shards(source)                       # {file: {tensor: TensorInfo}}, headers alone
    with ShardReader(source / file) as r, ShardWriter(out / file, infos) as w:
        for name in r.infos: w.write(name, r.read(name))

Format: eight bytes little-endian header length, a JSON header {name: {dtype, shape, data_offsets}}, then the tensors'
bytes one after another (https://github.com/huggingface/safetensors#format). Reading goes through the safetensors
library; the writer is ours, since the library's writes a whole file of tensors at once.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
from safetensors import SafetensorError

from prunetune.common.files import disk_errors, write_json
from prunetune.common.notes import remember
from prunetune.models.headers import INDEX, SINGLE, Stored, opened, read_headers, shard_files, tensors_of, unreadable

__all__ = [
    "INDEX",
    "SINGLE",
    "ShardReader",
    "ShardWriter",
    "TensorInfo",
    "open_shards",
    "rewrite",
    "shard_files",
    "write_index",
]

# The names that the format gives to the dtypes, for unquantised checkpoints.
DTYPES: dict[torch.dtype, str] = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_TORCH_DTYPES = {name: dtype for dtype, name in DTYPES.items()}


@dataclass(frozen=True)
class TensorInfo:
    """What a shard's header says about a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        return self.dtype.itemsize * math.prod(self.shape)

    @staticmethod
    def of(tensor: torch.Tensor) -> TensorInfo:
        """The dtype and shape of a tensor."""
        return TensorInfo(tensor.dtype, tuple(tensor.shape))


class ShardReader:
    """One safetensors file, mapped and read tensor by tensor. Raises BadCheckpoint, naming the file, if damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = opened(path, "pt")
        self.infos = {name: _info(path, name, stored) for name, stored in tensors_of(self._file).items()}

    def read(self, name: str) -> torch.Tensor:
        """One tensor, on the CPU."""
        try:
            tensor: torch.Tensor = self._file.get_tensor(name)
        except (SafetensorError, OSError) as e:
            raise unreadable(self.path, e) from e
        return tensor

    def __enter__(self) -> ShardReader:
        self._file.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self._file.__exit__(kind, e, tb)


class ShardWriter:
    """A safetensors file whose tensors are written one by one, in the order of `infos`, which is known beforehand.

    It is hashed beside the writing, so that its note needs no second reading.
    """

    def __init__(self, path: Path, infos: Mapping[str, TensorInfo]) -> None:
        self.path, self.infos, self._left = path, dict(infos), list(infos)
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        at = 0
        for name, info in self.infos.items():
            header[name] = {
                "dtype": DTYPES[info.dtype],
                "shape": list(info.shape),
                "data_offsets": [at, at + info.nbytes],
            }
            at += info.nbytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        start = len(text).to_bytes(8, "little") + text
        self._digest, self._hashing = hashlib.sha256(start), ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None
        with disk_errors(path):
            self._file = path.open("wb")
            self._file.write(start)

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Write the next tensor; ValueError if it is not the one that the header announced."""
        if not self._left or self._left[0] != name or TensorInfo.of(tensor) != self.infos[name]:
            raise ValueError(f"{self.path}: {name} {TensorInfo.of(tensor)} is not the next tensor of the header")
        self._left.pop(0)
        if tensor.numel():
            raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            self._settle()
            self._pending = self._hashing.submit(self._digest.update, raw.data)
            with disk_errors(self.path):
                self._file.write(raw.data)

    def _settle(self) -> None:
        """Wait for the last tensor's hash: at most two tensors are held."""
        if self._pending is not None:
            self._pending.result()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self._settle()
        self._hashing.shutdown()
        with disk_errors(self.path):
            self._file.close()
        if kind is None and not self._left:
            remember(self.path, self._digest.hexdigest())
        if kind is None and self._left:
            raise ValueError(f"{self.path}: {len(self._left)} tensors of the header were not written")


def open_shards(folder: Path) -> dict[Path, dict[str, TensorInfo]]:
    """The tensors of every weight file of a model folder, from the headers alone.

    Raises:
        MissingPath, BadCheckpoint: see `headers.read_headers`; or a type that torch lacks.
    """
    return {p: {n: _info(p, n, s) for n, s in tensors.items()} for p, tensors in read_headers(folder).items()}


def _info(path: Path, name: str, stored: Stored) -> TensorInfo:
    if stored.dtype not in _TORCH_DTYPES:
        raise unreadable(path, f"{name} is stored as {stored.dtype}")
    return TensorInfo(_TORCH_DTYPES[stored.dtype], stored.shape)


def shard_name(index: int, count: int) -> str:
    """The usual name of shard `index` (from 0) of `count`."""
    return SINGLE if count == 1 else f"model-{index + 1:05d}-of-{count:05d}.safetensors"


def write_index(folder: Path, shards: Iterable[tuple[str, Mapping[str, TensorInfo]]]) -> None:
    """Write the index of several shards: which file holds which tensor, and the bytes and parameters of all."""
    listed = [(file, name, info) for file, infos in shards for name, info in infos.items()]
    write_json(
        folder / INDEX,
        {
            "metadata": {
                "total_parameters": sum(math.prod(info.shape) for _, _, info in listed),
                "total_size": sum(info.nbytes for _, _, info in listed),
            },
            "weight_map": {name: file for file, name, _ in sorted(listed, key=lambda x: x[1])},
        },
    )


def rewrite(
    cut: Mapping[Path, Mapping[str, tuple[str, TensorInfo]]],
    change: Callable[[str, torch.Tensor], torch.Tensor | None],
    out: Path,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Each source shard becomes one shard of `out`, tensor by tensor; one that keeps nothing becomes none.

    Args:
        cut: Source shard -> {tensor: (its new name, what it becomes)}, of the tensors that stay.
        change: Makes the new tensor of a source tensor, given its name there.
        out: An empty folder.
        progress: Called with (tensors done, tensors in all).
    """
    cut = {path: names for path, names in cut.items() if names}
    total, done, written = sum(map(len, cut.values())), 0, []
    for i, (path, names) in enumerate(cut.items()):
        file, infos = shard_name(i, len(cut)), dict(names.values())
        with ShardReader(path) as reader, ShardWriter(out / file, infos) as writer:
            for name, (new_name, _) in names.items():
                tensor = change(name, reader.read(name))
                if tensor is not None:
                    writer.write(new_name, tensor)
                done += 1
                if progress:
                    progress(done, total)
        written.append((file, infos))
    if len(written) > 1:
        write_index(out, written)
