"""A callback that tells of each step of a training: loss, rate, pace, memory, time left (`common/events.py`)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from prunetune.common.events import Journal, Pace
from prunetune.common.memory import used_bytes
from prunetune.tune.job import TuneJob

TokensAt = Callable[[int], int]
"""Optimiser steps done -> tokens trained by then."""


class Telling(TrainerCallback):
    """Writes a line of events.jsonl for a step that was logged; of several processes the first one does."""

    def __init__(self, job: TuneJob, tokens_at: TokensAt | None = None) -> None:
        told = job.telemetry
        self.journal = Journal(told.events, told.stage) if told else None
        self.action, self.tokens_at = f"tune {job.method.type}", tokens_at
        self.pace = Pace(0)
        self.before: float | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start counting, where the checkpoint left off."""
        self.pace = Pace(state.global_step)
        self.before = self.tokens_at(state.global_step) if self.tokens_at else None

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        """Write the newest loss."""
        logs, step = logs or {}, state.global_step
        if self.journal is None or not state.is_world_process_zero or "loss" not in logs:
            return
        trained = self.tokens_at(step) if self.tokens_at else logs.get("num_tokens")
        if self.before is None:  # TRL's count, which goes on from a checkpoint's
            self.before = 0 if self.pace.begun == 0 else trained
        if self.pace.due(step, state.max_steps):
            rate = (trained - self.before) / self.pace.seconds if trained is not None and self.before is not None else 0
            self.journal.write(
                kind="step",
                action=self.action,
                step=step,
                of=state.max_steps,
                left=self.pace.left(step, state.max_steps),
                loss=logs["loss"] if math.isfinite(logs["loss"]) else None,
                lr=logs.get("learning_rate"),
                tokens_per_s=round(rate, 1) if rate > 0 else None,
                memory=used_bytes(),
            )
