"""Measured prefill and decode time of several models, timed in turns in one run, so that their ratio is fair.

A machine's speed drifts, and other work comes in bursts. So every repeat times each model once, one straight after the
other, in an order drawn by lot; what is compared are the two times of one repeat. Whatever slows the machine, the lot
decides which model it hits, so a ratio's interval (`common.stats.paired_ratio`) holds the truth as often as it says,
whatever the noise is like. Greedy, random prompt tokens, key-value cache on; a batch of one gives the latency, a larger
one the throughput. The first timings of all are dropped.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any

import torch

from prunetune.common.stats import LOOKS, MOST_LOOKS, paired_ratio
from prunetune.errors import RecipeError
from prunetune.models.finite import is_finite, overflow

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Seconds = list[tuple[float, float]]
"""(prefill, decode) of one model, a repeat each."""

LEAST = 8
"""Repeats from which on an interval of 95 % can be given (see `paired_ratio`)."""
NARROW = 0.04
"""Half an interval's width, as a share, at which more repeats would tell nothing that matters."""
PATIENCE_S = 30.0
"""Time after which no further repeats are begun."""


@dataclass(frozen=True)
class Latency:
    """Median times of a whole batch over the repeats, with interquartile ranges, in milliseconds.

    `prefill_each_ms` and `decode_each_ms` (a token) are the repeats themselves, in order: of two models timed together
    the same places belong to one repeat. `load`: the machine's load over the last minute, before and after.
    """

    prefill_ms: float
    prefill_iqr_ms: float
    decode_ms_per_token: float
    decode_iqr_ms: float
    prompt_tokens: int
    new_tokens: int
    repeats: int
    batch: int = 1
    prefill_each_ms: tuple[float, ...] = ()
    decode_each_ms: tuple[float, ...] = ()
    load: tuple[float, ...] = ()

    @property
    def question_ms(self) -> float:
        """Prefill and all decode steps: the time of one question (or of one batch)."""
        return self.prefill_ms + (self.new_tokens - 1) * self.decode_ms_per_token

    @property
    def ms_per_new_token(self) -> float:
        """Time of one question divided by its new tokens."""
        return self.question_ms / self.new_tokens

    @property
    def tokens_per_s(self) -> float:
        """New tokens a second, the prompt's time included."""
        return 1000 * self.batch * self.new_tokens / self.question_ms

    def to_json(self) -> dict[str, Any]:
        """All figures, the derived ones too."""
        derived = ("question_ms", "ms_per_new_token", "tokens_per_s")
        return {**asdict(self), **{name: getattr(self, name) for name in derived}}


def _sync(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@torch.inference_mode()
def time_once(model: PreTrainedModel, prompt: torch.Tensor, new_tokens: int) -> tuple[float, float]:
    """(prefill, decode) seconds of one greedy generation of exactly `new_tokens`, end tokens ignored.

    Args:
        model: In eval mode.
        prompt: Token ids [batch, prompt_tokens] on the model's device.
        new_tokens: At least two; the first comes from the prefill.

    Raises:
        NotFinite: What was timed were no logits: a model that overflows has no speed worth knowing.
    """
    _sync(model.device)
    start = time.perf_counter()
    out = model(input_ids=prompt, use_cache=True, logits_to_keep=1)
    token = out.logits[:, -1:].argmax(-1)
    _sync(model.device)
    middle = time.perf_counter()
    for _ in range(new_tokens - 1):
        out = model(input_ids=token, past_key_values=out.past_key_values, use_cache=True)
        token = out.logits[:, -1:].argmax(-1)
    _sync(model.device)
    end = time.perf_counter()
    if not is_finite(out.logits[:, -1].amax(-1)):
        inputs = {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)}
        raise overflow(model, inputs, "the next token")
    return middle - start, end - middle


def measure(
    models: Mapping[str, PreTrainedModel],
    *,
    prompt_tokens: int = 128,
    new_tokens: int = 32,
    batch: int = 1,
    repeats: int = 5,
    warmup: int = 1,
    seed: int = 0,
    settle: bool = False,
    most: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Latency]:
    """Time every model on the same prompt, in turns.

    Args:
        models: Name -> model in eval mode, each on its device.
        prompt_tokens: Length of the prompt: random ids below the smallest vocabulary.
        new_tokens: Tokens to generate, at least two.
        batch: Prompts at once.
        repeats: Timed generations a model.
        warmup: Untimed ones before.
        seed: Of the prompt.
        settle: Begin with `LEAST` repeats, and double them (twice at most) until the ratio of the last model to the
            first is known to `NARROW`, or `PATIENCE_S` are over.
        most: Seconds after which no repeat is begun, but for the first that counts; None: all repeats are made.
        progress: Called with (generations done, in all).
    """
    for name, value, least in (
        ("prompt_tokens", prompt_tokens, 1),
        ("new_tokens", new_tokens, 2),
        ("batch", batch, 1),
        ("repeats", repeats, 1),
    ):
        if value < least:
            raise RecipeError(f"{name} is too small to be timed", value=value, valid=f"at least {least}")
    vocab = min(model.config.vocab_size for model in models.values())
    prompt = torch.randint(0, vocab, (batch, prompt_tokens), generator=torch.Generator().manual_seed(seed))
    seconds: dict[str, Seconds] = {name: [] for name in models}
    lot, begin, before = random.Random(), time.monotonic(), _load()  # not seeded: the lot is what makes it fair
    wanted, done, looks = warmup + (max(repeats, LEAST) if settle else repeats), 0, 1
    while done < wanted and not (most is not None and done > warmup and time.monotonic() - begin > most):
        order = list(models)
        lot.shuffle(order)
        for at, name in enumerate(order):
            taken = time_once(models[name], prompt.to(models[name].device), new_tokens)
            if done >= warmup:
                seconds[name].append(taken)
            if progress:
                progress(done * len(order) + at + 1, wanted * len(order))
        done += 1
        late = time.monotonic() - begin > PATIENCE_S
        if settle and done == wanted and looks < MOST_LOOKS and not late and not _settled(list(seconds.values())):
            wanted, looks = wanted + done - warmup, looks + 1
    load = (before, _load())
    return {name: _summary(taken, prompt_tokens, new_tokens, batch, load) for name, taken in seconds.items()}


def _settled(seconds: list[Seconds]) -> bool:
    """Whether the time of all of a generation, of the first model over that of the last, is known to `NARROW`."""
    ratio = paired_ratio([sum(times) for times in seconds[0]], [sum(times) for times in seconds[-1]], looks=LOOKS)
    return ratio.low is not None and ratio.high is not None and ratio.high / ratio.low <= (1 + NARROW) ** 2


def _load() -> float:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def _summary(seconds: Seconds, prompt_tokens: int, new_tokens: int, batch: int, load: tuple[float, float]) -> Latency:
    prefill = [1000 * p for p, _ in seconds]
    decode = [1000 * d / (new_tokens - 1) for _, d in seconds]
    return Latency(
        prefill_ms=median(prefill),
        prefill_iqr_ms=_iqr(prefill),
        decode_ms_per_token=median(decode),
        decode_iqr_ms=_iqr(decode),
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        repeats=len(seconds),
        batch=batch,
        prefill_each_ms=tuple(prefill),
        decode_each_ms=tuple(decode),
        load=load,
    )


def _iqr(values: list[float]) -> float:
    if len(values) < 2:
        return 0.0
    low, _, high = quantiles(values, n=4, method="inclusive")
    return high - low
