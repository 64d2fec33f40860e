"""One recovery by hand: `tune`, and `generate`, which makes data for it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunetune.cli.options import MOST, Data, Device, Json, Launcher, Model, Seed, VerifierOption, emit, quiet_libraries
from prunetune.cli.texts import Chat, Columns, format_of, with_columns
from prunetune.common.progress import Watch
from prunetune.errors import RecipeError
from prunetune.recipe.said import parse_data


def tune(
    method: Annotated[str, typer.Argument(help="cpt, sft, distill, grpo or local.")],
    model: Model,
    out: Annotated[Path, typer.Argument(help="Model folder to write.")],
    data: Data,
    config: Annotated[Path | None, typer.Option(help="YAML with the method's settings.")] = None,
    tokens: Annotated[int | None, typer.Option(min=1, max=MOST, help="Budget in tokens.")] = None,
    samples: Annotated[int | None, typer.Option(min=1, max=MOST, help="Budget in examples.")] = None,
    task: Annotated[
        str | None,
        typer.Option("--task", "-t", help="Task whose verifier rewards (grpo); default: by the data."),
    ] = None,
    verifier: VerifierOption = None,
    teacher: Annotated[
        str | None,
        typer.Option("--teacher", "--original", help="Teacher (distill); the model before it was cut (local)."),
    ] = None,
    plan: Annotated[
        Path | None, typer.Option(help="The plan that the model was cut by, where layers went (local).")
    ] = None,
    launcher: Launcher = None,
    columns: Columns = None,
    chat: Chat = False,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Recover (or teach) a model with one method; killed and started again, it continues."""
    from prunetune.cli.commands import judge_of, method_of, tune_model

    chosen = method_of(method, config, tokens=tokens, samples=samples)
    if chosen.type != "grpo" and (task or verifier):
        raise RecipeError(f"{chosen.type} needs no task: only grpo's answers are judged", value=task or verifier)
    judge = judge_of(task, verifier, data) if chosen.type == "grpo" else None
    quiet_libraries()
    result = tune_model(
        chosen,
        model,
        out,
        [with_columns(parse_data(d, seed), columns) for d in data],
        task=judge,
        teacher=teacher,
        plan=plan,
        launcher=launcher,
        seed=seed,
        device=device,
        watch=Watch(),
        chat=chat,
    )
    emit(
        as_json,
        result.to_json(),
        f"{result.samples:,} examples, {result.tokens:,} tokens in {result.seconds:.0f} s "
        f"({result.tokens_per_s:,.0f} tokens/s; {result.truncated} examples cut): {out}",
    )


def generate(
    model: Model,
    out: Annotated[Path, typer.Argument(help="JSONL file to write: {question, answer} rows, data for a recipe.")],
    data: Data,
    task: Annotated[
        str | None, typer.Option("--task", "-t", help="Task whose verifier judges; default: the one of the data.")
    ] = None,
    verifier: VerifierOption = None,
    samples_per_question: Annotated[int, typer.Option(min=1, max=MOST, help="Answers sampled for each question.")] = 4,
    keep: Annotated[
        int, typer.Option(min=1, max=MOST, help="Different right answers kept of a question, shortest first.")
    ] = 1,
    n: Annotated[int | None, typer.Option(min=1, max=MOST, help="Questions; default: all.")] = None,
    temperature: Annotated[float, typer.Option(help="Sampling temperature.")] = 0.7,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, max=MOST, help="Longest answer; default: the task's.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, max=MOST, help="Questions at once.")] = 16,
    columns: Columns = None,
    chat: Chat = False,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """A model's own verified answers as recovery data; killed and started again, it continues."""
    from prunetune.cli.commands import judge_of, sample_traces

    sources = [with_columns(parse_data(d, seed), columns) for d in data]
    judge = judge_of(task, verifier, data)
    quiet_libraries()
    made = sample_traces(
        model,
        out,
        sources,
        judge,
        seed=seed,
        n=n,
        device=device,
        watch=Watch(),
        per_question=samples_per_question,
        keep=keep,
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        fmt=format_of(chat),
    )
    emit(
        as_json,
        {"out": str(out), **vars(made)},
        f"{made.kept:,} verified answers to {made.solved:,} of {made.questions:,} questions "
        f"({made.correct:.0%} of the samples were right): {out}",
    )
