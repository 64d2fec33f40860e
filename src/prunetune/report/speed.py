"""Measured speed-ups with their intervals, so that noise is not called a speed-up.

Two models were timed one straight after the other in every repeat. The ratio of the two times in each repeat gives the
median speed-up and its 95 % interval (`common.stats.paired_ratio`); where that holds 1, nothing was shown.

Records of versions before that have medians and interquartile ranges alone. A median with half an interquartile range
on either side, for both models: their ratio r then lies between r (1 - a) / (1 + b) and r (1 + a) / (1 - b), a and b
being those halves relative to the medians.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from prunetune.common import units as human
from prunetune.common.stats import paired_ratio
from prunetune.runs.reading import RunRecord
from prunetune.runs.records import EvalRecord, StageRecord
from prunetune.runs.summary import TaskSpeedup, Timing, Timings

ENOUGH = 5
"""Timings a model; the spread of fewer says nothing."""


@dataclass(frozen=True)
class Speedup:
    """How many times as fast as the original, and the interval that the timings allow.

    Attributes:
        value: Median of the repeats' ratios (in older records the ratio of medians).
        low: Lower end of its interval; None if the spread is not known.
        high: Upper end.
        repeats: Timings a model; None if not recorded.
        note: What else decided the figure, such as answers that ran into the length limit.
    """

    value: float
    low: float | None = None
    high: float | None = None
    repeats: int | None = None
    note: str = ""

    @property
    def _unknown(self) -> bool:
        """Whether there are too few timings to tell their spread."""
        return self.repeats is not None and (self.repeats < ENOUGH or self.low is None)

    @property
    def is_noise(self) -> bool:
        """Whether the range holds 1, or comes of too few timings to be one."""
        if self._unknown:
            return True
        return self.low is not None and self.high is not None and self.low <= 1 <= self.high

    def text(self) -> str:
        """The ratio with its interval, marked where it may as well be 1, and what else decided it."""
        return f"{self._figure()}{f'; {self.note}' if self.note else ''}"

    def _figure(self) -> str:
        if self._unknown:
            often = "once" if self.repeats == 1 else f"{self.repeats} times"
            return f"{human.times(self.value)} (timed {often}: spread unknown)"
        if self.low is None or self.high is None:
            return human.times(self.value)
        doubt = ", not distinguishable from 1" if self.is_noise else ""
        return f"{human.times(self.value)} ({self.low:.2f}–{self.high:.2f}{doubt})"

    def short(self) -> str:
        """The ratio alone; ≈ stands before one that may as well be 1, and cut answers are named after it."""
        return f"{'≈ ' if self.is_noise else ''}{human.times(self.value)}{' (answers cut)' if self.note else ''}"


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
    results = [stage.eval_of(keys[0]) if stage else None for stage in (run.original, run.final)]
    found = timed_speedup(old, new, keys[0], results[0], results[1], token=keys[-1] == "token") or _by_spread(
        value, (old, results[0]), (new, results[1]), keys[0]
    )
    return replace(found, note=cut_short(results[0], results[1])) if keys[-1] == "question" else found


def timed_speedup(
    old: Timing,
    new: Timing,
    kind: str,
    before: EvalRecord | None = None,
    after: EvalRecord | None = None,
    *,
    token: bool = False,
) -> Speedup | None:
    """The speed-up from the repeats themselves; None where they were not recorded.

    Args:
        old: Timings of the original.
        new: Of the other model, in the same repeats.
        kind: `prefill`, `decode`, `throughput`, or a task.
        before: The original's result on that task: its lengths weigh prefill and decoding.
        after: The other model's.
        token: A generated token's, not a question's.
    """
    a, b = _each(old, kind, before, token), _each(new, kind, after, token)
    if not a or len(a) != len(b):
        return None
    found = paired_ratio(a, b)
    return Speedup(found.value, found.low, found.high, found.n)


def speedups(latency: Timings, original: StageRecord, final: StageRecord) -> dict[str, float | TaskSpeedup]:
    """summary.json's `speedup`: prefill, decode, throughput, and of each task a question and a generated token.

    `question` counts that a model may answer shorter or longer; `token` does not.
    """

    def value(timings: Timings | None, kind: str, token: bool = False) -> float | None:
        if timings is None or timings.original is None or timings.final is None:
            return None
        results = original.eval_of(kind), final.eval_of(kind)
        found = timed_speedup(timings.original, timings.final, kind, *results, token=token)
        if found is not None:
            return found.value
        old, new = (_middle(t, kind, e, token) for t, e in zip((timings.original, timings.final), results, strict=True))
        return old / new if old and new else None

    found: dict[str, float | TaskSpeedup | None] = {k: value(latency, k) for k in ("prefill", "decode")}
    found["throughput"] = value(latency.batched, "throughput")
    for e in original.evals:
        if final.eval_of(e.task) is not None and e.is_share:
            question, token = value(latency, e.task), value(latency, e.task, token=True)
            found[e.task] = TaskSpeedup(question=question, token=token) if question and token else None
    return {k: v for k, v in found.items() if v}


def cut_short(before: EvalRecord | None, after: EvalRecord | None) -> str:
    """Which answers ran into the length limit: a question's time then tells of the limit, not of the model."""
    cuts = [
        f"{e.truncated:,} of {e.n:,} of the {name}"
        for name, e in (("original", before), ("compacted model", after))
        if e is not None and e.truncated and e.n
    ]
    return f"answers cut at the length limit: {', '.join(cuts)}" if cuts else ""


