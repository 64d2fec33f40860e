"""One prune by hand: `score`, `plan`, `compensate`, `apply`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunetune.cli.options import MOST, Data, Device, Json, Model, Seed, emit, quiet_libraries
from prunetune.cli.texts import Chat, Columns, with_columns
from prunetune.common.progress import Watch
from prunetune.errors import RecipeError
from prunetune.recipe.said import parse_data


def score(
    model: Model,
    out: Annotated[Path, typer.Option("--out", "-o", help="Scores file to write.")],
    data: Data,
    criterion: Annotated[str, typer.Option(help="Neuron criterion; the paper's: contribution.")] = "greedy",
    reduce: Annotated[str, typer.Option(help="Reduction over tokens: mean, rms, max, q99.")] = "mean",
    layer_criterion: Annotated[str, typer.Option(help="Layer criterion: l2, relative, cosine.")] = "l2",
    samples: Annotated[int, typer.Option(min=1, max=MOST, help="Sequences to score.")] = 256,
    max_length: Annotated[int, typer.Option(min=2, max=MOST, help="Longer sequences are cut.")] = 1024,
    columns: Columns = None,
    chat: Chat = False,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Score how redundant every neuron and layer is (Eq. 2-6), into a safetensors file."""
    from prunetune.pruning.criteria import criterion as find
    from prunetune.pruning.criteria import layer_criterion as find_layer
    from prunetune.pruning.statistics import statistic

    find(criterion), find_layer(layer_criterion), statistic(reduce)
    quiet_libraries()
    from prunetune.cli.commands import score_file

    scores = score_file(
        model,
        [with_columns(parse_data(d, seed), columns) for d in data],
        out,
        criterion=criterion,
        reduce=reduce,
        layer_criterion=layer_criterion,
        samples=samples,
        max_length=max_length,
        seed=seed,
        device=device,
        watch=Watch(),
        chat=chat,
    )
    layers = sorted(range(len(scores.layers)), key=lambda i: float(scores.layers[i]))
    emit(
        as_json,
        {"out": str(out), "tokens": scores.tokens, "layers": scores.layers.tolist(), "criterion": scores.criterion},
        f"{scores.tokens:,} tokens scored into {out}\nlayers, most redundant first: {', '.join(map(str, layers))}",
    )


def plan(
    scores: Annotated[Path, typer.Argument(help="Scores file of `prunetune score`.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Plan (JSON) to write.")],
    neurons: Annotated[int, typer.Option(min=0, max=MOST, help="Neurons that every layer loses.")] = 0,
    layers: Annotated[int, typer.Option(min=0, max=MOST, help="Layers that go.")] = 0,
    protect: Annotated[Path | None, typer.Option(help="Scores on a corpus whose neurons stay.")] = None,
    protect_share: Annotated[float, typer.Option(min=0, max=1, help="Top share that stays.")] = 0.05,
    as_json: Json = False,
) -> None:
    """Decide what goes: a reviewable JSON file."""
    from prunetune.cli.made import is_plan
    from prunetune.common.outputs import output_file
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
    with output_file(out, is_plan) as tmp:
        made.write(tmp)
    emit(
        as_json,
        made.model_dump(mode="json"),
        f"{made.depth} -> {made.new_depth} layers, width {made.width} -> {made.new_width}: {out}",
    )


def compensate(
    plan: Annotated[Path, typer.Argument(help="Plan of `prunetune plan`.")],
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option("--out", "-o", help="Patch file to write.")],
    target: Annotated[str, typer.Option(help="What is made up for: auto, layer or stream.")] = "auto",
    samples: Annotated[int, typer.Option(min=2, max=MOST, help="Sequences: the ones that `score` took.")] = 256,
    max_length: Annotated[int, typer.Option(min=2, max=MOST, help="Longer sequences are cut.")] = 1024,
    columns: Columns = None,
    chat: Chat = False,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Fold what a plan removes into what stays, by least squares: a patch for `apply`."""
    quiet_libraries()
    from prunetune.cli.commands import patch_file

    patch = patch_file(
        plan,
        model,
        [with_columns(parse_data(d, seed), columns) for d in data],
        out,
        target=target,
        samples=samples,
        max_length=max_length,
        seed=seed,
        device=device,
        watch=Watch(),
        chat=chat,
    )
    before, after = (sum(getattr(f, at) for f in patch.fits) for at in ("before", "after"))
    fits = [{"layer": f.layer, "ridge": f.ridge, "before": f.before, "after": f.after} for f in patch.fits]
    kept = f"{after / before:.1%} of the error left" if before else "nothing to make up for"
    emit(
        as_json,
        {"out": str(out), "tokens": patch.tokens, "held_out_tokens": patch.held_out_tokens, "fits": fits},
        f"{patch.tokens:,} tokens, {len(patch.fits)} layers, {kept} on held-out tokens: {out}",
    )


def apply(
    plan: Annotated[Path, typer.Argument(help="Plan of `prunetune plan`.")],
    model: Model,
    out: Annotated[Path, typer.Argument(help="Model folder to write.")],
    patch: Annotated[Path | None, typer.Option(help="Patch of `prunetune compensate`.")] = None,
    as_json: Json = False,
) -> None:
    """Cut a model as a plan says, streaming from shards to shards."""
    from prunetune.pruning.plan import PrunePlan

    read = PrunePlan.read(plan)
    from prunetune.cli.made import apply_plan

    apply_plan(read, model, out, patch, Watch())
    emit(
        as_json,
        {"out": str(out), "depth": read.new_depth, "width": read.new_width},
        f"{read.new_depth} layers, width {read.new_width}: {out}",
    )
