"""What a run reads, before any work: each row can be written whole, each task asked; what was taken is said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from rich.markup import escape
from transformers import PreTrainedTokenizerBase

from prunetune.common.device import walk_dtype
from prunetune.common.progress import Watch
from prunetune.data.stream import Stream, load_stream
from prunetune.models.axes import axis_of
from prunetune.models.calibration import Calibration
from prunetune.models.prompt import bos_note, check_chat, check_rows, encode, plain_hint, questions_note
from prunetune.recipe.calibration import calibration_of
from prunetune.recipe.schema import Recipe
from prunetune.schedule.sizes import Sizes
from prunetune.tasks.registry import Task

LOOKED_AT = 64
"""Rows whose tokens are counted for the mean of all."""


def calibrated(
    recipe: Recipe, config: Any, tokenizer: PreTrainedTokenizerBase, stream: Stream, scores: Stream | None, device: str
) -> Calibration:
    """How many sequences are scored and compensated with, and what they hold."""
    if recipe.prompt.template == "chat":
        check_chat(tokenizer, recipe.prompt)
    source, limit = scores or stream, recipe.score.max_length
    rows = source.take(0, min(len(source), LOOKED_AT))
    mean = sum(len(encode(tokenizer, e, recipe.prompt, limit).input_ids) for e in rows) / max(1, len(rows))
    spare = len(scores) if scores else max(1, (len(stream) - recipe.score.held_out) // 4)
    stored = getattr(config, "dtype", None) or torch.float32
    item = walk_dtype(device, stored, config.hidden_size * axis_of("neurons").units(config.to_dict())).itemsize
    return calibration_of(
        recipe, Sizes.of(config, recipe.prune.cut), config.hidden_size, item=item, mean=mean, most=spare
    )


def check_text(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, streams: Sequence[Stream], tasks: Sequence[Task], watch: Watch
) -> None:
    """Read all data; RecipeError or DataError if a row cannot be written whole, or a task cannot be asked.

    Args:
        recipe: How questions become prompts; its protected corpus is read too.
        tokenizer: The model's.
        streams: The recipe's data, and those of methods with their own.
        tasks: What is measured.
        watch: Where lines go.
    """
    fmt, streams = recipe.prompt, list(streams)
    if recipe.protect is not None:
        streams.append(load_stream(recipe.protect.data, recipe.seed))
    changed = list[str]()
    for stream in streams:
        with watch.bar("read rows") as bar:
            changed.append(check_rows(tokenizer, stream.examples, fmt, bar))
    for task in tasks:
        if (task.prompt or fmt).template == "chat":
            check_chat(tokenizer, task.prompt or fmt)
            asked = [p.question for p in task.problems]
            changed.append(questions_note(tokenizer, asked, task.prompt or fmt, task.name))
    for line in [
        *changed,
        *(note for stream in streams for note in stream.notes),
        *(task.note for task in tasks),
        plain_hint(tokenizer, fmt),
        bos_note(tokenizer, fmt),
    ]:
        if line:
            watch.line(escape(line))
