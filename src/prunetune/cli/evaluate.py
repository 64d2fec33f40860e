"""`eval`: one model measured on tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from prunetune.cli.options import (
    MOST,
    MOST_SEED,
    Device,
    Json,
    Launcher,
    Model,
    VerifierOption,
    emit,
    named_path,
    quiet_libraries,
)
from prunetune.cli.texts import Chat, Columns
from prunetune.common.progress import Watch

Tasks = Annotated[
    list[str],
    typer.Option(
        "--task",
        "-t",
        help="gsm8k, math, mbpp, squad, perplexity, gsm_symbolic, demo, reasoning-gym:NAME, lm-eval:NAME; "
        "with local data (or rows of your own, any name): NAME=PATH.",
    ),
]


def eval_(
    model: Model,
    task: Tasks,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for every sample (JSONL); again = resume.")
    ] = None,
    n: Annotated[
        int | None,
        typer.Option("--n", "--limit", help="Problems of each task: drawn by the seed; of lm-eval the first."),
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option("--data", "-d", help="NAME=PATH: local data of a task, such as gsm8k=FOLDER.")
    ] = None,
    path: Annotated[str | None, typer.Option(help="Local data of every other task (file or folder).")] = None,
    verifier: VerifierOption = None,
    columns: Columns = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, max=MOST, help="Questions at once; default: by memory.")
    ] = None,
    chat: Chat = False,
    shots: Annotated[
        int | None, typer.Option(min=0, max=1000, help="Worked examples (mbpp, lm-eval); default: its own.")
    ] = None,
    allow_code_execution: Annotated[
        bool, typer.Option("--allow-code-execution", help="Run what the model writes, in the sandbox (mbpp).")
    ] = False,
    backend: Annotated[str, typer.Option(help="transformers, or vllm for lm-eval's tasks.")] = "transformers",
    seed: Annotated[
        int, typer.Option(min=0, max=MOST_SEED, help="Seed of everything random; 0 leaves lm-eval its own seeds.")
    ] = 0,
    device: Device = "auto",
    launcher: Launcher = None,
    as_json: Json = False,
) -> None:
    """Measure a model on tasks: with verifiers of ours, lm-eval's, or the perplexity of a text."""
    quiet_libraries()
    from prunetune.cli.measuring import eval_model, eval_tasks
    from prunetune.cli.preview import scores

    tasks = eval_tasks(
        task,
        dict(named_path(d) for d in data or []),
        path=path,
        verifier=verifier,
        columns=columns,
        n=n,
        seed=seed,
        allow_code_execution=allow_code_execution,
        options={} if shots is None else {"shots": shots},
    )
    where: Any = {"backend": backend, "device": device, "launcher": launcher}
    results = eval_model(model, tasks, out, batch_size=batch_size, chat=chat, **where, watch=Watch())
    emit(as_json, [r.to_json() for r in results], "\n".join(map(scores, results)))
