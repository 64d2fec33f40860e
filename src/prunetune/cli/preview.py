"""What the command line says of a model or a run: size, cost and steps before, original against compacted after.

Every function gives the same facts twice: as plain values for machines, and as text for people.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunetune.common.table import aligned
from prunetune.errors import plain

if TYPE_CHECKING:
    from prunetune.data.stream import DataSource
    from prunetune.evaluation.evaluate import EvalResult
    from prunetune.recipe.schema import Recipe
    from prunetune.runs.summary import Accuracy, Summary
    from prunetune.schedule.sizes import Sizes
    from prunetune.schedule.steps import Ahead
    from prunetune.schedule.target import PruneConfig


def check_first(recipe: Recipe, out: Path) -> None:
    """What is wrong by the recipe, the run folder and the model's config alone: before data and large libraries."""
    from prunetune.errors import MissingPath
    from prunetune.models.folders import check_slip, is_here
    from prunetune.recipe.schema import shipped
    from prunetune.runs.folder import RunFolder

    check_names(recipe)
    if recipe.model in shipped() and recipe.model != "demo":
        raise MissingPath("this is a recipe, not a model", value=recipe.model, fix=f"prunetune run {recipe.model}")
    RunFolder.check(out, recipe, out)
    check_slip(recipe.model)
    if is_here(recipe.model):
        preview(recipe)


def check_inputs(recipe: Recipe) -> None:
    """What is wrong with a recipe's data and tasks, as far as it can be known without a hub and without work."""
    from prunetune.data.stream import load_stream
    from prunetune.errors import OutOfReach
    from prunetune.tasks.registry import build_judge, build_task

    check_names(recipe)
    check_rivals(recipe)
    for task in recipe.evaluate.tasks:
        if task.path is not None and not task.name.startswith("lm-eval:"):
            build_task(task)
        elif task.verifier is not None:
            build_judge(task)
    local = all(s.type in ("file", "demo") for s in recipe.data)
    for source in _sources(recipe):
        if source.type == "file" and not (local and source in recipe.data):
            load_stream([source], recipe.seed)
    if local:
        rows = len(load_stream(recipe.data, recipe.seed))
        if recipe.score.samples == "auto":  # takes what the data spare
            return
        reserved = recipe.reserved
        if rows <= reserved:
            raise OutOfReach(
                "scoring and held-out loss would use up all the data",
                value=f"{rows} different sequences",
                valid=f"more than {reserved} ({'' if recipe.score.data else 'score.samples + '}score.held_out)",
                fix="more data, or fewer of them: "
                f"--set score.samples={max(1, rows // 2)} --set score.held_out={max(1, rows // 8)}",
            )


def check_names(recipe: Recipe) -> None:
    """Names in a recipe that nothing has: tasks, presets, generators, the launcher. No file is read."""
    from prunetune.data.generators import check_generator
    from prunetune.data.stream import PRESETS
    from prunetune.errors import UnknownName
    from prunetune.recipe.traces import judge_of, traces_of
    from prunetune.tasks.registry import check_task
    from prunetune.tune.launch import launcher_arguments

    for task in recipe.evaluate.tasks:
        check_task(task)
    for traces in traces_of(recipe):
        check_task(judge_of(recipe, traces))
    for source in _sources(recipe):
        if source.type == "preset" and source.name not in PRESETS:
            raise UnknownName("preset", source.name, PRESETS)
        if source.type == "generator":
            check_generator(source.name)
    if recipe.launcher is not None:
        launcher_arguments(recipe.launcher)


def check_rivals(recipe: Recipe) -> None:
    """Rivals that are here: whether they can be loaded safely. Those of a hub the run itself fetches."""
    from prunetune.models.folders import is_here, resolve_model
    from prunetune.recipe.measured import WEIGHT_ONLY

    for name in recipe.evaluate.rivals:
        if name not in WEIGHT_ONLY and is_here(name):
            resolve_model(name)


def _sources(recipe: Recipe) -> list[DataSource]:
    own = [s for m in recipe.recover for s in m.data or ()]
    every = [*recipe.data, *own, *(recipe.score.data or ()), *(recipe.protect.data if recipe.protect else [])]
    return [s.source if s.type == "traces" else s for s in every]


