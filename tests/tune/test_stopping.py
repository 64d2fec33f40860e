"""A job that is told to stop saves a checkpoint at the end of the step, and its children end with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.tune.test_job import SMALL, make_job, place, same

from prunetune.common import stopping
from prunetune.tune import launch
from prunetune.tune.methods import Cpt
from prunetune.tune.stage import run_job

__all__ = ["place"]
ONE = "--cpu --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no"


def test_sigterm_saves_the_step_and_the_next_call_goes_on(place: Path, tmp_path: Path) -> None:
    method = Cpt(**SMALL)
    run_job(make_job(place, tmp_path / "whole", method))
    job = make_job(place, tmp_path / "out", method)

    def at_the_third(done: int, total: int) -> None:
        if done == 3:
            signal.raise_signal(signal.SIGTERM)

    with stopping.listening(), pytest.raises(stopping.Stopped):
        run_job(job, at_the_third)
    assert [p.parent.name for p in job.work.glob("*/whole.json")] == ["checkpoint-4"], (
        "no waiting for checkpoint_minutes"
    )
    seen: list[int] = []
    run_job(job, lambda done, total: seen.append(done))
    assert seen == list(range(5, 13)) and same(tmp_path / "whole", tmp_path / "out")


def test_children_of_children_end_too_and_get_time_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The launcher dies of SIGTERM at once; what it started goes on a while, and one ignores the signal."""
    monkeypatch.setattr(launch, "GRACE_SECONDS", 1.5)
    child = "import os, pathlib, signal, sys, time\nsignal.signal(15, lambda *a: (pathlib.Path(sys.argv[1]).write_text('saved'), sys.exit()))\nos.write(1, b'step 1 2\\n')\ntime.sleep(60)"
    deaf = "import os, signal, time\nsignal.signal(15, signal.SIG_IGN)\nos.write(1, b'step 1 2\\n')\ntime.sleep(60)"
    script = (
        "import subprocess, sys\nfor c in sys.argv[1:3]: subprocess.Popen([sys.executable, '-c', c, sys.argv[3]])\n"
        "import time\ntime.sleep(60)"
    )
    group = subprocess.Popen(
        [sys.executable, "-c", script, child, deaf, str(tmp_path / "note")],
        stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    with group:
        assert group.stdout is not None
        assert [group.stdout.readline() for _ in range(2)] == ["step 1 2\n"] * 2
        start = time.monotonic()
        launch.end_all(group)
    assert (tmp_path / "note").read_text() == "saved" and time.monotonic() - start < 10
    with pytest.raises(ProcessLookupError):
        os.killpg(group.pid, 0)


@pytest.mark.slow
def test_a_launched_job_that_is_stopped_leaves_no_process(place: Path, tmp_path: Path) -> None:
    job = make_job(place, tmp_path / "out", Cpt(**{**SMALL, "epochs": 50}))

    def at_the_second(done: int, total: int) -> None:
        if done == 2:
            raise stopping.Stopped

    with pytest.raises(stopping.Stopped):
        launch.run_launched(job, ONE, at_the_second)
    assert list(job.work.glob("*/whole.json")), "the child saved its step"
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(job.work) not in left
