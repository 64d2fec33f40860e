"""Trainer callbacks: checkpoints that count only once whole, progress, and the guard against divergence."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from prunetune.common import stopping
from prunetune.common.files import check_space, json_sha, read_json, remove, write_json
from prunetune.common.strict_json import spelled, to_json_text
from prunetune.errors import TuneError
from prunetune.models.folders import model_sha
from prunetune.tune.job import Progress, TuneJob

MARK = "whole.json"
"""Written into a checkpoint after everything else: {key, seconds}. Without it a checkpoint was killed while saving."""


def job_key(job: TuneJob, *more: object) -> str:
    """What a checkpoint must agree on to be gone on from: the job, its input's weights, the shape of a step."""
    places = {"model", "out", "work", "device", "telemetry"}
    return json_sha([job.model_dump(mode="json", exclude=places), model_sha(job.model), [str(m) for m in more]])


def newest_checkpoint(work: Path, key: str) -> tuple[str | None, float]:
    """The newest whole checkpoint of the same job, and the seconds trained before it. All others are removed."""
    best: tuple[int, str, float] | None = None
    for path in sorted(work.glob("checkpoint-*")):
        note = read_json(path / MARK) if (path / MARK).is_file() else {}
        if note.get("key") != key:
            remove(path)
            continue
        step = int(path.name.rpartition("-")[2])
        if best is None or step > best[0]:
            best = (step, str(path), float(note["seconds"]))
    return (best[1], best[2]) if best else (None, 0.0)


class Clock(TrainerCallback):
    """Asks for a checkpoint every `every_s` seconds, and before it stops, and marks it when it is whole."""

    def __init__(self, work: Path, key: str, every_s: float, before_s: float, copies: int = 3) -> None:
        self.work, self.key, self.every_s, self.before_s = work, key, every_s, before_s
        self.copies = copies  # of the trained weights, fp32: themselves, two moments, and what else is saved
        self.begin = self.last = time.monotonic()
        self.stop = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start counting."""
        self.begin = self.last = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Decide; over several processes the first decides for all."""
        self.stop = stopping.asked() is not None
        due = (self.stop or time.monotonic() - self.last >= self.every_s) and state.global_step < state.max_steps
        if due and state.is_world_process_zero:
            self._check_space(kwargs["model"])
        if args.world_size > 1:
            flags = torch.tensor([float(due), float(self.stop)], device=args.device)
            torch.distributed.broadcast(flags, 0)
            due, self.stop = map(bool, flags.tolist())
        control.should_save = control.should_save or due

    def _check_space(self, model: torch.nn.Module) -> None:
        """Better to stop before a checkpoint than in the midst of it."""
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        check_space(self.work, 4 * self.copies * trained + (1 << 20), "a checkpoint")

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """All files of the checkpoint are written: mark it."""
        if state.is_world_process_zero:
            path = self.work / f"checkpoint-{state.global_step}" / MARK
            write_json(path, {"key": self.key, "seconds": self.before_s + time.monotonic() - self.begin})
        self.last = time.monotonic()
        if self.stop:
            stopping.stop()


class Deadline(TrainerCallback):
    """Ends training after so many seconds, at the next step; over several processes the first decides for all."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Look at the clock."""
        over = time.monotonic() >= self.end
        if args.world_size > 1:
            flag = torch.tensor([float(over)], device=args.device)
            torch.distributed.broadcast(flag, 0)
            over = bool(flag.item())
        control.should_training_stop = control.should_training_stop or over


class Steps(TrainerCallback):
    """Reports (done, total) after every optimiser step."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress = progress

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Report."""
        if self.progress is not None and state.is_world_process_zero:
            self.progress(state.global_step, state.max_steps)


class Guard(TrainerCallback):
    """Stops a stage whose loss is not finite or has risen `limit` nats above its lowest (means of eight steps)."""

    SPAN = 8

    def __init__(self, work: Path, limit: float) -> None:
        self.work, self.limit = work, limit
        self.batch: Callable[[], list[torch.Tensor]] = list

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        """Look at the newest loss."""
        losses = [e["loss"] for e in state.log_history if "loss" in e]
        if not losses or "loss" not in (logs or {}):
            return
        norm = logs.get("grad_norm", 0.0)
        if not math.isfinite(losses[-1]) or not math.isfinite(norm):
            self._stop(state, f"the loss is {losses[-1]} and the gradient's norm {norm} at step {state.global_step}")
        means = [sum(losses[i : i + self.SPAN]) / self.SPAN for i in range(len(losses) - self.SPAN + 1)]
        if means and means[-1] > min(means) + self.limit:
            self._stop(state, f"the loss rose from {min(means):.2f} to {means[-1]:.2f} by step {state.global_step}")

    def _stop(self, state: TrainerState, what: str) -> None:
        folder = self.work / "diverged"
        if state.is_world_process_zero:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / "log.json", spelled(state.log_history))
            rows = [ids.tolist() for ids in self.batch()]
            (folder / "batch.json").write_text(to_json_text(rows, indent=None), encoding="utf-8")
        kept = max((int(p.parent.name.rpartition("-")[2]) for p in self.work.glob(f"checkpoint-*/{MARK}")), default=0)
        good = f"the checkpoint of step {kept} beside it is whole" if kept else "no checkpoint was due before it"
        raise TuneError(
            f"recovery diverged: {what}; its input is as it was, and {good}",
            value=str(folder),
            fix="lower learning_rate, raise warmup, or look at the batch and log saved in this folder",
        )
