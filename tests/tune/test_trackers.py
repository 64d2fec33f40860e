"""Trackers: each that is installed writes a run offline, of training steps and of a round; others are refused."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
from tests.tiny import tiny_folder
from tests.tiny_run import rows

from prunetune.data.stream import FileData
from prunetune.errors import MissingExtra, UnknownName
from prunetune.tune import trackers
from prunetune.tune.job import Telemetry, TuneJob
from prunetune.tune.methods import Cpt
from prunetune.tune.stage import run_job
from prunetune.tune.trackers import TRACKERS, check_trackers, log_figures

FIGURES = {"accuracy/sums": 0.5, "params": 1234, "held_out_loss": None}


def read_tensorboard(at: Path) -> dict[str, list[float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(at)).Reload()
    return {tag: [e.value for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def in_tensorboard(run: Path) -> tuple[list[float], float]:
    (folder,) = (run / "logs").glob("01-w-cpt*")
    return read_tensorboard(folder)["train/loss"], read_tensorboard(run / "logs" / "01-w")["accuracy/sums"][0]


def in_wandb(run: Path) -> tuple[list[float], float]:
    """Of the records on disk, in wandb's own log format: a key, and its value as JSON behind it."""
    data = b"".join(p.read_bytes() for p in (run / "logs" / "wandb").glob("offline-run-*/*.wandb"))
    number = rb"[^\d]{1,8}(\d+\.\d+)"
    losses = re.findall(rb"train/loss" + number, data)
    right = re.findall(rb"accuracy/sums" + number, data)
    return list(dict.fromkeys(map(float, losses))), float(right[0])


def in_trackio(run: Path) -> tuple[list[float], float]:
    from trackio.sqlite_storage import SQLiteStorage

    steps = SQLiteStorage.get_logs("prunetune", f"{run.name}/01-w-cpt")
    figures = SQLiteStorage.get_logs("prunetune", f"{run.name}/01-w")
    return [r["train/loss"] for r in steps if "train/loss" in r], figures[0]["accuracy/sums"]


READ = {"tensorboard": in_tensorboard, "wandb": in_wandb, "trackio": in_trackio}


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory: Any) -> Any:
    """Before the first of them is imported, which is when trackio chooses its folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("TRACKIO_DIR", str(tmp_path_factory.mktemp("trackio")))
        yield


@pytest.fixture
def job(tmp_path: Path) -> TuneJob:
    tiny_folder(tmp_path / "model", "llama")
    told = Telemetry(events=tmp_path / "run" / "events.jsonl", stage="01-w", run="run")
    (tmp_path / "run").mkdir()
    return TuneJob(
        model=tmp_path / "model",
        out=tmp_path / "tuned",
        work=tmp_path / "work",
        method=Cpt(batch_size=8, max_length=64),
        sources=(FileData(path=str(rows(tmp_path / "rows.jsonl", 24))),),
        telemetry=told,
    )


@pytest.mark.parametrize("name", TRACKERS)
@pytest.mark.filterwarnings("ignore")
def test_each_tracker_writes_a_run_offline(name: str, job: TuneJob, tmp_path: Path, capsys: Any) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"pip install {name}")
    assert job.telemetry is not None
    told = job.telemetry.model_copy(update={"log": (name,)})
    result = run_job(job.model_copy(update={"telemetry": told}))
    log_figures((name,), tmp_path / "run", stage="01-w", index=1, figures=FIGURES)
    losses, accuracy = READ[name](tmp_path / "run")
    assert losses == pytest.approx([e["loss"] for e in result.log], rel=1e-5)
    assert len(losses) == 3
    assert accuracy == 0.5
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_that_is_not_installed_is_refused_with_its_pip_name(name: str, monkeypatch: Any) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda n: None if n == name else real(n))
    with pytest.raises(MissingExtra, match=f"pip install {name}"):
        check_trackers([name])


def test_what_is_no_tracker_is_told_with_what_there_is() -> None:
    with pytest.raises(UnknownName, match="trackio"):
        check_trackers(["trackioo"])
    check_trackers([])


def test_nobody_is_told_of_what_decides_nothing(job: TuneJob) -> None:
    """A checkpoint of a run goes on when the trackers change."""
    from prunetune.tune.training.checkpoints import job_key

    assert job_key(job) == job_key(job.model_copy(update={"telemetry": None}))
