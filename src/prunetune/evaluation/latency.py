"""Measured prefill and decode time of several models, taken in turns in one run, so that their ratio is fair.

A machine's speed drifts (other work, clocks), so the models alternate, repeat by repeat and in reversed order every
second time; medians are compared. Greedy, random prompt tokens, key-value cache on; a batch of one gives the latency,
a larger one the throughput.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any

import torch

from prunetune.errors import RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Latency:
    """Median times of a whole batch over the repeats, with interquartile ranges, in milliseconds."""

    prefill_ms: float
    prefill_iqr_ms: float
    decode_ms_per_token: float
    decode_iqr_ms: float
    prompt_tokens: int
    new_tokens: int
    repeats: int
    batch: int = 1

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
    return middle - start, time.perf_counter() - middle


def measure(
    models: Mapping[str, PreTrainedModel],
    *,
    prompt_tokens: int = 128,
    new_tokens: int = 32,
    batch: int = 1,
    repeats: int = 5,
    warmup: int = 1,
    seed: int = 0,
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
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    rounds = warmup + repeats
    for i in range(rounds):
        order = list(models) if i % 2 == 0 else list(models)[::-1]
        for at, name in enumerate(order):
            taken = time_once(models[name], prompt.to(models[name].device), new_tokens)
            if i >= warmup:
                seconds[name].append(taken)
            if progress:
                progress(i * len(order) + at + 1, rounds * len(order))
    return {name: _summary(taken, prompt_tokens, new_tokens, batch) for name, taken in seconds.items()}


def _summary(seconds: list[tuple[float, float]], prompt_tokens: int, new_tokens: int, batch: int) -> Latency:
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
    )


def _iqr(values: list[float]) -> float:
    if len(values) < 2:
        return 0.0
    low, _, high = quantiles(values, n=4, method="inclusive")
    return high - low
