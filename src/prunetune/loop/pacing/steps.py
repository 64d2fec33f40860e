"""How fast one recovery method trains here: a few of its optimiser steps, by a job like the run's.

found = tuning(context, 0, method, folder, Path(at) / "tune", ())     # found.each: seconds a token; None: not timed
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunetune.loop.context import Context
from prunetune.models.prompt import encode
from prunetune.recipe.traces import questions
from prunetune.tune.job import TuneJob
from prunetune.tune.launch import launch
from prunetune.tune.methods import TuneConfig

STEP_FLOPS = 1e12
"""A timed optimiser step is so large at most, and no larger than the recipe's."""
STEPS = 3
"""Timed optimiser steps; the first is warm-up."""


@dataclass(frozen=True)
class Tuning:
    """How one recovery method trains: seconds a token (`grpo`: a prompt), and seconds a job beside training."""

    each: float
    beside: float
    tokens_a_sample: float


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """(seconds, what it has made)."""
    start = time.perf_counter()
    made = work()
    return time.perf_counter() - start, made


def tuning(
    context: Context, place: int, method: TuneConfig, model: Path, at: Path, kept: tuple[int, ...]
) -> Tuning | None:
    """A few optimiser steps, by a job like the run's; None for a method whose steps are too long to be timed (grpo).

    Args:
        context: The run.
        place: Of the method in the recipe.
        method: With the settings that it trains with.
        model: A folder of the shape that is trained.
        at: A folder that does not exist yet; what is left in it is of no use.
        kept: The original's layers that the model has.
    """
    if method.type == "grpo":
        return None
    stream = context.own.get(place, context.stream)
    first = 0 if place in context.own else context.reserved
    sample = stream.take(first, min(len(stream), first + 64))
    lengths = [len(encode(context.tokenizer, e, context.recipe.prompt, method.max_length).input_ids) for e in sample]
    mean = sum(lengths) / len(lengths)
    wanted = STEP_FLOPS / (6 * context.sizes.original * mean)
    step = max(d for d in range(1, method.batch_size + 1) if method.batch_size % d == 0 and d <= max(1, wanted))
    end = min(len(stream), first + STEPS * step)
    changes: dict[str, Any] = {
        "samples": None, "tokens": None, "per": "round", "when": "every", "data": None, "epochs": 1,
        "batch_size": step, "micro_batch_size": None, "average": 0.0, "replay": None,
    }  # fmt: skip
    job = TuneJob(
        model=model,
        out=at / "out",
        work=at / "work",
        method=method.changed(**changes),
        sources=tuple(questions(method.data or context.recipe.data)),
        data_seed=context.recipe.seed,
        start=first,
        end=end,
        seed=context.recipe.seed,
        fmt=context.recipe.prompt,
        teacher=context.source,
        origins=kept,
        device=context.recipe.device,
    )
    ticks: list[float] = []
    at.mkdir(parents=True)
    whole, result = timed(
        lambda: launch(job, context.recipe.launcher, lambda done, total: ticks.append(time.perf_counter()))
    )
    a_step = (ticks[-1] - ticks[0]) / (len(ticks) - 1) if len(ticks) > 1 else result.seconds
    return Tuning(a_step * result.steps / result.tokens, max(whole - result.seconds, 0.0), mean)