def preview(recipe: Recipe) -> tuple[dict[str, Any], str]:
    """The steps with predicted size and FLOPs, before anything runs."""
    from prunetune.cli.about_model import model_config
    from prunetune.schedule.search import MOST
    from prunetune.schedule.steps import check_protection, plan_ahead
    from prunetune.schedule.target import SEARCHED

    config = model_config(recipe.model)
    sizes, told = _sizes(recipe, config)
    ahead = plan_ahead(recipe.prune, sizes) if recipe.foreseen and told else []
    if recipe.protect:
        check_protection(ahead, sizes.width, recipe.protect.share)
    rows = [_row(config, sizes, *shape) for shape in _shapes(recipe, sizes, ahead, told)]
    lines = [
        _table(rows),
        "(FLOPs of a question of 512 prompt tokens and 256 generated; the report has those of your tasks' own)",
    ]
    if sizes.others:
        said = ", ".join(f"{n:,} {name}" for name, n in sizes.others.items())
        lines.append(f"from the first round on also: {said}")
    if not told:
        lines.append("vocabulary: fitted to the data before the first round; the target counts against the original")
    else:
        lines += about_periods(recipe.prune, config, sizes)
    if recipe.prune.open:
        names = ", ".join(recipe.prune.axes or SEARCHED)
        how = f"by the held-out loss of at most {MOST} cuts"
        lines.append(f"shape: chosen for {recipe.prune.target} among {names}, {how}")
    lines += [*about_choice(recipe), *about_traces(recipe), *about_rates(recipe, rows[-1]["params"])]
    if recipe.stop:
        lines.append(
            f"stop_at: a search for the smallest model that keeps {recipe.stop.accuracy:.1%} of the accuracy, no "
            "smaller than the target"
        )
    if recipe.foreseen and told:
        return {"steps": rows, "rounds": len(ahead)}, "\n".join(lines)
    most = recipe.prune.max_rounds
    who = "the held-out loss that a cut adds decides, as it is measured before each round (budget: damage)"
    if recipe.prune.by_threshold or recipe.searches:
        who = "the thresholds decide" if recipe.prune.by_threshold else "what each try keeps of the accuracy decides"
    text = f"rounds: unknown{f', at most {most}' if most else ''}; {who}"
    return {"steps": rows, "rounds": "unknown", "max_rounds": most}, "\n".join([*lines, text])


def about_traces(recipe: Recipe) -> list[str]:
    """What is sampled, a line each."""
    from prunetune.recipe.traces import judge_of, traces_of

    said = []
    for t in traces_of(recipe):
        asked = "all questions" if t.n is None else f"{t.n:,} questions"
        where = getattr(t.source, "path", None) or getattr(t.source, "name", "")
        said.append(
            f"traces: {t.per_question} answers of the {t.of} model to each of {asked} of {t.source.type} {where}, "
            f"judged by {t.verifier or judge_of(recipe, t).name}, of which {t.keep} may stay; "
            + ("sampled anew before each round" if t.renew else "sampled once")
            + ", kept in RUN/traces"
        )
    return said


def _shapes(recipe: Recipe, sizes: Sizes, ahead: Sequence[Ahead], told: bool) -> list[tuple[str, int, int]]:
    """(name, depth, width) of the original, of every step that is known, and of the rungs or of the target.

    `told`: whether the sizes are all that decides.
    """
    from prunetune.schedule.target import final_shape
    from prunetune.schedule.way import rungs

    shapes = [("original", sizes.depth, sizes.width), *((a.step.name, a.depth, a.width) for a in ahead)]
    if recipe.prune.ladder:
        ends = {at: share for share, at in zip(recipe.prune.ladder, rungs(recipe.prune, sizes), strict=True)}
        if recipe.foreseen:
            return [(f"{name} = {ends[d, w]:g}" if (d, w) in ends else name, d, w) for name, d, w in shapes]
        return [*shapes, *((f"rung {share:g}", *at) for at, share in ends.items())]
    if (recipe.probed or recipe.searches) and not recipe.prune.open and told:
        shapes.append(("target", *final_shape(recipe.prune, sizes)))
    return shapes


