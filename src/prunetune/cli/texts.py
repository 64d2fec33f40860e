"""What the commands say and check of their data before any work: columns, rows, prompts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunetune.errors import RecipeError, UnsupportedModel

if TYPE_CHECKING:
    from prunetune.common.device import Device
    from prunetune.common.progress import Watch
    from prunetune.data.sources import DataSource
    from prunetune.data.stream import Stream
    from prunetune.models.prompt import PromptFormat
    from prunetune.recipe.schema import Recipe
    from prunetune.tasks.registry import Task

Columns = Annotated[
    str | None,
    typer.Option(
        "--columns",
        help="Columns of the data, where their names are not well known: question=problem,answer=solution; or "
        "text=content; or messages=chat.",
    ),
]
Chat = Annotated[bool, typer.Option("--chat", help="Use the model's chat template.")]

WITH_COLUMNS = ("gsm8k", "math")
"""Built-in tasks whose rows may have other columns; rows of your own may too."""


def placed(device: str, folder: Path) -> Device:
    """The device that a command computes on, which has as many threads as the model in this folder is worth.

    A model of any family can be measured: of one that cannot be cut the threads stay as they are.
    """
    from prunetune.common.device import device_of, fit_threads
    from prunetune.models.cost import ffn_elements
    from prunetune.models.folders import load_config

    where = device_of(device)
    with suppress(UnsupportedModel):
        fit_threads(where, ffn_elements(load_config(folder)))
    return where


def parse_columns(text: str | None) -> dict[str, str]:
    """`--columns question=problem,answer=solution` as a mapping."""
    found: dict[str, str] = {}
    for part in (text or "").split(",") if text is not None else ():
        name, _, column = (side.strip() for side in part.partition("="))
        if not name or not column or name in found:
            raise RecipeError(
                "columns are pairs of what is wanted and the column that has it",
                value=text,
                valid="question=COLUMN,answer=COLUMN; or one of the two; or text=COLUMN; or messages=COLUMN",
                fix="--columns question=problem,answer=solution",
            )
        found[name] = column
    return found


def with_columns(source: dict[str, Any], columns: str | None) -> dict[str, Any]:
    """A data source with the columns of the command line. RecipeError: it has none to choose."""
    found = parse_columns(columns)
    if found and source["type"] not in ("file", "hub"):
        raise RecipeError(
            "these data have no columns to choose", value=source["type"], valid="--columns is for files and hub data"
        )
    return {**source, "columns": found} if found else source


def task_columns(name: str, path: str | None, columns: str | None) -> dict[str, Any]:
    """The `columns` of a task's config, for the tasks that read rows."""
    found = parse_columns(columns)
    own = path is not None and ":" not in name and name not in ("perplexity", "squad", "mbpp")
    return {"columns": found} if found and (own or name in WITH_COLUMNS) else {}


def own_columns(task: dict[str, Any], columns: str | None) -> dict[str, Any]:
    """A task of a run with the columns of the command line, if its own rows have them; well-known names need none."""
    from prunetune.data.files import expand_path, open_rows

    path = task.get("path")
    found = task_columns(str(task["name"]), path, columns)
    if not found or path is None or not expand_path(path).is_file():
        return task
    first = next(iter(open_rows(expand_path(path))[1]), {})
    return {**task, **found} if set(found["columns"].values()) <= set(first) else task


def format_of(chat: bool) -> PromptFormat:
    """The prompt format of a command."""
    from prunetune.models.prompt import PromptFormat

    return PromptFormat(template="chat" if chat else "plain")


def sources_of(values: Sequence[dict[str, Any]]) -> list[DataSource]:
    """Data sources from mappings."""
    from pydantic import TypeAdapter, ValidationError

    from prunetune.data.sources import DataSource

    try:
        return TypeAdapter(list[DataSource]).validate_python(values)
    except ValidationError as e:
        raise RecipeError(f"--data: {e.errors()[0]['msg']}", value=e.errors()[0]["input"]) from None


def sequences_of(
    folder: Path,
    data: Sequence[dict[str, Any]],
    *,
    samples: int,
    max_length: int,
    seed: int,
    chat: bool,
    watch: Watch,
) -> tuple[Stream, list[list[int]], int]:
    """(the data as one stream, the ids of its first `samples` rows as a run scores them, the padding id)."""
    from prunetune.data.stream import load_stream
    from prunetune.models.folders import load_tokenizer, pad_id
    from prunetune.models.prompt import encode

    stream, tokenizer, fmt = load_stream(sources_of(data), seed), load_tokenizer(folder), format_of(chat)
    check_texts(folder, stream, 0, samples, fmt, watch)
    encoded = [encode(tokenizer, e, fmt, max_length) for e in stream.take(0, min(samples, len(stream)))]
    return stream, [list(r.input_ids) for r in encoded], pad_id(tokenizer)


def say(watch: Watch, lines: Iterable[str]) -> None:
    """Print lines in which nothing is markup."""
    from rich.markup import escape

    for line in lines:
        if line:
            watch.line(escape(line))


def check_texts(
    folder: Path, stream: Stream, start: int, end: int | None, fmt: PromptFormat, watch: Watch | None
) -> None:
    """Say what was taken of the data, and raise RecipeError if one of the rows [start, end) cannot be written whole."""
    from prunetune.models.folders import load_tokenizer
    from prunetune.models.prompt import bos_note, check_rows, plain_hint

    tokenizer = load_tokenizer(folder)
    if watch is not None:
        say(watch, [*stream.notes, plain_hint(tokenizer, fmt, "--chat"), bos_note(tokenizer, fmt)])
        with watch.bar("read rows") as bar:
            changed = check_rows(tokenizer, stream.examples[start:end], fmt, bar)
        say(watch, [changed])
        return
    check_rows(tokenizer, stream.examples[start:end], fmt)


def check_tasks(tokenizer: Any, tasks: Sequence[Task], fmt: PromptFormat, watch: Watch) -> None:
    """Raise RecipeError unless the chat template can put the tasks' questions; say if there is one that is not used."""
    from prunetune.models.prompt import bos_note, check_chat, plain_hint, questions_note

    for task in tasks:
        if (task.prompt or fmt).template == "chat":
            check_chat(tokenizer, task.prompt or fmt)
            asked = [p.question for p in task.problems]
            say(watch, [questions_note(tokenizer, asked, task.prompt or fmt, task.name)])
    if any(task.text is None for task in tasks):
        say(watch, [plain_hint(tokenizer, fmt, "--chat"), bos_note(tokenizer, fmt)])


def check_recipe(recipe: Recipe) -> None:
    """What a dry run can know of a local model's chat template: it is tried on the tasks' formats and on every row."""
    from prunetune.data.stream import load_stream
    from prunetune.models.folders import load_tokenizer
    from prunetune.models.prompt import check_chat

    folder = Path(recipe.model).expanduser()
    formats = [f for f in (recipe.prompt, *(t.prompt for t in recipe.evaluate.tasks)) if f and f.template == "chat"]
    if not formats or not folder.is_dir():
        return
    for fmt in formats:
        check_chat(load_tokenizer(folder), fmt)
    if all(s.type in ("file", "demo") for s in recipe.data):
        check_texts(folder, load_stream(recipe.data, recipe.seed), 0, None, recipe.prompt, None)
