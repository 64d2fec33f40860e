"""`run`, and what is asked before a run: `keys` of a recipe, `inspect` of a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunetune.cli.judges import VerifierOption, judged_by, parse_task
from prunetune.cli.options import Json, Model, emit, parse_data, quiet_libraries
from prunetune.common.progress import Watch
from prunetune.errors import MissingPath, RecipeError

if TYPE_CHECKING:
    from prunetune.recipe.schema import Recipe


def run(
    recipe: Annotated[str | None, typer.Argument(help="A YAML file, or a shipped recipe such as demo.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Run folder; the same command again continues.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Instead of a recipe: the model.")] = None,
    data: Annotated[list[str] | None, typer.Option("--data", "-d", help="Instead of a recipe: reasoning data.")] = None,
    target: Annotated[float | None, typer.Option(help="Share of the parameters to keep (0.6), or a count.")] = None,
    step: Annotated[float | None, typer.Option(help="Share of the original parameters a round removes.")] = None,
    task: Annotated[
        list[str] | None, typer.Option("--task", "-t", help="Tasks to measure: gsm8k, gsm8k=FOLDER, mine=rows.jsonl.")
    ] = None,
    verifier: VerifierOption = None,
    launcher: Annotated[
        str | None, typer.Option(help="Arguments of accelerate launch, or ddp, fsdp2, zero2, zero3.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the steps and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Compact a model: prune a little, tune a little, until the target size."""
    from prunetune.cli.preview import check_inputs, closing, number, preview
    from prunetune.recipe.schema import Recipe, recommended

    if (recipe is None) == (model is None):
        raise RecipeError(
            "give either a recipe or --model",
            valid="prunetune run RECIPE, or prunetune run --model M --data D --target 0.6",
        )
    if verifier and not task:
        raise RecipeError("--verifier needs a task to judge", value=verifier, fix="--task mine=rows.jsonl")
    tasks = judged_by([parse_task(t) for t in task or []], verifier)
    if recipe is not None:
        read = Recipe.read(recipe)
    else:
        if not data or target is None:
            raise RecipeError(
                "--model needs --data and --target too", fix="prunetune run --model M --data D --target 0.6 --out RUN"
            )
        start = recommended()
        read = Recipe.parse(
            {
                **start,
                "model": model,
                "data": [parse_data(d) for d in data],
                "prune": {**start["prune"], "target": number(target)},
                "evaluate": {"tasks": tasks},
            },
            "the options",
        )
    read = _overridden(read, target if recipe else None, step, tasks if recipe else None, launcher)
    out = out or Path("runs") / (Path(recipe).stem if recipe else Path(str(model)).name)
    check_inputs(read)
    if dry_run:
        from prunetune.cli.forecast import forecast

        return emit(as_json, *forecast(read, recipe if target is None and step is None else None))
    quiet_libraries()
    from prunetune.loop.loop import prune_tune_loop

    watch = Watch()
    if not as_json:
        watch.line(preview(read)[1])
    summary = prune_tune_loop(read, out, watch)
    emit(as_json, summary.to_json(), closing(summary, out))
    return None


def _overridden(
    recipe: Recipe,
    target: float | None,
    step: float | None,
    tasks: list[dict[str, Any]] | None,
    launcher: str | None,
) -> Recipe:
    """The recipe with what the command line says."""
    from prunetune.cli.preview import number

    value = recipe.model_dump(mode="json", exclude_unset=True)
    if target is not None:
        value["prune"]["target"] = number(target)
    if step is not None:
        value["prune"] |= {"step": step, "rounds": None}
    if tasks:
        value.setdefault("evaluate", {})["tasks"] = tasks
    if launcher is not None:
        value["launcher"] = launcher
    return type(recipe).parse(value, "the options")


def keys(
    word: Annotated[str, typer.Argument(help="Only keys and sections with this in their name or meaning.")] = "",
    as_markdown: Annotated[bool, typer.Option("--markdown", help="As docs/recipe.md has it.")] = False,
    as_json: Json = False,
) -> None:
    """Every key of a recipe: what it may be, its default, what it means."""
    from prunetune.recipe.reference import about, markdown, sections, text
    from prunetune.recipe.schema import Recipe

    found = about(sections(Recipe), word)
    if not found:
        raise RecipeError("no key speaks of this", value=word, fix="prunetune keys lists all")
    emit(
        as_json,
        [vars(s) | {"keys": list(map(vars, s.keys))} for s in found],
        (markdown if as_markdown else text)(found),
    )


def inspect(
    model: Model,
    target: Annotated[float | None, typer.Option(help="Share of the parameters to keep, or a count.")] = None,
    step: Annotated[float, typer.Option(help="Share of the original parameters a round removes.")] = 0.1,
    gpu: Annotated[str, typer.Option(help="GPU for the estimate of memory and hours.")] = "A100-80G",
    tokens: Annotated[
        int, typer.Option(help="Recovery tokens of the whole run, for the estimate of hours.")
    ] = 100_000_000,
    as_json: Json = False,
) -> None:
    """Shape and cost of a model, and what a target would take. No weights are loaded."""
    from prunetune.cli.preview import config_folder, description
    from prunetune.recipe.schema import Recipe, shipped

    if model in shipped() and (meant := Recipe.read(model).model) != model:
        asked = f"prunetune run {model} --dry-run, or prunetune inspect {meant}"
        raise MissingPath("this is a recipe, not a model", value=model, fix=asked)
    emit(as_json, *description(config_folder(model), target=target, step=step, gpu=gpu, tokens=tokens))
