"""One prune by hand: `score`, `plan`, `compensate`, `apply`; and `vocabulary`, which cuts tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunetune.cli.options import MOST, Data, Device, Json, Launcher, Model, Seed, emit, quiet_libraries
from prunetune.cli.texts import Chat, Columns, with_columns
from prunetune.common.progress import Watch
from prunetune.errors import RecipeError
from prunetune.recipe.said import parse_data

if TYPE_CHECKING:
    from prunetune.data.example import Example
    from prunetune.pruning.vocabulary.folder import Fitted
    from prunetune.pruning.vocabulary.texts import Length


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
    axis: Annotated[
        list[str] | None, typer.Option(help="Score units of this axis, too: heads, query_heads, experts.")
    ] = None,
    offload: Annotated[
        bool, typer.Option("--offload", help="Read one layer after another, of a model larger than memory.")
    ] = False,
    seed: Seed = 0,
    device: Device = "auto",
    launcher: Launcher = None,
    as_json: Json = False,
) -> None:
    """Score how redundant every neuron and layer is (Eq. 2-6), into a safetensors file."""
    from prunetune.pruning.criteria import blockwise, forward_only
    from prunetune.pruning.criteria import criterion as find
    from prunetune.pruning.criteria import layer_criterion as find_layer
    from prunetune.pruning.statistics import statistic

    more = _axes(axis or ())
    for look_up, name in ((find, criterion), (find_layer, layer_criterion), (statistic, reduce)):
        look_up(name)
    blockwise(criterion, [name for name in more if name != "experts"])
    if offload:
        forward_only(criterion)
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
        more=more,
        offload=offload,
        launcher=launcher,
    )
    layers = scores.layers.argsort(stable=True).tolist()
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
    cut: Annotated[
        list[str] | None, typer.Option(help="Units of another axis that go: heads=1, query_heads=1, experts=16.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Decide what goes: a reviewable JSON file."""
    from prunetune.cli.made import is_plan
    from prunetune.common.outputs import output_file
    from prunetune.pruning.plan import make_plan
    from prunetune.pruning.scores import Scores

    found = Scores.read(scores)
    guarded = Scores.read(protect).neurons.tolist() if protect else None
    amounts = _amounts(cut or ())
    if not neurons and not layers and not any(amounts.values()):
        raise RecipeError("this plan would remove nothing", valid="--neurons N, --layers N and/or --cut heads=N")
    made = make_plan(
        found.neurons.tolist(),
        found.layers.tolist(),
        found.model_sha,
        n_neurons=neurons,
        n_layers=layers,
        which_layers=found.may_go(),
        protected=guarded,
        protect_share=protect_share if protect else 0.0,
        others=found.others(amounts),
        experts=found.experts,
    )
    with output_file(out, is_plan) as tmp:
        made.write(tmp)
    emit(
        as_json,
        made.model_dump(mode="json"),
        f"{made.depth} -> {made.new_depth} layers, width {made.width} -> {made.new_width}"
        + "".join(f", {n} {made.sizes[n]} -> {made.new_shape[n]}" for n in made.drop)
        + f": {out}",
    )


def _axes(names: Sequence[str]) -> list[str]:
    """Axes that can be scored beside layers and neurons; UnknownName for another."""
    from prunetune.errors import UnknownName
    from prunetune.models.axes import axes

    able = [name for name, axis in axes().items() if name == "experts" or (axis.readout and name != "neurons")]
    if wrong := [name for name in names if name not in able]:
        raise UnknownName("axis", wrong[0], able)
    return list(dict.fromkeys(names))


