"""The command line: each command is one call. Bad input is one message on stderr and exit code 2.

Heavy libraries are imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunetune.common.progress import Watch
from prunetune.errors import MissingPath, PrunetuneError, RecipeError

if TYPE_CHECKING:
    from prunetune.recipe.schema import Recipe

app = typer.Typer(
    name="prunetune",
    help="Make a reasoning language model half its size without losing its reasoning.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")]
Model = Annotated[str, typer.Argument(help="demo, a folder, a .gguf file, package:NAME, or a hub name.")]
Data = Annotated[
    list[str],
    typer.Option(
        "--data", "-d", help="FILE (JSONL, JSON, Parquet, text), generator:NAME, preset:NAME, demo, or a hub name."
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]


def main() -> None:
    """Entry point of the console script."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Set before torch loads OpenMP: threads that spin at a barrier starve each other on a busy machine (docs/log.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")  # bars are ours (ui.py)
    try:
        app()
    except SystemExit as e:
        if e.code == 130:  # typer's word for Ctrl-C
            print("interrupted; the same command continues", file=sys.stderr)
        raise
    except PrunetuneError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)
    except ValueError as e:
        from pydantic import ValidationError

        from prunetune.recipe.explain import explain

        if not isinstance(e, ValidationError):
            raise

        print(f"error: {explain(e, 'the options')}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        sys.exit(130)


def _emit(as_json: bool, value: Any, text: str = "") -> None:
    """JSON for machines, text for people."""
    if as_json:
        print(json.dumps(value, indent=2, default=str))
    elif text:
        print(text)


def _quiet() -> None:
    """Libraries say only what a user must act on."""
    import datasets
    import transformers

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def parse_data(text: str, seed: int = 0) -> dict[str, Any]:
    """`--data` as a data source of a recipe."""
    kind, _, name = text.partition(":")
    if text == "demo":
        return {"type": "demo", "size": 20000, "seed": seed}
    if kind == "generator" and name:
        return {"type": "generator", "name": name, "size": 5000, "seed": seed}
    if kind == "preset" and name:
        return {"type": "preset", "name": name}
    path = Path(os.path.expandvars(text)).expanduser()
    if (
        path.exists()
        or path.suffix in (".jsonl", ".json", ".parquet", ".txt", ".raw")
        or text.startswith(("/", ".", "~", "$"))
    ):
        return {"type": "file", "path": text}
    return {"type": "hub", "name": text}


def named_path(text: str) -> tuple[str, str]:
    """`--data NAME=PATH` of an evaluation."""
    name, _, path = text.partition("=")
    if not name or not path:
        raise RecipeError("data of a task have its name in front", value=text, valid="NAME=PATH", fix=f"gsm8k={text}")
    return name, path


# ------------------------------------------------------------------------------------------------------------------ run


@app.command()
def run(
    recipe: Annotated[str | None, typer.Argument(help="A YAML file, or a shipped recipe such as demo.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Run folder; the same command again continues.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Instead of a recipe: the model.")] = None,
    data: Annotated[list[str] | None, typer.Option("--data", "-d", help="Instead of a recipe: reasoning data.")] = None,
    target: Annotated[float | None, typer.Option(help="Share of the parameters to keep (0.6), or a count.")] = None,
    step: Annotated[float | None, typer.Option(help="Share of the original parameters a round removes.")] = None,
    task: Annotated[list[str] | None, typer.Option("--task", "-t", help="Tasks to measure, such as gsm8k.")] = None,
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
                "evaluate": {"tasks": [{"name": t} for t in task or []]},
            },
            "the options",
        )
    read = _overridden(read, target if recipe else None, step, task if recipe else None, launcher)
    out = out or Path("runs") / (Path(recipe).stem if recipe else Path(str(model)).name)
    check_inputs(read)
    if dry_run:
        from prunetune.cli.forecast import forecast

        return _emit(as_json, *forecast(read, recipe if target is None and step is None else None))
    _quiet()
    from prunetune.loop.loop import prune_tune_loop

    watch = Watch()
    if not as_json:
        watch.line(preview(read)[1])
    summary = prune_tune_loop(read, out, watch)
    _emit(as_json, summary, closing(summary, out))
    return None


