"""Measured speed-ups with the spread of their timings, so that noise is not called a speed-up.

A median with half an interquartile range on either side, for both models: their ratio r then lies between
r (1 - a) / (1 + b) and r (1 + a) / (1 - b), a and b being those halves relative to the medians. Where that range holds
1, nothing was shown.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from prunetune.common import units as human
from prunetune.runs.reading import RunRecord
from prunetune.runs.records import EvalRecord
from prunetune.runs.summary import TaskSpeedup, Timing, Timings

ENOUGH = 5
"""Timings a model; the spread of fewer says nothing."""


@dataclass(frozen=True)
class Speedup:
    """How many times as fast as the original, and the range that the timings' spread allows.

    Attributes:
        value: Ratio of medians.
        low: Lower end of its range; None if the spread was not recorded.
        high: Upper end.
        repeats: Timings a model; None if not recorded.
    """

    value: float
    low: float | None = None
    high: float | None = None
    repeats: int | None = None

    @property
    def is_noise(self) -> bool:
        """Whether the range holds 1, or comes of too few timings to be one."""
        if self.repeats is not None and self.repeats < ENOUGH:
            return True
        return self.low is not None and self.high is not None and self.low <= 1 <= self.high

    def text(self) -> str:
        """The ratio with its range, marked where it may as well be 1."""
        if self.repeats is not None and self.repeats < ENOUGH:
            often = "once" if self.repeats == 1 else f"{self.repeats} times"
            return f"{human.times(self.value)} (timed {often}: spread unknown)"
        if self.low is None or self.high is None:
            return human.times(self.value)
        doubt = ", not distinguishable from 1" if self.is_noise else ""
        return f"{human.times(self.value)} ({self.low:.2f}–{self.high:.2f}{doubt})"

    def short(self) -> str:
        """The ratio alone; ≈ stands before one that may as well be 1."""
        return f"{'≈ ' if self.is_noise else ''}{human.times(self.value)}"


def speedup(run: RunRecord, *keys: str) -> Speedup | None:
    """A speed-up of a run against its own original, None if it was not measured.

    Args:
        run: The run's records.
        keys: `prefill`, `decode`, `throughput`, or a task and then `question` or `token`.
    """
    value = _recorded(run, *keys)
    if value is None:
        return None
    latency = run.summary.latency or Timings()
    at = latency.batched or Timings() if keys == ("throughput",) else latency
    old, new = at.original, at.final
    if old is None or new is None:
        return Speedup(value)
    repeats = new.repeats
    a, b = (_half(m, s.eval_of(keys[0]) if s else None, keys[0]) for m, s in ((old, run.original), (new, run.final)))
    if repeats == 1 or a is None or b is None:
        return Speedup(value, repeats=repeats)
    high = value * (1 + a) / (1 - b) if b < 1 else math.inf
    return Speedup(value, value * (1 - a) / (1 + b), high, repeats)


def _recorded(run: RunRecord, kind: str, of: str | None = None) -> float | None:
    found = run.summary.speedup.get(kind)
    if isinstance(found, TaskSpeedup):
        return {"question": found.question, "token": found.token}.get(of or "")
    return found if of is None else None


def _half(timed: Timing, result: EvalRecord | None, kind: str) -> float | None:
    """Half an interquartile range relative to the median, prefill and decoding weighed as `kind` has them."""
    prefill, steps = (1.0, float((timed.new_tokens or 1) - 1)) if kind == "throughput" else (1.0, 1.0)
    if kind in ("prefill", "decode"):
        prefill, steps = float(kind == "prefill"), float(kind == "decode")
    elif result is not None and result.prompt_tokens is not None and result.new_tokens is not None:
        if not timed.prompt_tokens:
            return None
        prefill, steps = result.prompt_tokens / timed.prompt_tokens, max(0.0, result.new_tokens - 1)
    if timed.prefill_iqr_ms is None or timed.decode_iqr_ms is None:
        return None
    middle = prefill * timed.prefill_ms + steps * timed.decode_ms_per_token
    return (prefill * timed.prefill_iqr_ms + steps * timed.decode_iqr_ms) / 2 / middle
