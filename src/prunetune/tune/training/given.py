"""What a trainer is given and what it returns. Values alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunetune.data.stream import Example
from prunetune.tune.job import Entry, Progress, TuneJob
from prunetune.tune.methods.base import Method

M = TypeVar("M", bound=Method)


def settings(job: TuneJob, kind: type[M]) -> M:
    """The settings of a job's method; TypeError if it is of another method."""
    if not isinstance(job.method, kind):
        raise TypeError(f"a job of {job.method.type} came to what runs {kind.__name__}")
    return job.method


@dataclass(frozen=True)
class Stage:
    """What a method's trainer gets.

    Attributes:
        job: All settings.
        load: Reads the model to train: see `model`.
        tokenizer: Its tokenizer.
        examples: The step's own part of the stream.
        device: Where.
        seed: Seed of everything random.
        progress: Called with (steps done, steps in all).
    """

    job: TuneJob
    load: Callable[[], PreTrainedModel]
    tokenizer: PreTrainedTokenizerBase
    examples: Sequence[Example]
    device: torch.device
    seed: int
    progress: Progress | None

    @cached_property
    def model(self) -> PreTrainedModel:
        """The model to train, fp32, on the device; read once it is asked for, and trained in place."""
        return self.load()

    def settings(self, kind: type[M]) -> M:
        """The method's own settings; TypeError if the job is of another method."""
        return settings(self.job, kind)


@dataclass(frozen=True)
class Trained:
    """What a method's trainer returns; see `TuneResult` for the units."""

    samples: int
    tokens: int
    seconds: float
    steps: int
    log: list[Entry]
    truncated: int = 0
    data_tokens: int = 0
    mfu: float = 0.0
    notes: list[str] = field(default_factory=list)
    planned: int = 0
    state: dict[str, torch.Tensor] | None = None
    """All weights, where the model itself holds only a part of them."""
    writes: bool = True
    """Whether this process writes (the first of several)."""