def _amounts(said: Sequence[str]) -> dict[str, int]:
    """`heads=1` -> {"heads": 1}."""
    found = {}
    for text in said:
        name, _, number = text.partition("=")
        _axes([name])
        if not number.isdecimal() or len(number) > 9:
            raise RecipeError("how many units go is a whole number", value=text, valid=f"{name}=1")
        found[name] = int(number)
    return found


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
    offload: Annotated[
        bool, typer.Option("--offload", help="Hidden states and the patch wait on disk, of a model larger than memory.")
    ] = False,
    seed: Seed = 0,
    device: Device = "auto",
    launcher: Launcher = None,
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
        launcher=launcher,
        offload=offload,
    )
    before, after = (sum(getattr(f, at) for f in patch.fits) for at in ("before", "after"))
    fits = [
        {"layer": f.layer, "ridge": f.ridge, "before": f.before, "after": f.after, "readout": f.readout}
        | ({} if f.experts is None else {"experts": f.experts})
        for f in patch.fits
    ]
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
    text_only: Annotated[
        bool, typer.Option("--text-only", help="Of a model with a vision tower, write the language model alone.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Cut a model as a plan says, streaming from shards to shards."""
    from prunetune.pruning.plan import PrunePlan

    read = PrunePlan.read(plan)
    from prunetune.cli.made import apply_plan

    apply_plan(read, model, out, patch, Watch(), text_only=text_only)
    emit(
        as_json,
        {"out": str(out), "depth": read.new_depth, "width": read.new_width},
        f"{read.new_depth} layers, width {read.new_width}: {out}",
    )


Guard = Annotated[
    list[str] | None,
    typer.Option("--guard", help="Texts that shall not become longer either; like --data."),
]
Measure = Annotated[
    list[str] | None,
    typer.Option("--measure", help="Texts that decide nothing: how much longer they become is said; like --data."),
]


def vocabulary(
    model: Model,
    out: Annotated[Path, typer.Argument(help="Model folder to write.")],
    data: Data,
    guard: Guard = None,
    measure: Measure = None,
    keep: Annotated[
        int | None, typer.Option(min=1, max=MOST, help="At most so many tokens; without it all that the texts use.")
    ] = None,
    align: Annotated[int, typer.Option(min=1, max=MOST, help="Rows of the embedding come in multiples of this.")] = 64,
    as_json: Json = False,
) -> None:
    """Keep the tokens that texts use: text made of them is cut into tokens as before, any other still comes through."""
    quiet_libraries()
    watch = Watch()
    fitted, lengths = _made(model, out, data, guard or [], measure or [], keep=keep, align=align, watch=watch)
    value, text = _told(out, model, fitted, lengths)
    emit(as_json, value, text)


def _made(
    model: str, out: Path, data: list[str], guard: list[str], measure: list[str], *, keep: int | None, align: int,
    watch: Watch,
) -> tuple[Fitted, dict[str, Length]]:  # fmt: skip
    """The folder, made once, and the lengths of all texts."""
    from prunetune.common.files import once
    from prunetune.common.outputs import output_new
    from prunetune.models.folders import load_tokenizer, model_sha, resolve_model
    from prunetune.pruning.vocabulary.folder import cut_vocabulary, fit
    from prunetune.pruning.vocabulary.texts import length

    source = resolve_model(model)
    task, guarded = _examples(data, watch), _examples(guard, watch)
    others = {name: _examples([name], watch) for name in measure}
    fitted = fit(source, task, guarded, keep=keep, align=align)

    def make(tmp: Path) -> None:
        with watch.bar("vocabulary") as bar:
            cut_vocabulary(source, fitted, tmp, progress=bar)

    key = {"vocabulary": fitted.sha, "model": model_sha(source)}
    with output_new(out, key) as made:
        if made is not None:
            watch.line(f"{out} is made already, with the same tokens of the same model")
        else:
            once(out, key, make)
    old, new = load_tokenizer(source), load_tokenizer(out)
    texts = {"data": task, "guard": guarded, **others}
    return fitted, {name: length(old, new, t, fitted.kept.rows) for name, t in texts.items() if t}


def _examples(names: list[str], watch: Watch) -> list[Example]:
    from prunetune.cli.texts import say, sources_of
    from prunetune.data.stream import load_stream

    if not names:
        return []
    stream = load_stream(sources_of([parse_data(n, 0) for n in names]), 0)
    say(watch, stream.notes)
    return list(stream.examples)


def _told(out: Path, model: str, fitted: Fitted, lengths: dict[str, Length]) -> tuple[dict[str, Any], str]:
    from prunetune.models.cost import params
    from prunetune.models.folders import config_values, resolve_model
    from prunetune.pruning.vocabulary.folder import left_out

    source, kept = resolve_model(model), fitted.kept
    before, after = (params(config_values(p)) for p in (source, out))
    rows = config_values(source)["vocab_size"]
    gone = left_out(source)
    lines = [
        f"{out}: {kept.tokens:,} of {len(fitted.tokenizer.tokens):,} tokens, {kept.used:,} of them used by the texts; "
        f"{rows:,} -> {len(kept.rows):,} rows",
        f"parameters: {before:,} -> {after:,} ({after / before:.1%})",
    ]
    if kept.lost:
        lines.append(f"{kept.lost:,} tokens that the texts use had no room: these texts become longer")
    lines += [
        f"{name}: x {x.ratio:.4f} tokens, {x.alike:,} of {x.texts:,} texts cut as before" for name, x in lengths.items()
    ]
    if gone:
        lines.append(f"left out, since they hold the old ids (tokenizer.json says it all): {', '.join(gone)}")
    value = {
        "out": str(out), "tokens": kept.tokens, "of": len(fitted.tokenizer.tokens), "used": kept.used,
        "lost": kept.lost, "rows": len(kept.rows), "original_rows": rows, "params": after, "original_params": before,
        "lengths": {name: asdict(x) | {"ratio": x.ratio} for name, x in lengths.items()}, "left_out": gone,
    }  # fmt: skip
    return value, "\n".join(lines)
