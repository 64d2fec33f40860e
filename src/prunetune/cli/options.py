"""What the commands share: options that mean the same everywhere, and how a result is printed."""

from __future__ import annotations

import logging
from typing import Annotated, Any

import typer

from prunetune.common.strict_json import to_json_text
from prunetune.errors import RecipeError

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Model = Annotated[str, typer.Argument(help="demo, a folder, a .gguf file, package:NAME, or a hub name.")]
Data = Annotated[
    list[str],
    typer.Option(
        "--data",
        "-d",
        help="FILE or FOLDER (JSON, CSV, Parquet, text, …), generator:NAME, preset:NAME, demo, or a hub name.",
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]


def emit(as_json: bool, value: Any, text: str = "") -> None:
    """JSON for machines, text for people."""
    if as_json:
        print(to_json_text(value))
    elif text:
        print(text)


def quiet_libraries() -> None:
    """Libraries say only what a user must act on."""
    import datasets
    import transformers

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def named_path(text: str) -> tuple[str, str]:
    """`--data NAME=PATH` of an evaluation."""
    name, _, path = text.partition("=")
    if not name or not path:
        raise RecipeError("data of a task have its name in front", value=text, valid="NAME=PATH", fix=f"gsm8k={text}")
    return name, path
