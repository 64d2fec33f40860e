"""Trackers of experiments, by the integrations of transformers (each step) and accelerate (each round's figures).

    check_trackers(("wandb", "tensorboard"))          # MissingExtra for what is not installed
    with tracking(job):                               # around a trainer: where files go, what the run is called
        trainer = Trainer(args=TrainingArguments(report_to=reported(job.telemetry.log), ...))
    log_figures(("wandb",), run, stage="01-…", index=1, figures={"accuracy/gsm8k": 0.61})

A name that is no tracker is a plugin's `callback`: called without arguments, it gives a `transformers.TrainerCallback`.
What the libraries read from the environment (WANDB_MODE, WANDB_PROJECT, TRACKIO_DIR, …) stays as the user has set it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunetune.common.plugins import lookup
from prunetune.errors import MissingExtra
from prunetune.tune.job import TuneJob

if TYPE_CHECKING:
    from transformers import TrainerCallback

TRACKERS = ("tensorboard", "trackio", "wandb")
PROJECT = "prunetune"
LOGS = "logs"
"""Folder in a run folder for the files of TensorBoard and of wandb. Trackio has a place of its own (TRACKIO_DIR)."""


def check_trackers(names: Sequence[str]) -> None:
    """UnknownName for what is neither a tracker nor a plugin's callback; MissingExtra for a tracker not installed."""
    for name in names:
        if name in TRACKERS:
            if importlib.util.find_spec(name) is None:
                raise MissingExtra(name, "track", f"log: {name}")
        else:
            lookup("callback", dict.fromkeys(TRACKERS), name, "tracker or callback")


def reported(names: Sequence[str]) -> list[str]:
    """What transformers is to report to."""
    return [name for name in names if name in TRACKERS]


def plugged_callbacks(names: Sequence[str]) -> list[TrainerCallback]:
    """A new callback of each plugin that is named."""
    return [lookup("callback", {}, name, "callback")() for name in names if name not in TRACKERS]


def run_name(job: TuneJob) -> str | None:
    """What a tracker calls a job: run, round and method."""
    told = job.telemetry
    return f"{told.run}/{told.stage}-{job.method.type}" if told and told.log else None


@contextmanager
def tracking(job: TuneJob) -> Iterator[None]:
    """Around a trainer: the trackers' files go into the run folder, and a run of wandb ends with the job."""
    told = job.telemetry
    names = reported(told.log) if told else []
    if told is None or not names:
        yield
        return
    place = told.events.parent / LOGS
    with _environment(place, TENSORBOARD_LOGGING_DIR=str(place / f"{told.stage}-{job.method.type}")):
        try:
            yield
        finally:
            if "wandb" in names:
                import wandb

                wandb.finish()


@contextmanager
def _environment(place: Path, **more: str) -> Iterator[None]:
    """Settings of the trackers that the user has not set; what they print is no result of ours, so not for stdout."""
    wanted = {"WANDB_DIR": str(place), "WANDB_PROJECT": PROJECT, "WANDB_SILENT": "true", **more}
    ours = {k: v for k, v in wanted.items() if k not in os.environ}
    place.mkdir(parents=True, exist_ok=True)
    os.environ.update(ours)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


def log_figures(
    names: Sequence[str], run: Path, *, stage: str, index: int, figures: Mapping[str, float | int | None]
) -> None:
    """Give a finished round's figures to the trackers, as a run of its own: a kill between two rounds loses nothing.

    Args:
        names: As in a recipe's `log`; callbacks of plugins hear of training alone.
        run: The run folder.
        stage: Folder of the round.
        index: Of the round, which is the step.
        figures: Name -> value; what is None is left out.
    """
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    values = {k: v for k, v in figures.items() if v is not None}
    name = f"{run.name}/{stage}"
    with _environment(run / LOGS):
        PartialState()
        for each in reported(names):
            made: dict[str, Any] = {
                "tensorboard": lambda kind: kind(stage, run / LOGS),
                "wandb": lambda kind: kind(os.environ["WANDB_PROJECT"], name=name, group=run.name),
                "trackio": lambda kind: kind(PROJECT, name=name, resume="allow"),
            }
            tracker = made[each](LOGGER_TYPE_TO_CLASS[each])
            tracker.start()
            tracker.log(values, step=index)
            if each == "trackio":  # its tracker would be ended once more, and told of, as the process ends
                import trackio

                trackio.finish()
            else:
                tracker.finish()
