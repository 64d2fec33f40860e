"""How fast this machine does each kind of work of a run: a few batches of it, by the functions that the run uses.

    pace = measured(context)          # Pace: seconds a unit of each kind; tens of seconds at most on a small model
    minutes(context, pace).total      # minutes.py: what a run takes of it

Scoring and compensation are timed on two layers and counted for all; recovery on a cut model of the final shape, which
is made of whatever units come first.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from prunetune.evaluation.evaluate import guess_batch
from prunetune.evaluation.latency import time_once
from prunetune.evaluation.loss import reasoning_loss
from prunetune.loop.context import Context, free
from prunetune.loop.measure import BATCH
from prunetune.loop.pacing.beside import reporting
from prunetune.loop.probe import scoring
from prunetune.loop.sampling.pace import sampling_pace
from prunetune.models.axes import shape_of
from prunetune.models.folders import model_sha
from prunetune.models.generation import generate
from prunetune.models.prompt import encode, prompt_ids
from prunetune.pruning.apply import apply_in_memory, apply_on_disk
from prunetune.pruning.compensate import compensate
from prunetune.pruning.plan import PrunePlan, make_plan
from prunetune.pruning.scores import Batch, score
from prunetune.recipe.traces import questions, traces_of
from prunetune.schedule.target import final_shape
from prunetune.tasks.registry import Task
from prunetune.tune.job import TuneJob
from prunetune.tune.launch import launch
from prunetune.tune.methods import TuneConfig

SHALLOW = 2
"""Layers of the model on which scoring is timed."""
TOKENS = 2048
"""Of the batch that scoring is timed on, at most."""
STEP_FLOPS = 1e12
"""A timed optimiser step is so large at most, and no larger than the recipe's."""
STEPS = 3
"""Timed optimiser steps; the first is warm-up."""
ASKED = 4
"""Questions that are answered to their end, for the length of an answer."""
SHORT = 64
"""Tokens: answers that are no longer are timed whole."""
HELD_OUT = 8
"""Sequences that the held-out loss is timed on, at most."""


@dataclass(frozen=True)
class Asking:
    """How one task is asked.

    Attributes:
        batch: Questions at once.
        seconds: A batch.
        tokens: Of the longest answer seen, up to the limit.
    """

    batch: int
    seconds: float
    tokens: int

    def time(self, n: int) -> float:
        """Seconds of n questions."""
        return math.ceil(n / self.batch) * self.seconds if n > self.batch else n / self.batch * self.seconds


@dataclass(frozen=True)
class Tuning:
    """How one recovery method trains: seconds a token (`grpo`: a prompt), and seconds a job beside training."""

    each: float
    beside: float
    tokens_a_sample: float


@dataclass(frozen=True)
class Pace:
    """Seconds of each kind of work, of the recipe's amounts, at the original's shape unless it says otherwise.

    Attributes:
        load: The model read.
        score: One scoring pass with ranking.
        compensate: One patch.
        loss: The held-out loss once.
        ask: Of each task whose questions are answered one by one.
        latency: A prefill and a decode, at batch 1 and at `BATCH`.
        write: A cut model written.
        tune: Of each method, on a model of the final shape.
        report: What a report takes.
        start: The command until it had read its inputs, imports among them, by the clock on the wall.
        traces: Of each of the recipe's own traces, seconds a question.
        untimed: Tasks and methods whose time is not known.
        spent: What the timing itself took.
    """

    load: float
    score: float
    compensate: float
    loss: float
    ask: dict[str, Asking]
    latency: float
    write: float = 0.0
    tune: tuple[Tuning | None, ...] = ()
    report: float = 0.0
    start: float = 0.0
    traces: tuple[float, ...] = ()
    untimed: tuple[str, ...] = ()
    spent: float = field(default=0.0, compare=False)


def measured(context: Context) -> Pace:
    """Time each kind of work on a few batches. Nothing is left on disk.

    Raises:
        PrunetuneError: Whatever the work itself would raise.
    """
    begun = time.monotonic()
    start = begun - context.began
    methods = context.recipe.recover
    with context.watch.bar("time this machine") as bar, tempfile.TemporaryDirectory(prefix="prunetune-pace-") as at:
        done, kinds = itertools.count(1), 4 + len(context.tasks) + len(methods)

        def step() -> None:
            bar(next(done), kinds)

        found = _on_original(context, step)
        cut = Path(at) / "cut"
        plan = _cut(context, *_final(context), sha=model_sha(context.source))
        write, _ = _timed(lambda: apply_on_disk(context.source, plan, cut))
        step()
        tune = []
        for i, method in enumerate(methods):
            tune.append(tuning(context, i, method, cut, Path(at) / f"tune-{i}", tuple(plan.kept_layers)))
            step()
    untimed = [t.name for t in context.tasks if t.name not in found.ask]
    untimed += [m.type for m, t in zip(methods, tune, strict=True) if t is None]
    return dataclasses.replace(
        found,
        write=write,
        tune=tuple(tune),
        report=reporting(),
        start=start,
        untimed=tuple(untimed),
        spent=time.monotonic() - begun,
    )


def _on_original(context: Context, step: Callable[[], None]) -> Pace:
    """What is timed on the untouched model."""
    load, whole = _timed(lambda: context.load(context.source))
    scored = _scoring(context, whole)
    step()
    folded = _folding(context, whole)
    step()
    loss = _held_out(context, whole)
    step()
    ask = {}
    for task in context.tasks:
        if task.harness is None and task.text is None:
            ask[task.name] = _asking(context, whole, task)
        step()
    latency = _latency(whole) if context.recipe.evaluate.latency_repeats else 0.0
    traces = tuple(sampling_pace(context, whole, t, ASKED) for t in traces_of(context.recipe))
    del whole
    free()
    return Pace(load, scored, folded, loss, ask, latency, traces=traces)


