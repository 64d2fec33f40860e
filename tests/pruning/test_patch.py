"""A patch survives the disk; anything else is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from prunetune.errors import BadCheckpoint, MissingPath
from prunetune.pruning.patch import LayerFit, Patch


def test_patch_survives_the_disk(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(4, 3).T, "b": torch.randn(2).bfloat16()}
    patch = Patch(tensors, (LayerFit(0, 0.1, 0.5, 0.25), LayerFit(2, None, 0.5, 0.5)), tokens=7, held_out_tokens=3)
    patch.write(tmp_path / "patch.safetensors")
    again = Patch.read(tmp_path / "patch.safetensors")
    assert (again.fits, again.tokens, again.held_out_tokens) == (patch.fits, 7, 3)
    assert again.tensors.keys() == tensors.keys()
    assert all(torch.equal(t, again.tensors[n]) and t.dtype == again.tensors[n].dtype for n, t in tensors.items())


def test_a_patch_without_tensors(tmp_path: Path) -> None:
    Patch({}, (), 0, 0).write(tmp_path / "patch.safetensors")
    assert Patch.read(tmp_path / "patch.safetensors") == Patch({}, (), 0, 0)


def test_what_is_no_patch(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(MissingPath):
        Patch.read(tmp_path / "none")
    (tmp_path / "bad").write_bytes(b"no safetensors")
    with pytest.raises(BadCheckpoint, match="not a patch"):
        Patch.read(tmp_path / "bad")
    save_file({"a": torch.zeros(2)}, tmp_path / "plain")
    with pytest.raises(BadCheckpoint, match="not a patch"):
        Patch.read(tmp_path / "plain")
