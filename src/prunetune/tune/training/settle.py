"""Recover while it pays: warm up, hold the rate, and let it fall once the loss has flattened, or the budget ends.

The length of a stage need not be known: the rate is held until the training loss of the newest window is no longer
clearly below that of the window before, then falls to zero over a last part (warm-up, constant, short decay).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

DECAY = 0.2
"""The falling part, as a share of the steps before it."""
WINDOWS = 10
"""A window is the budget's steps over this, and at least `LEAST` steps."""
LEAST = 8


class Settle:
    """The learning rate's factor by step, and since when it falls. Its attributes are saved with the scheduler."""

    def __init__(self, steps: int, warmup: int) -> None:
        self.steps, self.warmup = steps, warmup
        self.fall = max(1, round(steps / (1 + DECAY)))  # at the latest
        self.flat = False

    @property
    def end(self) -> int:
        """Steps in all."""
        return min(self.steps, self.fall + max(1, round(self.fall * DECAY)))

    def flattened(self, step: int) -> None:
        """The loss is flat at this step: fall from here."""
        if step < self.fall:
            self.fall, self.flat = step, True

    def __call__(self, step: int) -> float:
        """The factor of the peak rate for the update after `step` updates."""
        if step < self.warmup:
            return step / self.warmup
        if step < self.fall:
            return 1.0
        return max(0.0, (self.end - step) / max(1, self.end - self.fall))


class Thermostat(TrainerCallback):
    """Watches the loss of a `Settle`d stage, and stops the stage where the schedule ends."""

    def __init__(self, settle: Settle, slope: float) -> None:
        self.settle, self.slope = settle, slope
        self.window = max(LEAST, settle.steps // WINDOWS)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        """Look at the two newest windows once each is whole and the warm-up is not among them."""
        losses = [e["loss"] for e in state.log_history if "loss" in e]
        if not self.settle.flat and is_flat(losses[self.settle.warmup :], self.window, self.slope):
            self.settle.flattened(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The end of the schedule."""
        if state.global_step >= self.settle.end:
            control.should_training_stop = True


def is_flat(losses: Sequence[float], window: int, slope: float) -> bool:
    """Whether the newest whole window's mean is not at least the share `slope` below the one before."""
    if len(losses) < 2 * window or len(losses) % window:
        return False
    before, now = losses[-2 * window : -window], losses[-window:]
    return sum(now) > (1 - slope) * sum(before)
