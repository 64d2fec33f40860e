"""`run` and `init`, and what is asked before a run: `keys` of a recipe, `inspect` of a model."""

from __future__ import annotations

import gc
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from prunetune.cli.asked import Asked, mapping_of
from prunetune.cli.options import MOST, MOST_SEED, Json, Launcher, Model, VerifierOption, emit, quiet_libraries, takes
from prunetune.cli.texts import Chat, Columns, check_recipe
from prunetune.common import stopping
from prunetune.common.progress import Watch
from prunetune.errors import MissingPath, RecipeError

RecipeName = Annotated[str | None, typer.Argument(help="A YAML file, or a shipped recipe such as demo.")]
ModelName = Annotated[str | None, typer.Option("--model", help="Instead of a recipe: the model.")]
DataNames = Annotated[list[str] | None, typer.Option("--data", "-d", help="Reasoning data: FILE, preset:NAME, ...")]
Target = Annotated[str | None, typer.Option(help="What to keep: a share (0.6, 60%) or parameters (3B).")]
Ladder = Annotated[
    str | None, typer.Option("--ladder", help="Sizes on the way, each a finished model: 0.8,0.7,0.6,0.5.")
]
Keep = Annotated[str | None, typer.Option("--keep", help="As small as keeps this share of the accuracy, such as 95%.")]
Budget = Annotated[
    str | None, typer.Option("--budget", help="Time of the whole run, such as 2h: what fits is told first.")
]
Vocabulary = Annotated[
    str | None, typer.Option("--vocabulary", help="Tokens that stay: task (all that the data use), or at most N.")
]
Step = Annotated[float | None, typer.Option(help="Share of the original parameters a round removes.")]
Tokens = Annotated[str | None, typer.Option(help="Recovery tokens of the whole run, such as 20M.")]
Tasks = Annotated[
    list[str] | None, typer.Option("--task", "-t", help="Tasks to measure: gsm8k, gsm8k=FOLDER, mine=rows.jsonl.")
]
Rivals = Annotated[
    list[str] | None,
    typer.Option(
        "--rival", help="Another model, asked the same: FOLDER, NAME, FILE.gguf; or the original's int8, int4."
    ),
]
Problems = Annotated[int | None, typer.Option("--n", min=1, max=MOST, help="Problems of each task.")]
Seed = Annotated[int | None, typer.Option(min=0, max=MOST_SEED, help="Seed of everything random.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps.")]
Sets = Annotated[
    list[str] | None, typer.Option("--set", help="Any key: score.samples=512, recover.0.learning_rate=1e-5.")
]


def options_of_a_run(
    model: ModelName = None,
    data: DataNames = None,
    target: Target = None,
    ladder: Ladder = None,
    keep: Keep = None,
    budget: Budget = None,
    vocabulary: Vocabulary = None,
    tokens: Tokens = None,
    task: Tasks = None,
    rival: Rivals = None,
    verifier: VerifierOption = None,
    n: Problems = None,
    seed: Seed = None,
    device: Device = None,
    launcher: Launcher = None,
    sets: Sets = None,
    columns: Columns = None,
    chat: Chat = False,
) -> Asked:
    """The options that `run` and `init` share, as typed."""
    return Asked(
        model=model,
        data=data or (),
        target=target,
        ladder=ladder,
        keep=keep,
        budget=budget,
        vocabulary=vocabulary,
        tokens=tokens,
        tasks=task or (),
        rivals=rival or (),
        verifier=verifier,
        n=n,
        seed=seed,
        device=device,
        launcher=launcher,
        sets=sets or (),
        columns=columns,
        chat=chat,
    )


