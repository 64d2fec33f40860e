"""What a run reads, before any work: each row can be written whole, each task asked; what was taken is said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rich.markup import escape
from transformers import PreTrainedTokenizerBase

from prunetune.common.progress import Watch
from prunetune.data.sources import DataSource
from prunetune.data.stream import Stream, load_stream
from prunetune.models.prompt import check_chat, check_rows, plain_hint
from prunetune.recipe.schema import Recipe
from prunetune.tasks.registry import Task


class Inputs(Protocol):
    """The part of a run that says what it reads."""

    @property
    def recipe(self) -> Recipe:
        """What to do."""

    @property
    def watch(self) -> Watch:
        """Where lines go."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's."""

    @property
    def stream(self) -> Stream:
        """The recipe's data."""

    @property
    def tasks(self) -> Sequence[Task]:
        """What is measured."""

    def stream_of(self, sources: tuple[DataSource, ...]) -> Stream:
        """A method's own data."""


def check_text(run: Inputs) -> None:
    """Read all data; RecipeError or DataError if a row cannot be written whole, or a task cannot be asked."""
    recipe, fmt = run.recipe, run.recipe.prompt
    streams = [run.stream, *(run.stream_of(m.data) for m in recipe.recover if m.data is not None)]
    if recipe.protect is not None:
        streams.append(load_stream(recipe.protect.data, recipe.seed))
    for stream in streams:
        check_rows(run.tokenizer, stream.examples, fmt)
    for task in run.tasks:
        if (task.prompt or fmt).template == "chat":
            check_chat(run.tokenizer, task.prompt or fmt)
    for line in [*(note for stream in streams for note in stream.notes), plain_hint(run.tokenizer, fmt)]:
        if line:
            run.watch.line(escape(line))
