"""A model as evaluation asks it: here, or held by several processes, one a device, that share the questions.

    for answers in answered(model, tokenizer, prompts, limits, size=32): ...       # batch by batch, in order
    losses = losses_of(model, rows)                                                # of every row

Which process has taken a question changes nothing: batches are the same, and their results come in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunetune.common.device import ALONE, Processes, free_device_memory
from prunetune.common.memory import is_memory
from prunetune.errors import TaskError
from prunetune.evaluation.fitting import guess_batch
from prunetune.models.generation import Answer, generate

Scored = tuple[list[int], list[tuple[int, int]]]
"""Token ids, and [start, end) of those that are predicted."""


@dataclass(frozen=True)
class Limits:
    """What ends an answer: so many new tokens, or one of the stop texts."""

    max_new_tokens: int
    stop: tuple[str, ...]


@runtime_checkable
class Spread(Protocol):
    """A model that other processes hold.

    Attributes:
        folder: Where it lies.
        config: Its config.
    """

    folder: Path
    config: Any

    def answers(
        self, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[list[int]], limits: Limits, size: int | None
    ) -> Iterator[list[Answer]]:
        """As `answered`."""

    def losses(self, rows: Sequence[Scored]) -> list[tuple[float, int]]:
        """As `loss.losses_of`."""

    def alone(self) -> PreTrainedModel:
        """The model in this process; the others have let go of it."""


def answered(
    model: PreTrainedModel | Spread,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    limits: Limits,
    size: int | None = None,
    processes: Processes = ALONE,
) -> Iterator[list[Answer]]:
    """Greedy answers to prompts (token ids), batch by batch, in order; of all processes, in each of them.

    Args:
        model: Here, or elsewhere.
        tokenizer: Its tokenizer.
        prompts: The longest first, so that too large a batch shows at once.
        limits: What ends an answer.
        size: Prompts at once; None: as many as fit. Halved whenever memory runs out.
        processes: Who answers; each is given all prompts and takes every so many batches of them.

    Raises:
        TaskError: A single prompt does not fit.
    """
    if isinstance(model, Spread):
        yield from model.answers(tokenizer, prompts, limits, size)
        return
    longest = max(map(len, prompts), default=1) + limits.max_new_tokens
    size = processes.first(size or guess_batch(model, longest, processes.count))
    batches = [prompts[i : i + size] for i in range(0, len(prompts), size)]
    fits = size
    for i in range(0, len(batches), processes.count):
        wave = batches[i : i + processes.count]
        found = list[list[Answer]]()
        for batch in processes.share(wave):
            answers = list[Answer]()
            while len(answers) < len(batch):
                part = batch[len(answers) : len(answers) + fits]
                if (new := _try_generate(model, tokenizer, part, limits)) is None:
                    fits = _half(part)
                    continue
                answers += new
                if processes.count == 1:
                    yield new
            found.append(answers)
        if processes.count > 1:
            yield from processes.together(found, len(wave))


def _half(batch: Sequence[list[int]]) -> int:
    if len(batch) == 1:
        raise TaskError("one question does not fit into memory", value=len(batch[0]), fix="use a larger device")
    return math.ceil(len(batch) / 2)


def _try_generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[list[int]], limits: Limits
) -> list[Answer] | None:
    """The answers, or None if memory ran out."""
    try:
        return generate(model, tokenizer, prompts, limits.max_new_tokens, limits.stop)
    except (MemoryError, RuntimeError) as e:
        if not is_memory(e):
            raise
    free_device_memory()
    return None