def _overridden(
    recipe: Recipe, target: float | None, step: float | None, tasks: list[str] | None, launcher: str | None
) -> Recipe:
    """The recipe with what the command line says."""
    from prunetune.cli.preview import number

    value = recipe.model_dump(mode="json", exclude_unset=True)
    if target is not None:
        value["prune"]["target"] = number(target)
    if step is not None:
        value["prune"] |= {"step": step, "rounds": None}
    if tasks:
        value.setdefault("evaluate", {})["tasks"] = [{"name": t} for t in tasks]
    if launcher is not None:
        value["launcher"] = launcher
    return type(recipe).parse(value, "the options")


@app.command()
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
    _emit(
        as_json,
        [vars(s) | {"keys": list(map(vars, s.keys))} for s in found],
        (markdown if as_markdown else text)(found),
    )


# -------------------------------------------------------------------------------------------------------------- inspect


@app.command()
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
    _emit(as_json, *description(config_folder(model), target=target, step=step, gpu=gpu, tokens=tokens))


# ------------------------------------------------------------------------------------------- the stages, one at a time


@app.command()
def score(
    model: Model,
    out: Annotated[Path, typer.Option("--out", "-o", help="Scores file to write.")],
    data: Data,
    criterion: Annotated[str, typer.Option(help="Neuron criterion.")] = "contribution",
    reduce: Annotated[str, typer.Option(help="Reduction over tokens: mean, rms, max, q99.")] = "mean",
    layer_criterion: Annotated[str, typer.Option(help="Layer criterion: l2, relative, cosine.")] = "l2",
    samples: Annotated[int, typer.Option(help="Sequences to score.")] = 256,
    max_length: Annotated[int, typer.Option(help="Longer sequences are cut.")] = 1024,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Score how redundant every neuron and layer is (Eq. 2-6), into a safetensors file."""
    from prunetune.pruning.criteria import criterion as find
    from prunetune.pruning.criteria import layer_criterion as find_layer

    find(criterion), find_layer(layer_criterion)
    _quiet()
    from prunetune.cli.commands import score_file

    scores = score_file(
        model,
        [parse_data(d, seed) for d in data],
        out,
        criterion=criterion,
        reduce=reduce,
        layer_criterion=layer_criterion,
        samples=samples,
        max_length=max_length,
        seed=seed,
        device=device,
        watch=Watch(),
    )
    layers = sorted(range(len(scores.layers)), key=lambda i: float(scores.layers[i]))
    _emit(
        as_json,
        {"out": str(out), "tokens": scores.tokens, "layers": scores.layers.tolist(), "criterion": scores.criterion},
        f"{scores.tokens:,} tokens scored into {out}\nlayers, most redundant first: {', '.join(map(str, layers))}",
    )


@app.command()
def plan(
    scores: Annotated[Path, typer.Argument(help="Scores file of `prunetune score`.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Plan (JSON) to write.")],
    neurons: Annotated[int, typer.Option(min=0, help="Neurons that every layer loses.")] = 0,
    layers: Annotated[int, typer.Option(min=0, help="Layers that go.")] = 0,
    protect: Annotated[Path | None, typer.Option(help="Scores on a corpus whose neurons stay.")] = None,
    protect_share: Annotated[float, typer.Option(min=0, max=1, help="Top share that stays.")] = 0.05,
    as_json: Json = False,
) -> None:
    """Decide what goes: a reviewable JSON file."""
    from prunetune.pruning.plan import make_plan
    from prunetune.pruning.scores import Scores

    found = Scores.read(scores)
    guarded = Scores.read(protect).neurons.tolist() if protect else None
    if not neurons and not layers:
        raise RecipeError("this plan would remove nothing", valid="--neurons N and/or --layers N")
    made = make_plan(
        found.neurons.tolist(),
        found.layers.tolist(),
        found.model_sha,
        n_neurons=neurons,
        n_layers=layers,
        protected=guarded,
        protect_share=protect_share if protect else 0.0,
    )
    made.write(out)
    _emit(
        as_json,
        made.model_dump(mode="json"),
        f"{made.depth} -> {made.new_depth} layers, width {made.width} -> {made.new_width}: {out}",
    )


@app.command()
def apply(
    plan: Annotated[Path, typer.Argument(help="Plan of `prunetune plan`.")],
    model: Model,
    out: Annotated[Path, typer.Argument(help="Model folder to write.")],
    as_json: Json = False,
) -> None:
    """Cut a model as a plan says, streaming from shards to shards."""
    from prunetune.pruning.plan import PrunePlan

    read = PrunePlan.read(plan)
    from prunetune.models.folders import resolve_model
    from prunetune.pruning.apply import apply_on_disk

    with Watch().bar("apply") as bar:
        apply_on_disk(resolve_model(model), read, out, progress=bar)
    _emit(
        as_json,
        {"out": str(out), "depth": read.new_depth, "width": read.new_width},
        f"{read.new_depth} layers, width {read.new_width}: {out}",
    )


@app.command()
def tune(
    method: Annotated[str, typer.Argument(help="cpt, sft, distill or grpo.")],
    model: Model,
    out: Annotated[Path, typer.Argument(help="Model folder to write.")],
    data: Data,
    config: Annotated[Path | None, typer.Option(help="YAML with the method's settings.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Budget in tokens.")] = None,
    samples: Annotated[int | None, typer.Option(help="Budget in examples.")] = None,
    task: Annotated[str | None, typer.Option(help="Task whose verifier rewards (grpo).")] = None,
    teacher: Annotated[str | None, typer.Option(help="Teacher model (distill).")] = None,
    launcher: Annotated[
        str | None, typer.Option(help="Arguments of accelerate launch, or ddp, fsdp2, zero2, zero3.")
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Recover (or teach) a model with one method; killed and started again, it continues."""
    from prunetune.cli.commands import method_of, tune_model

    chosen = method_of(method, config, tokens=tokens, samples=samples)
    _quiet()
    result = tune_model(
        chosen,
        model,
        out,
        [parse_data(d, seed) for d in data],
        task=task,
        teacher=teacher,
        launcher=launcher,
        seed=seed,
        device=device,
        watch=Watch(),
    )
    _emit(
        as_json,
        result.to_json(),
        f"{result.samples:,} examples, {result.tokens:,} tokens in {result.seconds:.0f} s "
        f"({result.tokens_per_s:,.0f} tokens/s; {result.truncated} examples cut): {out}",
    )


@app.command()
def generate(
    model: Model,
    out: Annotated[Path, typer.Argument(help="JSONL file to write: {question, answer} rows, data for a recipe.")],
    data: Data,
    task: Annotated[
        str | None, typer.Option("--task", "-t", help="Task whose verifier judges; default: the one of the data.")
    ] = None,
    verifier: Annotated[str | None, typer.Option(help="For rows of your own: number, boxed, exact.")] = None,
    samples_per_question: Annotated[int, typer.Option(min=1, help="Answers sampled for each question.")] = 4,
    keep: Annotated[int, typer.Option(min=1, help="Different right answers kept of a question, shortest first.")] = 1,
    n: Annotated[int | None, typer.Option(min=1, help="Questions; default: all.")] = None,
    temperature: Annotated[float, typer.Option(help="Sampling temperature.")] = 0.7,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer; default: the task's.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions at once.")] = 16,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """A model's own verified answers as recovery data; killed and started again, it continues."""
    from prunetune.cli.commands import judge_of, sample_traces

    sources = [parse_data(d, seed) for d in data]
    judge = judge_of(task, verifier, data, sources)
    _quiet()
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
    )
    _emit(
        as_json,
        {"out": str(out), **vars(made)},
        f"{made.kept:,} verified answers to {made.solved:,} of {made.questions:,} questions "
        f"({made.correct:.0%} of the samples were right): {out}",
    )


@app.command(name="eval")
def eval_(
    model: Model,
    task: Annotated[
        list[str],
        typer.Option(
            "--task",
            "-t",
            help="gsm8k, math, mbpp, squad, perplexity, gsm_symbolic, demo, reasoning-gym:NAME, lm-eval:NAME.",
        ),
    ],
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
    verifier: Annotated[str | None, typer.Option(help="For rows of your own: number, boxed, exact.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Questions at once; default: by memory.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Use the model's chat template.")] = False,
    shots: Annotated[int | None, typer.Option(min=0, help="Worked examples (mbpp, lm-eval); default: its own.")] = None,
    allow_code_execution: Annotated[
        bool, typer.Option("--allow-code-execution", help="Run what the model writes, in the sandbox (mbpp).")
    ] = False,
    backend: Annotated[str, typer.Option(help="transformers, or vllm for lm-eval's tasks.")] = "transformers",
    seed: Annotated[int, typer.Option(help="Seed of everything random; 0 leaves lm-eval its own seeds.")] = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure a model on tasks: with verifiers of ours, lm-eval's, or the perplexity of a text."""
    _quiet()
    from prunetune.cli.commands import eval_model, eval_tasks
    from prunetune.cli.preview import scores

    tasks = eval_tasks(
        task,
        dict(named_path(d) for d in data or []),
        path=path,
        verifier=verifier,
        n=n,
        seed=seed,
        allow_code_execution=allow_code_execution,
        options={} if shots is None else {"shots": shots},
    )
    results = eval_model(
        model, tasks, out, batch_size=batch_size, chat=chat, backend=backend, device=device, watch=Watch()
    )
    _emit(as_json, [r.to_json() for r in results], "\n".join(map(scores, results)))


# -------------------------------------------------------------------------------------------------------------- reading


@app.command()
def report(run: Annotated[Path, typer.Argument(help="Run folder.")], as_json: Json = False) -> None:
    """Write report.md, report.html and figures/ of a run anew."""
    from prunetune.report.write import write_report

    write_report(run)
    _emit(as_json, {"report": str(run / "report.html")}, f"{run / 'report.md'}\n{run / 'report.html'}")


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run folders; RUN/control is one too.")],
    form: Annotated[str, typer.Option("--format", help="text, markdown, csv or json.")] = "text",
    figure: Annotated[Path | None, typer.Option(help="Also write the accuracy-against-size plot (SVG) here.")] = None,
    as_json: Json = False,
) -> None:
    """The paper's Table 1 for any runs, with paired tests on the same questions."""
    from prunetune.report.compare import compare as compare_runs

    found = compare_runs(runs)
    if figure is not None:
        found.write_figure(figure)
    print(found.render("json" if as_json else form))


@app.command()
def check(run: Annotated[Path, typer.Argument(help="Run folder.")], as_json: Json = False) -> None:
    """Does RUN/final work where people will use it? One line a consumer."""
    from prunetune.publish.check import check as check_run

    lines = check_run(run)
    words = {True: "yes", False: "no", None: "not installed"}
    _emit(
        as_json,
        [{"name": x.name, "ok": x.ok, "reason": x.reason} for x in lines],
        "\n".join(f"{x.name:<28}{words[x.ok]:<14}{x.reason}" for x in lines),
    )
    if any(x.ok is False for x in lines):
        raise typer.Exit(1)


@app.command()
def push(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    repo: Annotated[str, typer.Argument(help="Hub repository, OWNER/NAME.")],
    upload: Annotated[bool, typer.Option("--upload", help="Upload; without it, only say what would be.")] = False,
    private: Annotated[bool, typer.Option("--private/--public", help="Visibility of a new repository.")] = True,
    as_json: Json = False,
) -> None:
    """Publish RUN/final on the hub. A dry run unless --upload is given."""
    from prunetune.publish.push import push as push_run

    done = push_run(run, repo, dry_run=not upload, private=private)
    _emit(as_json, done.to_json(), done.text())