def _recorded(run: RunRecord, kind: str, of: str | None = None) -> float | None:
    found = run.summary.speedup.get(kind)
    if isinstance(found, TaskSpeedup):
        return {"question": found.question, "token": found.token}.get(of or "")
    return found if of is None else None


def _weights(timed: Timing, kind: str, result: EvalRecord | None) -> tuple[float, float] | None:
    """How often a prefill and a decode step count in what `kind` times; None where lengths were not recorded."""
    if kind in ("prefill", "decode"):
        return float(kind == "prefill"), float(kind == "decode")
    if kind == "throughput":
        return 1.0, float((timed.new_tokens or 1) - 1)
    if result is None or result.prompt_tokens is None or result.new_tokens is None or not timed.prompt_tokens:
        return None
    return result.prompt_tokens / timed.prompt_tokens, max(0.0, result.new_tokens - 1)


def _each(timed: Timing, kind: str, result: EvalRecord | None, token: bool) -> list[float]:
    """What `kind` took in each repeat, in milliseconds; empty where that is not known."""
    weights = _weights(timed, kind, result)
    if weights is None or len(timed.prefill_each_ms) != len(timed.decode_each_ms):
        return []
    share = max(1.0, result.new_tokens or 1.0) if token and result is not None else 1.0
    pairs = zip(timed.prefill_each_ms, timed.decode_each_ms, strict=True)
    return [(weights[0] * p + weights[1] * d) / share for p, d in pairs]


def _middle(timed: Timing, kind: str, result: EvalRecord | None, token: bool) -> float | None:
    """The same from the medians alone (older records)."""
    alone = timed.model_copy(
        update={"prefill_each_ms": (timed.prefill_ms,), "decode_each_ms": (timed.decode_ms_per_token,)}
    )
    return next(iter(_each(alone, kind, result, token)), None)


def _by_spread(
    value: float, old: tuple[Timing, EvalRecord | None], new: tuple[Timing, EvalRecord | None], kind: str
) -> Speedup:
    """The range of an older record, from medians and interquartile ranges."""
    repeats = new[0].repeats
    a, b = (_half(timed, result, kind) for timed, result in (old, new))
    if repeats == 1 or a is None or b is None:
        return Speedup(value, repeats=repeats)
    high = value * (1 + a) / (1 - b) if b < 1 else math.inf
    return Speedup(value, value * (1 - a) / (1 + b), high, repeats)


def _half(timed: Timing, result: EvalRecord | None, kind: str) -> float | None:
    """Half an interquartile range relative to the median, prefill and decoding weighed as `kind` has them."""
    if kind not in ("prefill", "decode", "throughput") and result is not None and not timed.prompt_tokens:
        return None
    prefill, steps = _weights(timed, kind, result) or (1.0, 1.0)
    if timed.prefill_iqr_ms is None or timed.decode_iqr_ms is None:
        return None
    middle = prefill * timed.prefill_ms + steps * timed.decode_ms_per_token
    return (prefill * timed.prefill_iqr_ms + steps * timed.decode_iqr_ms) / 2 / middle
