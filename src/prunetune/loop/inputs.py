"""What a run reads, before any work: each row can be written whole, each task asked; what was taken is said."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from transformers import PreTrainedTokenizerBase

from prunetune.common.progress import Watch
from prunetune.data.stream import Stream, load_stream
from prunetune.models.prompt import bos_note, check_chat, check_rows, plain_hint
from prunetune.recipe.schema import Recipe
from prunetune.tasks.registry import Task


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
    for stream in streams:
        with watch.bar("read rows") as bar:
            check_rows(tokenizer, stream.examples, fmt, bar)
    for task in tasks:
        if (task.prompt or fmt).template == "chat":
            check_chat(tokenizer, task.prompt or fmt)
    for line in [
        *(note for stream in streams for note in stream.notes),
        plain_hint(tokenizer, fmt),
        bos_note(tokenizer, fmt),
    ]:
        if line:
            watch.line(escape(line))