def about_choice(recipe: Recipe) -> list[str]:
    """What a ladder leaves, and who is asked the same; nothing where there is neither."""
    from prunetune.runs.summary import rung_folder

    lines = []
    if recipe.prune.ladder:
        folders = ", ".join(rung_folder(share) for share in recipe.prune.ladder)
        keeps = f"; the smallest that keeps {recipe.stop_at.accuracy:.1%} is recommended" if recipe.stop_at else ""
        lines.append(f"ladder: each rung ends a round and is a model of its own: {folders}{keeps}")
    if recipe.evaluate.rivals:
        lines.append(f"rivals, asked the same: {', '.join(recipe.evaluate.rivals)}")
    return lines


def about_rates(recipe: Recipe, parameters: int) -> list[str]:
    """The learning rate of each method that leaves it to us, for the model at its target."""
    return [
        f"learning rate: {m.type} {m.rate(parameters):.1e}, by the parameters left and {m.batch_size} sequences a step"
        for m in recipe.recover
        if m.learning_rate == "auto"
    ]


def _sizes(recipe: Recipe, config: Any) -> tuple[Sizes, bool]:
    """What the schedule counts with, and whether that is all: only the data tell which tokens they use."""
    from prunetune.schedule.sizes import Sizes
    from prunetune.schedule.steps import check_removes

    wanted, axes = recipe.prune.vocabulary, recipe.prune.axes or ()
    left = wanted.keep if wanted and isinstance(wanted.keep, int) and "vocabulary" not in axes else None
    sizes = Sizes.of(config, recipe.prune.cut, left)
    check_removes(recipe.prune, sizes)
    return sizes, wanted is None or left is not None


def _row(config: Any, sizes: Sizes, name: str, depth: int, width: int) -> dict[str, Any]:
    """One line of the table."""
    from prunetune.models.cost import cost_of

    shape = {"layers": depth, "neurons": width} | ({} if name == "original" else dict(sizes.others))
    cost = cost_of(config, shape=shape)
    return {
        "step": name,
        "depth": depth,
        "width": width,
        "shape": shape,
        "params": cost.params,
        "params_ratio": cost.params / sizes.original,
        "weight_bytes": cost.weight_bytes,
        "flops_prefill_512": cost.flops(512, 1).prefill,
        "flops_512_256": cost.flops(512, 256).total,
    }


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The steps, a line each."""
    header = ("step", "layers", "width", "parameters", "share", "GFLOPs a question")
    told = "{step}\n{depth}\n{width}\n{params:,}\n{params_ratio:.1%}"
    cells = [[*told.format(**r).split("\n"), f"{r['flops_512_256'] / 1e9:,.1f}"] for r in rows]
    return aligned(cells, header)


def about_periods(prune: PruneConfig, config: Any, sizes: Sizes) -> list[str]:
    """What the layers that go mean for engines that hard-code the family's pattern; nothing where there is none."""
    from prunetune.models.families.pattern import engine_pattern
    from prunetune.schedule.target import final_shape, period_in

    values = config if isinstance(config, dict) else config.to_dict()
    whole = f"layers that go in whole periods of {sizes.period} keep such engines"
    if prune.by_threshold:
        may = sizes.period > 1 and prune.sigma_layer is not None
        return [f"a threshold may take any layers of {values['model_type']}: {whole}"] if may else []
    lost = 0 if prune.open else sizes.depth - final_shape(prune, sizes)[0]
    if sizes.period == 1 or not lost:
        return []
    if period_in(prune, sizes) > 1:
        return [
            f"layers go in whole periods of {sizes.period}, for llama.cpp hard-codes the pattern of "
            f"{values['model_type']} (prune.whole_periods: false lifts that)"
        ]
    gone = prune.layers if isinstance(prune.layers, list) else range(sizes.depth - lost, sizes.depth)
    kept = [i for i in range(sizes.depth) if i not in gone]
    if isinstance(prune.layers, list) and engine_pattern(values, kept) is None:
        return []
    return [
        f"warning: {lost} layers of {values['model_type']} go, which break the pattern that llama.cpp and engines like "
        f"it hard-code: they would compute another model. {whole[0].upper()}{whole[1:]}"
    ]


