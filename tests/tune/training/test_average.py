"""The mean of a stage's last weights: against the checkpoints of every step, and over a kill."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from tests.tune.test_job import SMALL, make_job, place, same, tensors

from prunetune.errors import TuneError
from prunetune.tune.methods import Cpt, Distill, Grpo
from prunetune.tune.stage import run_job
from prunetune.tune.training.checkpoints import MARK

__all__ = ["place"]


def test_it_is_the_mean_of_the_last_steps_and_training_itself_is_the_same(place: Path, tmp_path: Path) -> None:
    seen: dict[int, dict[str, torch.Tensor]] = {}
    often = make_job(place, tmp_path / "plain", Cpt(**SMALL, checkpoint_minutes=1e-9))

    def look(done: int, total: int) -> None:
        before = often.work / f"checkpoint-{done - 1}"
        if (before / MARK).is_file():
            seen[done - 1] = load_file(before / "model.safetensors")

    plain = run_job(often, look)
    seen[plain.steps] = tensors(often.out)
    averaged = run_job(make_job(place, tmp_path / "averaged", Cpt(**SMALL, average=0.25)))
    assert [e["loss"] for e in averaged.log] == [e["loss"] for e in plain.log]
    assert averaged.notes == ["the weights of the last 3 of 12 steps were averaged"] and plain.notes == []
    assert plain.steps == 12 and {10, 11, 12} <= set(seen)
    for name, mean in tensors(tmp_path / "averaged").items():
        expected = torch.stack([seen[k][name].double() for k in (10, 11, 12)]).mean(0)
        assert torch.allclose(mean.double(), expected, atol=1e-6), name
        assert name.endswith("norm.weight") or not torch.allclose(mean, seen[12][name], atol=1e-6), name


def test_the_smallest_share_is_the_last_step(place: Path, tmp_path: Path) -> None:
    run_job(make_job(place, tmp_path / "plain"))
    run_job(make_job(place, tmp_path / "last", Cpt(**SMALL, average=1e-6)))
    assert same(tmp_path / "plain", tmp_path / "last")


@pytest.mark.parametrize("at", [4, 9])
def test_it_resumes_to_the_same_mean(place: Path, tmp_path: Path, at: int) -> None:
    def stop(done: int, total: int) -> None:
        if done == at:
            raise KeyboardInterrupt

    job = make_job(place, tmp_path / "out", Cpt(**SMALL, average=0.5, checkpoint_minutes=1e-9))
    with pytest.raises(KeyboardInterrupt):
        run_job(job, stop)
    run_job(job)
    run_job(make_job(place, tmp_path / "straight", Cpt(**SMALL, average=0.5)))
    assert same(tmp_path / "straight", job.out)


def test_it_is_refused_where_it_would_be_ignored(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValidationError, match="does not average"):
        Grpo(average=0.1)
    with pytest.raises(ValidationError, match="does not average"):
        Distill(mode="on_policy", average=0.1)
    monkeypatch.setattr("prunetune.tune.training.trainer.is_sharded", lambda: True)
    with pytest.raises(TuneError, match="spread over devices"):
        run_job(make_job(place, tmp_path / "out", Cpt(**SMALL, average=0.5)))
