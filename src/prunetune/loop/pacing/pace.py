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

from transformers import PreTrainedModel

from prunetune.evaluation.evaluate import guess_batch
from prunetune.evaluation.latency import time_once
from prunetune.evaluation.loss import reasoning_loss
from prunetune.loop.context import Context, free
from prunetune.loop.measure import BATCH
from prunetune.loop.pacing.beside import reporting
from prunetune.loop.pacing.steps import Tuning, timed, tuning
from prunetune.loop.probe import scoring
from prunetune.loop.sampling.pace import sampling_pace
from prunetune.models.axes import shape_of
from prunetune.models.folders import model_sha
from prunetune.models.generation import generate
from prunetune.models.prompt import prompt_ids
from prunetune.pruning.apply import apply_in_memory, apply_on_disk
from prunetune.pruning.compensate import compensate
from prunetune.pruning.plan import PrunePlan, make_plan
from prunetune.pruning.scores import Batch, score
from prunetune.recipe.traces import traces_of
from prunetune.schedule.target import final_shape
from prunetune.tasks.registry import Task

SHALLOW = 2
"""Layers of the model on which scoring is timed."""
TOKENS = 2048
"""Of the batch that scoring is timed on, at most."""
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
        fixed: Of `score` and of `compensate`, what does not depend on how many sequences there are.
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
    fixed: tuple[float, float] = (0.0, 0.0)

    def scored(self, share: float) -> Pace:
        """With so many of the sequences that are scored and fitted to."""
        both = zip((self.score, self.compensate), self.fixed, strict=True)
        score, folded = (min(fixed, whole) + share * max(whole - fixed, 0.0) for whole, fixed in both)
        return dataclasses.replace(self, score=score, compensate=folded)


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
        write, _ = timed(lambda: apply_on_disk(context.source, plan, cut))
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
    load, whole = timed(lambda: context.load(context.source))
    scored, fixed = _scoring(context, whole)
    step()
    folded, solved = _folding(context, whole)
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
    return Pace(load, scored, folded, loss, ask, latency, traces=traces, fixed=(fixed, solved))


def _held_out(context: Context, model: PreTrainedModel) -> float:
    held, limit = context.held_out[:HELD_OUT], context.recipe.score.max_length
    seconds, _ = timed(lambda: reasoning_loss(model, context.tokenizer, held, context.recipe.prompt, limit))
    return seconds * len(context.held_out) / len(held)


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


def _scaled(
    context: Context, once: Callable[[Sequence[Batch]], object], layers: int, tokens: int
) -> tuple[float, float]:
    """Seconds of work on `tokens` and all layers, and on none: from that on one and two batches of a few layers."""
    batch = _batch(context)
    once([batch])  # the first of its kind
    one, _ = timed(lambda: once([batch]))
    two, _ = timed(lambda: once([batch, batch]))
    seen = int(batch["attention_mask"].sum())
    each = max(two - one, 0.0) / seen
    fixed = max(one - each * seen, 0.0) * context.sizes.depth / layers
    return fixed + context.sizes.depth / layers * each * tokens, fixed


def _tokens(context: Context) -> int:
    return sum(int(b["attention_mask"].sum()) for b in context.scoring)


def _scoring(context: Context, whole: PreTrainedModel) -> tuple[float, float]:
    recipe, model = context.recipe, _shallow(context, whole)

    def once(batches: Sequence[Batch]) -> object:
        return score(model, batches, **scoring(recipe))

    layers = min(SHALLOW, context.sizes.depth)
    passes = 1 + (recipe.protect is not None)
    seconds, fixed = _scaled(context, once, layers, _tokens(context))
    return passes * seconds, passes * fixed


def _folding(context: Context, whole: PreTrainedModel) -> tuple[float, float]:
    """Least squares for a cut of neurons to the final width, as every probe and every round makes it."""
    neurons, _ = _final(context)
    if context.recipe.compensate == "none" or not neurons:
        return 0.0, 0.0
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
        return timed(lambda: generate(model, context.tokenizer, batch, tokens, task.stop))[0]

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