def scores(result: EvalResult) -> str:
    """One line on one task's result: the figure in its own unit, further scores, on what."""
    from prunetune.common.units import is_share, measured, metric

    more = [
        f"{metric(name)} {measured(value, result.scores.get(f'{name}_stderr'), name)}"
        for name, value in result.scores.items()
        if name != result.metric and not name.endswith("_stderr")
    ]
    answers = f", {result.new_tokens:.0f} tokens an answer" if is_share(result.metric) else ""
    shots = f", {result.shots} shots" if result.shots else ""
    return (
        f"{result.task:<24}{metric(result.metric)} {measured(result.value, result.stderr, result.metric, result.n)}   "
        f"n = {result.n:,}{'' if is_share(result.metric) else ' tokens'}, seed {result.seed}{shots}{answers}"
        + "".join(f"; {text}" for text in more)
    )


def closing(summary: Summary, out: Path) -> str:
    """A word on the result first; then original, compacted and control side by side, and where things are."""
    from prunetune.common.units import count, is_share, measured
    from prunetune.report.conclusion import conclude
    from prunetune.report.sizes import sentences
    from prunetune.report.view import answers_of
    from prunetune.runs.reading import read_run
    from prunetune.runs.summary import Accuracy

    original, final, control = summary.original, summary.final, summary.control
    run = read_run(out)
    said, answers = conclude(run), answers_of(run)
    metrics = {e.task: e.metric for e in (original.evals if original else ())}
    lines = ["", *(said.lines() if said is not None else ())]
    heads = [f"{t}, n = {a.n:,}" if a.n and is_share(metrics.get(t, t)) else t for t, a in summary.accuracy.items()]
    full = (original.params if original else None) or 1

    def row(name: str, params: float, of: str, figures: Mapping[str, Accuracy]) -> list[str]:
        each = ((t, getattr(a, of), getattr(a, f"{of}_stderr"), a.n) for t, a in figures.items())
        told = [_beside(measured(x, error, metrics[t], n), n, summary.accuracy[t].n) for t, x, error, n in each]
        return [name, count(params), f"{params / full:.1%}", *told]

    rows = [row("original", full, "original", summary.accuracy)]
    rows += [row(f"rung {rung.share:g}", rung.params or 0, "final", rung.accuracy) for rung in summary.ladder[:-1]]
    rows.append(row("compacted", (final.params if final else None) or 0, "final", summary.accuracy))
    for rival in summary.rivals:
        theirs = {e.task: Accuracy(final=e.value, final_stderr=e.stderr, n=e.n) for e in rival.evals}
        known = {t: a for t, a in theirs.items() if t in summary.accuracy}
        rows.append(row(f"rival {Path(rival.name).name}", rival.params or 0, "final", known))
    if control:
        rows.append(row(control.name, (control.params_ratio or 0) * full, "final", control.accuracy))
    lines += ["", aligned(rows, ("", "parameters", "share", *heads))]
    if control:
        spent = summary.recovery_tokens or 0, control.recovery_tokens or 0
        lines.append(f"\nrecovery tokens: {spent[0]:,} compacted, {spent[1]:,} {control.name}")
    lines += ["", *sentences(run)] if summary.ladder or summary.rivals else []
    if answers is not None:
        lines.append(f"\none question: {one_line(answers.question)}")
        lines += [f"{name:<22}{'right' if a.correct else 'wrong':<7}{one_line(a.output)}" for name, a in answers.by]
    lines.append(f"\nmodel   {out / 'final'}\nreport  {out / 'report.html'}")
    return "\n".join(lines)


def _beside(figure: str, n: int | None, usual: int | None) -> str:
    """A figure, with its n where that is not the one at the head of the table."""
    return figure if n == usual or not n else f"{figure}, n = {n:,}"


def one_line(text: str, most: int = 90) -> str:
    """A text on one line of the console, cut where it is long; what a terminal would obey is escaped."""
    return plain(" / ".join(text.split("\n")).strip(), most)
