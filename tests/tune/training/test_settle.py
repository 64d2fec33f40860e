"""The rate holds until the loss is flat, then falls; a killed stage falls from the same step."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError
from tests.tune.test_job import SMALL, make_job, place, same

from prunetune.tune.methods import Cpt, Grpo
from prunetune.tune.stage import run_job
from prunetune.tune.training.settle import Settle, is_flat

__all__ = ["place"]


def test_the_rate_warms_up_holds_and_falls_by_the_end_of_the_budget() -> None:
    s = Settle(steps=12, warmup=2)
    assert (s.fall, s.end) == (10, 12)
    assert [s(i) for i in range(13)] == [0, 0.5, *[1.0] * 9, 0.5, 0.0]


def test_a_flat_loss_brings_the_fall_forward_once() -> None:
    s = Settle(steps=120, warmup=0)
    s.flattened(40)
    assert (s.fall, s.end, s.flat) == (40, 48, True)
    assert (s(39), s(40), s(44), s(48)) == (1.0, 1.0, 0.5, 0.0)
    s.flattened(60)
    assert s.fall == 40


@pytest.mark.parametrize(
    ("losses", "flat"),
    [
        ([2.0, 2.0, 1.0, 1.0], False),
        ([2.0, 2.0, 1.97, 1.97], True),  # 1.5 % lower, and 2 % are asked for
        ([2.0, 2.0, 1.95, 1.95], False),
        ([2.0, 2.0, 3.0, 3.0], True),
        ([2.0, 2.0, 2.0], False),  # the window is not whole
        ([2.0, 2.0], False),
    ],
)
def test_flat_compares_whole_windows(losses: list[float], flat: bool) -> None:
    assert is_flat(losses, 2, 0.02) is flat


def test_a_stage_that_learns_nothing_ends_early_and_counts_what_it_trained(place: Path, tmp_path: Path) -> None:
    settings = SMALL | {"learning_rate": 1e-12, "warmup": 0.0, "batch_size": 2, "micro_batch_size": 2, "until": "flat"}
    result = run_job(make_job(place, tmp_path / "out", Cpt(**settings)))
    full = run_job(make_job(place, tmp_path / "full", Cpt(**{**settings, "until": "budget"})))
    assert result.steps < full.steps
    assert result.tokens < full.tokens
    assert len(result.log) == result.steps
    assert result.log[-1]["lr"] < 1e-12  # it fell
    assert "flattened" in result.notes[-1]


def test_a_stage_that_still_learns_uses_its_budget(place: Path, tmp_path: Path) -> None:
    result = run_job(make_job(place, tmp_path / "out", Cpt(**SMALL, until="flat", slope=0.0)))
    full = run_job(make_job(place, tmp_path / "full", Cpt(**SMALL)))
    assert (result.steps, result.tokens) == (full.steps, full.tokens)


def test_it_resumes_to_the_same_weights(place: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 19:
            raise KeyboardInterrupt

    settings = SMALL | {"learning_rate": 1e-12, "warmup": 0.0, "batch_size": 2, "micro_batch_size": 2, "until": "flat"}
    often = make_job(place, tmp_path / "out", Cpt(**settings, checkpoint_minutes=1e-9))
    with pytest.raises(KeyboardInterrupt):
        run_job(often, stop)
    resumed = run_job(often)
    straight = run_job(make_job(place, tmp_path / "straight", Cpt(**settings)))
    assert resumed.steps == straight.steps
    assert same(tmp_path / "straight", often.out)


def test_grpo_has_no_such_end() -> None:
    with pytest.raises(ValidationError, match="ends with its budget"):
        Grpo(until="flat")
