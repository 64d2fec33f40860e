"""What the commands share: options that mean the same everywhere, what they name, and how a result is printed."""

from __future__ import annotations

import importlib
import inspect
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from prunetune.common.progress import bar
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
MOST = 10**15
"""Of any count that a person may ask for."""
MOST_SEED = 2**32 - 1  # numpy's
Seed = Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Seed of everything random.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Launcher = Annotated[
    str | None, typer.Option(help="Several devices: arguments of accelerate launch, or ddp, fsdp2, zero2, zero3.")
]
VerifierOption = Annotated[
    str | None,
    typer.Option(
        "--verifier",
        help="Who judges rows of your own: number, boxed, exact, or file.py:f with f(output, reference) -> bool.",
    ),
]


A = TypeVar("A")


def takes(options: Callable[..., A]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command that has the options of another function too, and gets what that makes of them as its first argument.

    Args:
        options: A function whose parameters are typer options.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        shared = inspect.signature(options, eval_str=True).parameters
        _, *own = inspect.signature(command, eval_str=True).parameters.values()

        def whole(**values: Any) -> None:
            command(options(**{name: values.pop(name) for name in shared}), **values)

        parameters = [*shared.values(), *own]
        whole.__name__, whole.__doc__ = command.__name__, command.__doc__
        whole.__annotations__ = {p.name: p.annotation for p in parameters}
        whole.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what typer reads
        return whole

    return decorate


def emit(as_json: bool, value: Any, text: str = "") -> None:
    """JSON for machines, text for people."""
    if as_json:
        print(to_json_text(value))
    elif text:
        print(text)


SLOW = ("torch", "transformers", "datasets", "scipy.stats")
"""What takes seconds to import."""


def quiet_libraries() -> None:
    """Libraries say only what a user must act on; to import them takes seconds."""
    with bar("start", len(SLOW)) as progress:
        for done, name in enumerate(SLOW, start=1):
            importlib.import_module(name)
            progress(done, len(SLOW))
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


def parse_task(text: str) -> dict[str, Any]:
    """`NAME`, or `NAME=PATH` with the task's rows (a file or a folder), as a recipe has it."""
    from prunetune.data.formats import DATA_SUFFIXES, suffix_of

    name, equals, path = text.partition("=")
    if not name or (equals and not path):
        raise RecipeError("a task is NAME or NAME=PATH", value=text, valid="gsm8k, gsm8k=FOLDER, mine=rows.jsonl")
    if not path and (suffix_of(Path(name)) in DATA_SUFFIXES or Path(name).is_file()):
        raise RecipeError(
            "rows of your own need a name before them", value=text, fix=f"--task mine={text} --verifier number"
        )
    return {"name": name, "path": path} if path else {"name": name}


def judged_by(tasks: Sequence[dict[str, Any]], verifier: str | None) -> list[dict[str, Any]]:
    """Tasks with `--verifier` where it belongs: rows of your own; where there are none, tasks of plain questions.

    A file of code that is named on the command line may run.
    """
    if verifier is None:
        return list(tasks)
    from prunetune.tasks.own import is_own
    from prunetune.tasks.registry import JUDGES, TASKS

    kinds = [str(t["name"]).partition(":")[0] for t in tasks]
    own = [k == "rows" or k not in TASKS for k in kinds]
    meant = own if any(own) else [k in JUDGES for k in kinds]
    if not any(meant):
        raise RecipeError(
            "none of these tasks takes another verifier",
            value=[t["name"] for t in tasks],
            valid=[*JUDGES, "NAME=rows.jsonl"],
        )
    said = {"verifier": verifier, "allow_custom_code": is_own(verifier)}
    return [{**t, **said} if wanted else t for t, wanted in zip(tasks, meant, strict=True)]
