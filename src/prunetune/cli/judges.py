"""`--task` and `--verifier`, the same in every command: which tasks, with which rows, and who judges the answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from prunetune.errors import RecipeError

VerifierOption = Annotated[
    str | None,
    typer.Option(
        "--verifier",
        help="Who judges rows of your own: number, boxed, exact, or file.py:f with f(output, reference) -> bool.",
    ),
]


def parse_task(text: str) -> dict[str, Any]:
    """`NAME`, or `NAME=PATH` with the task's rows (a file or a folder), as a recipe has it."""
    name, equals, path = text.partition("=")
    if not name or (equals and not path):
        raise RecipeError("a task is NAME or NAME=PATH", value=text, valid="gsm8k, gsm8k=FOLDER, mine=rows.jsonl")
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
