"""Weights between the cut model's and the recovered ones, where recovery has raised the held-out loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tiny_run import tiny_recipe

from prunetune.common.files import temporary
from prunetune.common.progress import Watch
from prunetune.loop.context import Context, prepare
from prunetune.loop.recovery import harmless
from prunetune.loop.recovery.harmless import interpolate, no_worse
from prunetune.tune.job import TuneResult

RESULT = TuneResult(method="cpt", samples=8, tokens=100, seconds=1.0, steps=1)


@pytest.fixture
def ends(tmp_path: Path) -> tuple[Context, Path, Path]:
    """A cut model whose weights are all zero, and a recovered one whose weights are all one, in bf16 but for a norm."""
    recipe = tiny_recipe(tmp_path)
    made = []
    for name, value in (("cut", 0.0), ("tuned", 1.0)):
        at = temporary(tmp_path / name)  # as the loop makes them
        at.mkdir()
        for file in (tmp_path / "model").iterdir():
            (at / file.name).write_bytes(file.read_bytes())
        tensors = load_file(at / "model.safetensors")
        types = {n: torch.float32 if n == "model.norm.weight" else torch.bfloat16 for n in tensors}
        save_file({n: torch.full_like(t, value, dtype=types[n]) for n, t in tensors.items()}, at / "model.safetensors")
        made.append(at)
    context = prepare(recipe, tmp_path / "model", Watch(quiet=True))
    return context, made[0], made[1]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


def best_at(monkeypatch: pytest.MonkeyPatch, where: float) -> None:
    """The held-out loss is how far the weights are from `where`."""

    def loss(context: Context, folder: Path) -> float:
        return abs(next(context.load(folder).parameters()).mean().item() - where)

    monkeypatch.setattr(harmless, "loss_of", loss)


@pytest.mark.parametrize(
    ("where", "stays"), [(0.8, 1.0), (0.5, 1.0), (0.4, 0.5), (0.2, 0.25), (0.1, 0.125), (0.01, 0.0)]
)
def test_the_first_of_the_halvings_that_does_no_harm_stays(
    ends: Any, tmp_path: Path, monkeypatch: Any, where: float, stays: float
) -> None:
    context, cut, tuned = ends
    best_at(monkeypatch, where)
    (tmp_path / ".tuned-0").mkdir()
    result = no_worse(context, cut, tuned, tmp_path / ".tuned-0", RESULT)
    assert {float(v) for t in weights(tuned).values() for v in t.unique()} == {stays}
    assert {t.dtype for t in weights(tuned).values()} == {torch.float32, torch.bfloat16}
    assert not list((tmp_path / ".tuned-0").iterdir())
    said = " ".join(result.notes)
    assert (said == "") == (stays == 1.0) and ("undone" in said) == (stays == 0.0)
    if 0 < stays < 1:
        assert f"from {where:.4f} to {1 - where:.4f}: {stays:.3g} of the way" in said
    context.load(tuned)  # plain transformers


def test_a_share_of_the_way_is_taken_in_fp32_tensor_by_tensor(tmp_path: Path) -> None:
    gen = torch.Generator().manual_seed(0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        tensors = {n: torch.randn(5, 3, generator=gen).bfloat16() for n in "xy"} | {"ids": torch.arange(4) + len(name)}
        save_file(tensors, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text(json.dumps({"of": name}))
    interpolate(tmp_path / "a", tmp_path / "b", 0.25, tmp_path / "out")
    a, b, out = (weights(tmp_path / n) for n in ("a", "b", "out"))
    for name in "xy":
        exact = 0.75 * a[name].float() + 0.25 * b[name].float()
        assert torch.equal(out[name], exact.bfloat16()), name
    assert torch.equal(out["ids"], b["ids"])
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {"of": "b"}