def _held_out(context: Context, model: PreTrainedModel) -> float:
    held, limit = context.held_out[:HELD_OUT], context.recipe.score.max_length
    seconds, _ = _timed(lambda: reasoning_loss(model, context.tokenizer, held, context.recipe.prompt, limit))
    return seconds * len(context.held_out) / len(held)


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    made = work()
    return time.perf_counter() - start, made


def _final(context: Context) -> tuple[int, int]:
    """(neurons, layers) that go until the final shape; of a search, half of the way."""
    if isinstance(context.recipe.prune.target, str):  # found as the run goes on
        return context.sizes.width // 2 // 8 * 8, 0
    depth, width = final_shape(context.recipe.prune, context.sizes)
    neurons, layers = context.sizes.width - width, context.sizes.depth - depth
    return (neurons // 2, 0) if context.recipe.searches else (neurons, layers)


def _cut(context: Context, neurons: int, layers: int, *, depth: int | None = None, sha: str = "") -> PrunePlan:
    """A plan that takes whatever comes first; of a model of so many layers."""
    depth, experts = depth or context.sizes.depth, shape_of(context.config.to_dict()).get("experts", 0)
    rows = [[0.0] * context.sizes.width * (experts or 1)] * depth
    return make_plan(rows, [0.0] * depth, sha, n_neurons=neurons, n_layers=layers, experts=experts)


def _shallow(context: Context, whole: PreTrainedModel) -> PreTrainedModel:
    """The model's last layers."""
    gone = max(0, context.sizes.depth - SHALLOW)
    return apply_in_memory(whole, _cut(context, 0, gone), {}) if gone else whole


def _batch(context: Context) -> Batch:
    """A batch of middling length."""
    batch = context.scoring[len(context.scoring) // 2]
    rows = max(1, TOKENS // batch["input_ids"].shape[1])
    return {name: values[:rows] for name, values in batch.items()}


def _scaled(context: Context, once: Callable[[Sequence[Batch]], object], layers: int, tokens: int) -> float:
    """Seconds of work on `tokens` and all layers, from that on one and on two batches of a few layers."""
    batch = _batch(context)
    once([batch])  # the first of its kind
    one, _ = _timed(lambda: once([batch]))
    two, _ = _timed(lambda: once([batch, batch]))
    seen = int(batch["attention_mask"].sum())
    each = max(two - one, 0.0) / seen
    return float(context.sizes.depth / layers * (max(one - each * seen, 0.0) + each * tokens))


def _tokens(context: Context) -> int:
    return sum(int(b["attention_mask"].sum()) for b in context.scoring)


def _scoring(context: Context, whole: PreTrainedModel) -> float:
    recipe, model = context.recipe, _shallow(context, whole)

    def once(batches: Sequence[Batch]) -> object:
        return score(model, batches, **scoring(recipe))

    layers = min(SHALLOW, context.sizes.depth)
    passes = 1 + (recipe.protect is not None)
    return passes * _scaled(context, once, layers, _tokens(context))


def _folding(context: Context, whole: PreTrainedModel) -> float:
    """Least squares for a cut of neurons to the final width, as every probe and every round makes it."""
    neurons, _ = _final(context)
    if context.recipe.compensate == "none" or not neurons:
        return 0.0
    model = _shallow(context, whole)
    layers = min(SHALLOW, context.sizes.depth)
    plan = _cut(context, neurons, 0, depth=layers)

    def once(batches: Sequence[Batch]) -> object:
        return compensate(model, plan, batches, held_out=batches[:1], device=context.device)

    return _scaled(context, once, layers, _tokens(context))


def _asking(context: Context, model: PreTrainedModel, task: Task) -> Asking:
    """A few questions to their end, for the length of an answer; then a batch as evaluation asks it."""
    fmt = task.prompt or context.recipe.prompt
    prompts = [prompt_ids(context.tokenizer, p.question, fmt) for p in task.problems]
    limit = task.max_new_tokens
    few = prompts[:ASKED]
    for problem, answer in zip(
        task.problems, found := generate(model, context.tokenizer, few, limit, task.stop), strict=False
    ):
        task.verify(problem, answer.text)  # what a verifier has to say against an answer, it says now
    cut = any(a.ended == "length" for a in found)
    longest = limit if cut else min(limit, math.ceil(1.1 * max(a.new_tokens for a in found)))
    wanted = max(map(len, prompts)) + limit
    size = min(len(prompts), context.recipe.evaluate.batch_size or guess_batch(model, wanted))
    batch = sorted(prompts, key=len)[-size:]

    def ask(tokens: int) -> float:
        return _timed(lambda: generate(model, context.tokenizer, batch, tokens, task.stop))[0]

    if longest <= SHORT:
        return Asking(size, ask(limit if not cut else longest), longest)
    short, long = ask(SHORT // 8), ask(SHORT // 2)
    each = max(long - short, 0.0) / (SHORT // 2 - SHORT // 8)
    return Asking(size, short + each * (longest - SHORT // 8), longest)


def _latency(model: PreTrainedModel) -> float:
    import torch

    total = 0.0
    for batch in (1, BATCH):
        prompt = torch.ones((batch, 128), dtype=torch.long, device=model.device)
        total += sum(time_once(model, prompt, 32))
    return total


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
    whole, result = _timed(
        lambda: launch(job, context.recipe.launcher, lambda done, total: ticks.append(time.perf_counter()))
    )
    a_step = (ticks[-1] - ticks[0]) / (len(ticks) - 1) if len(ticks) > 1 else result.seconds
    return Tuning(a_step * result.steps / result.tokens, max(whole - result.seconds, 0.0), mean)
