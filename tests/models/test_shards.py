"""Shards are read and written tensor by tensor, and damage is named."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from prunetune.common import notes
from prunetune.common.files import read_json, write_json
from prunetune.errors import BadCheckpoint, MissingPath
from prunetune.models.shards import (
    INDEX,
    ShardReader,
    ShardWriter,
    TensorInfo,
    open_shards,
    shard_files,
    shard_name,
    write_index,
)

TENSORS = {
    "b": torch.randn(3, 5),
    "a": torch.randn(7).bfloat16(),
    "scalar": torch.tensor(3, dtype=torch.int64),
    "empty": torch.zeros(0, 4),
    "flags": torch.tensor([True, False, True]),
    "transposed": torch.randn(4, 6).T,
}


def test_what_is_written_is_hashed_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {f"t{i}": torch.randn(300, 300) for i in range(5)}
    path = write(tmp_path / "x.safetensors", {**TENSORS, **tensors})
    assert path.stat().st_size > notes.LARGE
    wanted = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(notes.hashlib, "file_digest", lambda *a: pytest.fail("read once more"))
    assert notes.full_sha(path) == wanted


def write(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    with ShardWriter(path, {n: TensorInfo.of(t) for n, t in tensors.items()}) as w:
        for name, tensor in tensors.items():
            w.write(name, tensor)
    return path


def test_the_library_reads_what_we_write(tmp_path: Path) -> None:
    found = load_file(write(tmp_path / "x.safetensors", TENSORS))
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    with safe_open(tmp_path / "x.safetensors", "pt") as f:
        assert f.metadata() == {"format": "pt"}
    assert int.from_bytes((tmp_path / "x.safetensors").read_bytes()[:8], "little") % 8 == 0  # data stays aligned


def test_reader_gives_infos_and_tensors(tmp_path: Path) -> None:
    save_file({n: t.contiguous() for n, t in TENSORS.items()}, tmp_path / "x.safetensors")
    with ShardReader(tmp_path / "x.safetensors") as r:
        assert r.infos == {n: TensorInfo.of(t) for n, t in TENSORS.items()}
        assert all(torch.equal(r.read(n), t) for n, t in TENSORS.items())
    assert TensorInfo(torch.bfloat16, (3, 5)).nbytes == 30


def test_writer_refuses_another_order_or_shape_or_a_missing_tensor(tmp_path: Path) -> None:
    infos = {"a": TensorInfo(torch.float32, (2,)), "b": TensorInfo(torch.float32, (2,))}
    with pytest.raises(ValueError, match="not the next"), ShardWriter(tmp_path / "x", infos) as w:
        w.write("b", torch.zeros(2))
    with pytest.raises(ValueError, match="not the next"), ShardWriter(tmp_path / "x", infos) as w:
        w.write("a", torch.zeros(3))
    with pytest.raises(ValueError, match="1 tensors"), ShardWriter(tmp_path / "x", infos) as w:
        w.write("a", torch.zeros(2))


@pytest.mark.parametrize("keep", [0, 5, 60, -1])
def test_truncated_shard_is_named(tmp_path: Path, keep: int) -> None:
    path = write(tmp_path / "model.safetensors", TENSORS)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(BadCheckpoint, match=r"model\.safetensors"):
        open_shards(tmp_path)


def test_random_header_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "model.safetensors", TENSORS)
    path.write_bytes(path.read_bytes()[:8] + b"not json" + path.read_bytes()[16:])
    with pytest.raises(BadCheckpoint, match=r"model\.safetensors"):
        open_shards(tmp_path)


def test_eight_bit_floats_are_refused(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(4).to(torch.float8_e4m3fn)}, tmp_path / "model.safetensors")
    with pytest.raises(BadCheckpoint, match="F8_E4M3"):
        open_shards(tmp_path)


def two_shards(folder: Path) -> Path:
    parts = [{"a": torch.ones(2)}, {"b": torch.ones(3, 2).bfloat16()}]
    names = [shard_name(i, 2) for i in range(2)]
    for name, part in zip(names, parts, strict=True):
        write(folder / name, part)
    write_index(folder, [(n, {k: TensorInfo.of(t) for k, t in p.items()}) for n, p in zip(names, parts, strict=True)])
    return folder


def test_index_of_several_shards(tmp_path: Path) -> None:
    two_shards(tmp_path)
    assert read_json(tmp_path / INDEX) == {
        "metadata": {"total_parameters": 8, "total_size": 20},
        "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"},
    }
    assert [list(infos) for infos in open_shards(tmp_path).values()] == [["a"], ["b"]]


def test_the_single_file_wins_as_in_transformers(tmp_path: Path) -> None:
    write(two_shards(tmp_path) / "model.safetensors", TENSORS)
    write(tmp_path / "consolidated.safetensors", TENSORS)
    assert [p.name for p in shard_files(tmp_path)] == ["model.safetensors"]


def test_missing_shard_tensor_and_index(tmp_path: Path) -> None:
    with pytest.raises(MissingPath, match="neither"):
        shard_files(tmp_path)
    two_shards(tmp_path)
    index = read_json(tmp_path / INDEX)
    write_json(tmp_path / INDEX, {"weight_map": {**index["weight_map"], "c": "model-00002-of-00002.safetensors"}})
    with pytest.raises(BadCheckpoint, match="'c'"):
        open_shards(tmp_path)
    write_json(tmp_path / INDEX, {"weight_map": {"a": "../../secret.safetensors"}})
    with pytest.raises(BadCheckpoint, match="inside its folder"):
        open_shards(tmp_path)
    write_json(tmp_path / INDEX, {"weight_map": {}})
    with pytest.raises(BadCheckpoint, match="weight_map"):
        open_shards(tmp_path)
    write_json(tmp_path / INDEX, index)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(MissingPath, match="00002-of"):
        open_shards(tmp_path)


def test_the_same_tensor_twice_is_refused(tmp_path: Path) -> None:
    two_shards(tmp_path)
    write(tmp_path / "model-00002-of-00002.safetensors", {"a": torch.ones(1), "b": torch.ones(1)})
    with pytest.raises(BadCheckpoint, match="two shards"):
        open_shards(tmp_path)
