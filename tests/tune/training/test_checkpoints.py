"""Killed anywhere, a job goes on from its newest whole checkpoint and ends with the tensors of an undisturbed run."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.tune.test_job import SMALL, make_job, place, same

from prunetune.errors import NotWritable, TuneError
from prunetune.tune.__main__ import main
from prunetune.tune.job import TuneJob, read_result, result_path
from prunetune.tune.methods import Cpt
from prunetune.tune.stage import run_job
from prunetune.tune.training.checkpoints import MARK, newest_checkpoint
from prunetune.tune.training.trainer import BoundedTrainer

__all__ = ["place"]
OFTEN = Cpt(**SMALL, checkpoint_minutes=1e-9)


def test_killed_with_signal_9(place: Path, tmp_path: Path) -> None:
    straight = run_job(make_job(place, tmp_path / "straight"))
    job = make_job(place, tmp_path / "out", OFTEN)
    job.write(tmp_path / "job.json")
    command = [sys.executable, "-m", "prunetune.tune", str(tmp_path / "job.json")]
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if line == "step 7 12\n":
                child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL and not job.out.exists()
    steps = [int(p.name.rpartition("-")[2]) for p in job.work.glob("checkpoint-*") if (p / MARK).exists()]
    assert 1 <= len(steps) <= 3 and max(steps) >= 5

    seen: list[int] = []
    result = run_job(TuneJob.read(tmp_path / "job.json"), lambda done, total: seen.append(done))
    assert seen[0] > 5, "it must go on, not start again"
    assert same(tmp_path / "straight", job.out)
    assert [e["loss"] for e in result.log] == [e["loss"] for e in straight.log]
    assert result.tokens == straight.tokens and result.samples == straight.samples


def test_as_a_process_the_result_is_left_as_json(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = make_job(place, tmp_path / "out", end=16)
    job.write(tmp_path / "job.json")
    assert main([str(tmp_path / "job.json")]) == 0
    assert capsys.readouterr().out == "step 1 2\nstep 2 2\n"
    assert read_result(result_path(job)).steps == 2
    make_job(place, tmp_path / "b", start=5, end=5).write(tmp_path / "bad.json")
    assert main([str(tmp_path / "bad.json")]) == 2 == main([])
    assert "there is no data to train on" in capsys.readouterr().err


def test_stopped_while_saving_and_with_changed_settings(place: Path, tmp_path: Path) -> None:
    job = make_job(place, tmp_path / "out", OFTEN)

    def stop(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job(job, stop)
    newest = max(job.work.glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]))
    (newest / MARK).unlink()  # as if killed before the last file of the newest checkpoint
    seen: list[int] = []
    run_job(job, lambda done, total: seen.append(done))
    assert seen[0] == int(newest.name.rpartition("-")[2])
    run_job(make_job(place, tmp_path / "straight"))
    assert same(tmp_path / "straight", job.out)
    assert newest_checkpoint(job.work, "another job") == (None, 0.0)
    assert not list(job.work.glob("checkpoint-*"))


def test_no_space_for_a_checkpoint_is_one_message_and_the_job_can_go_on(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(place, tmp_path / "out", OFTEN, end=32)
    room = iter([10**12, 10**12, 10**12, 1000])  # before it begins, and before each checkpoint
    usage = type("Usage", (), {})

    def disk_usage(path: Path) -> object:
        found = usage()
        found.free = next(room)
        return found

    with monkeypatch.context() as patch:
        patch.setattr("prunetune.common.disk.shutil.disk_usage", disk_usage)
        with pytest.raises(NotWritable, match="no space left for a checkpoint"):
            run_job(job)
    seen: list[int] = []
    run_job(job, lambda done, total: seen.append(done))
    assert seen == [3, 4]


def test_a_loss_that_is_nan_ends_the_job_and_keeps_the_last_good_state(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute, calls = BoundedTrainer.compute_loss, []

    def poisoned(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        loss = compute(self, *args, **kwargs)
        return loss * math.nan if len(calls) == 9 else loss  # two forward passes a step: the fifth step

    monkeypatch.setattr(BoundedTrainer, "compute_loss", poisoned)
    job = make_job(place, tmp_path / "out", OFTEN)
    with pytest.raises(
        TuneError, match=r"the loss is nan .* at step 5; .* the checkpoint of step 4 beside it is whole"
    ):
        run_job(job)
    assert not job.out.exists()
    log = json.loads((job.work / "diverged" / "log.json").read_text(), parse_constant=pytest.fail)
    assert log[-1]["loss"] == "nan"
    assert (job.work / "checkpoint-4" / MARK).is_file() and not (job.work / "checkpoint-5").exists()
    monkeypatch.undo()
    assert run_job(job).steps == 12, "it goes on from there once the cause is gone"