@takes(options_of_a_run)
def run(
    asked: Asked,
    recipe: RecipeName = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Run folder; the same command again continues.")
    ] = None,
    step: Step = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the steps and stop.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Go on without a question if the original is weak.")] = False,
    as_json: Json = False,
) -> None:
    """Compact a model: prune a little, tune a little, until the target size."""
    watch = Watch()
    if not as_json:
        watch.line("prunetune run: the recipe, the model's config and the data are read and checked")
    from prunetune.cli.preview import check_first, check_inputs, closing, preview
    from prunetune.loop.pacing.rehearsal import foretold, rehearsed
    from prunetune.recipe.schema import Recipe

    asked = replace(asked, recipe=recipe, step=step)
    read = Recipe.parse(mapping_of(asked), recipe or "the options")
    out = out or Path("runs") / (Path(recipe).stem if recipe else Path(str(asked.model)).name)
    check_first(read, out)
    check_inputs(read)
    if dry_run:
        from prunetune.cli.forecast import forecast

        check_recipe(read)
        here = rehearsed(read, out, Watch(quiet=as_json), quiet_libraries)
        value, text = forecast(here.limited(read), None if asked.changes else recipe, measured=here.minutes is not None)
        return emit(as_json, value | here.to_json(), f"{text}\n\n{here.text}")
    if not as_json:
        watch.line(preview(read)[1])
        watch.line(foretold(read))
    quiet_libraries()
    from prunetune.loop.loop import prune_tune_loop
    from prunetune.loop.pacing.clock import process_began

    ask = not yes and sys.stdin.isatty()  # a script has nobody to ask: it is told, and goes on
    gc.freeze()  # modules stay: each collection of a run would walk through half a million of their objects
    summary = prune_tune_loop(read, out, watch, go_on=_asked_to_go_on if ask else None, began=process_began())
    emit(as_json, summary, closing(summary, out))
    return None


def _asked_to_go_on() -> bool:
    """What a person at the terminal answers; the end of the input is a no."""
    try:
        return typer.confirm("go on?", err=True)
    except typer.Abort:  # the end of the input, or a signal
        stopping.raise_if_asked()
        return False


@takes(options_of_a_run)
def init(
    asked: Asked,
    file: Annotated[Path, typer.Argument(help="The recipe to write.")] = Path("recipe.yaml"),
    as_json: Json = False,
) -> None:
    """Write a short recipe with a word on each key, from the options of `run`; `prunetune keys` tells the others."""
    from prunetune.cli.preview import check_names
    from prunetune.common.outputs import output_file
    from prunetune.recipe.schema import Recipe
    from prunetune.recipe.short import short

    value = mapping_of(asked)
    read = Recipe.parse(value, "the options")
    check_names(read)
    with output_file(file, seal=False) as tmp:  # it is there to be edited
        tmp.write_text(short(value, read), encoding="utf-8")
    emit(as_json, {"recipe": str(file)}, f"{file} is written; now: prunetune run {file} --dry-run")


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
    target: Annotated[str | None, typer.Option(help="What to keep: a share (0.6, 60%) or parameters (3B).")] = None,
    step: Annotated[float, typer.Option(min=0, max=1, help="Share of the original parameters a round removes.")] = 0.1,
    gpu: Annotated[str, typer.Option(help="GPU for the estimate of memory and hours.")] = "A100-80G",
    tokens: Annotated[
        int, typer.Option(min=1, max=MOST, help="Recovery tokens of the whole run, for the estimate of hours.")
    ] = 100_000_000,
    as_json: Json = False,
) -> None:
    """Shape and cost of a model, and what a target would take. No weights are loaded."""
    from prunetune.cli.about_model import description, model_config
    from prunetune.recipe.said import target as target_of
    from prunetune.recipe.schema import Recipe, shipped

    if model in shipped() and (meant := Recipe.read(model).model) != model:
        asked = f"prunetune run {model} --dry-run, or prunetune inspect {meant}"
        raise MissingPath("this is a recipe, not a model", value=model, fix=asked)
    kept = None if target is None else target_of(target)
    if isinstance(kept, str):
        fix = "prunetune run … --dry-run, which knows the bytes, and the speed of this machine"
        raise RecipeError("inspect knows shares and numbers of parameters", value=target, valid="0.6, 60%, 3B", fix=fix)
    emit(as_json, *description(model_config(model), target=kept, step=step, gpu=gpu, tokens=tokens))


def family(model: Model, as_json: Json = False) -> None:
    """Draft the entry of a model family that is not supported yet: what its config and its tensors' names tell."""
    from prunetune.cli.about_model import family_draft
    from prunetune.models.families import families

    made = family_draft(model)
    served = f"{made.model_type} is supported; this is what could be told of it without its entry.\n\n"
    where = '\n\nComplete it, and put it into models/families/entries.py or a plugin: docs/extend.md, "A family".'
    value = {"model_type": made.model_type, "supported": made.model_type in families(), "entry": made.source()}
    value |= {"told": made.told, "unsure": list(dict.fromkeys(made.unsure)), "unknown": made.unknown}
    emit(as_json, value, (served if value["supported"] else "") + made.text() + where)
