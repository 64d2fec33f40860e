"""What the single-stage commands do: score a model, tune it, sample it. The loop does not use this; people do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from prunetune.cli.made import is_patch, is_scores
from prunetune.cli.options import judged_by, parse_task
from prunetune.cli.texts import check_texts, format_of, placed, sequences_of, sources_of
from prunetune.common.files import MARK, once, remove, temporary
from prunetune.common.outputs import claim, full_path, output_file, output_new
from prunetune.common.plugins import lookup
from prunetune.common.progress import Watch
from prunetune.common.yaml import read_yaml
from prunetune.data.stream import load_stream
from prunetune.errors import PrunetuneError, RecipeError
from prunetune.models.folders import model_sha, resolve_model
from prunetune.tasks.registry import JUDGES, TaskConfig, build_judge, check_task
from prunetune.tune.methods import METHODS, Method

if TYPE_CHECKING:
    from prunetune.pruning.halfway import Halfway
    from prunetune.pruning.patch import Patch
    from prunetune.pruning.scores import Scores
    from prunetune.tune.job import TuneResult
    from prunetune.tune.traces import Traces


def score_file(
    model: str,
    data: Sequence[dict[str, Any]],
    out: Path,
    *,
    criterion: str,
    reduce: str,
    layer_criterion: str,
    samples: int,
    max_length: int,
    seed: int,
    device: str,
    watch: Watch,
    chat: bool = False,
    more: Sequence[str] = (),
    offload: bool = False,
    launcher: str | None = None,
) -> Scores:
    """Score a model on the first `samples` of the data, and write the scores."""
    from prunetune.loop.workers.pool import alone_or_held, score_held
    from prunetune.pruning.scores import make_batches

    key = [
        model,
        list(data),
        criterion,
        reduce,
        layer_criterion,
        samples,
        max_length,
        seed,
        *(["chat"] if chat else []),
        *([f"axis {name}" for name in more]),
    ]
    with output_file(out, is_scores, key, watch.line) as tmp:
        folder = resolve_model(model)
        stream, sequences, pad = sequences_of(
            folder, data, samples=samples, max_length=max_length, seed=seed, chat=chat, watch=watch
        )
        batches = make_batches(sequences, pad)
        where, sha = placed(device, folder), model_sha(folder)
        halfway = _halfway(out, [key, offload, where, sha, stream.sha], launcher)
        with alone_or_held(folder, where, launcher, offload=offload) as found, watch.bar("score") as bar:
            scores = score_held(
                found,
                bar,
                batches,
                neuron_criterion=criterion,
                reduce=reduce,
                layers_by=layer_criterion,
                more=more,
                seed=seed,
                model_sha=sha,
                data_sha=stream.sha,
                halfway=halfway,
            )
        scores.write(tmp)
    if halfway:
        halfway.clear()
    return scores


def _halfway(out: Path, key: object, launcher: str | None) -> Halfway | None:
    """Where a killed `score` or `compensate` leaves what it has done, beside its output; by one process alone."""
    from prunetune.pruning.halfway import Halfway
    from prunetune.tune.launch import shared_by

    place = full_path(out)
    return None if shared_by(launcher) else Halfway(temporary(place.with_name(f"{place.name}.half")), key)


def patch_file(
    plan: Path,
    model: str,
    data: Sequence[dict[str, Any]],
    out: Path,
    *,
    target: str,
    samples: int,
    max_length: int,
    seed: int,
    device: str,
    watch: Watch,
    chat: bool = False,
    offload: bool = False,
    launcher: str | None = None,
) -> Patch:
    """Fold what a plan removes into what stays, as a round does, and write the patch."""
    from prunetune.loop.workers.pool import fold_folder
    from prunetune.pruning.compensate import calibration_and_held_out
    from prunetune.pruning.plan import PrunePlan
    from prunetune.pruning.scores import make_batches

    read = PrunePlan.read(plan)
    key = [read.sha, list(data), target, samples, max_length, seed, *(["chat"] if chat else [])]
    with output_file(out, is_patch, key, watch.line) as tmp:
        folder = resolve_model(model)
        read.check_model(model_sha(folder), folder)
        stream, sequences, pad = sequences_of(
            folder, data, samples=samples, max_length=max_length, seed=seed, chat=chat, watch=watch
        )
        where = placed(device, folder)
        halfway = _halfway(out, [key, offload, where, stream.sha], launcher)
        calibration, held_out = (make_batches(part, pad) for part in calibration_and_held_out(sequences))
        with watch.bar("compensate") as bar:
            asked: dict[str, Any] = {"batches": calibration, "held_out": held_out, "target": target}
            asked |= {"place": "disk" if offload else None, "halfway": halfway}
            patch = fold_folder(folder, where, launcher, bar, read, **asked)
        patch.write(tmp)
    if halfway:
        halfway.clear()
    return patch


def method_of(name: str, config: Path | None, **budget: int | None) -> Method:
    """A recovery method from its name, a YAML file with its settings, and a budget."""
    kind = lookup("method", METHODS, name, "recovery method")
    value: dict[str, Any] = {}
    if config is not None:
        value = read_yaml(config, "settings file") or {}
        if not isinstance(value, dict):
            raise RecipeError("these settings are no mapping", value=str(config), valid="lines of `name: value`")
    value |= {k: v for k, v in budget.items() if v is not None}
    for key in {"data", "when"} & set(value):
        raise RecipeError(
            f"{key} of a method is for recipes", value=value[key], fix="give --data" if key == "data" else None
        )
    try:
        return kind.model_validate(value)
    except ValidationError as e:
        first = e.errors()[0]
        raise RecipeError(
            f"{name}: {'.'.join(map(str, first['loc']))}: {first['msg']}",
            value=first["input"],
            valid=sorted(kind.model_fields),
        ) from None


def tune_model(
    method: Any,
    model: str,
    out: Path,
    data: Sequence[dict[str, Any]],
    *,
    task: TaskConfig | None,
    teacher: str | None,
    launcher: str | None,
    seed: int,
    device: str,
    watch: Watch,
    chat: bool = False,
    plan: Path | None = None,
) -> TuneResult:
    """Recover (or teach) a model into the folder `out`; the checkpoints of a killed call lie beside it until then."""
    from prunetune.tune.job import TuneJob, TuneResult
    from prunetune.tune.launch import launch

    _check_teacher(method, model, teacher)
    folder, taught_by = resolve_model(model), resolve_model(teacher) if teacher else None
    origins = _kept(method, plan)
    out = full_path(out)
    work, result = out.parent / f".{out.name}.work", dict[str, Any]()
    key = {
        "model": model, "method": method.model_dump(mode="json"), "data": list(data), "seed": seed,
        "task": task and task.model_dump(mode="json"), "teacher": teacher,
        **({"chat": True} if chat else {}), **({"origins": origins} if origins else {}),
    }  # fmt: skip

    def make(tmp: Path) -> None:
        given = {"model": folder, "out": tmp, "work": work, "method": method, "sources": tuple(sources_of(data))}
        part = {"data_seed": seed, "end": method.samples, "tokens": method.tokens, "seed": seed}
        where = {
            "teacher": taught_by,
            "origins": origins,
            "task": task,
            "device": placed(device, folder),
            "fmt": format_of(chat),
        }
        job = TuneJob(**given, **part, **where)
        with watch.bar(f"tune {method.type}") as bar:
            result["result"] = launch(job, launcher, bar).to_json()

    with output_new(out, key) as made:
        if made is None:
            stream = load_stream(sources_of(data), seed)
            check_texts(folder, stream, 0, method.samples, format_of(chat), watch)
            claim(work, key)
            try:
                once(out, key, make, more=result)
            except PrunetuneError:
                if {p.name for p in work.iterdir()} <= {MARK}:  # refused before anything was worth keeping
                    remove(work)
                raise
        else:
            result = made.more
            watch.line(f"{out} is made already, with the same arguments")
        remove(work)
    return TuneResult.from_json(result["result"])


def _check_teacher(method: Any, model: str, teacher: str | None) -> None:
    """RecipeError for a distillation that has no teacher, or whose teacher is the model itself."""
    if method.type not in ("distill", "local"):
        if teacher is not None:
            raise RecipeError("only distill and local have a teacher", value=f"{method.type} --teacher {teacher}")
        return
    wanted = teacher or getattr(method, "teacher", None)
    fix = "--teacher MODEL, the model before it was cut (or `teacher: MODEL` in the --config file)"
    if method.type == "local":
        fix = "--original MODEL, the model before it was cut"
    if wanted is None:
        raise RecipeError(f"{method.type} needs a teacher", fix=fix)
    if resolve_model(wanted) == resolve_model(model):
        raise RecipeError("this teacher is the model itself: there is nothing to learn from it", value=wanted, fix=fix)


def _kept(method: Any, plan: Path | None) -> tuple[int, ...] | None:
    """Of each layer that a plan left, its place in the original; None without a plan."""
    from prunetune.pruning.plan import PrunePlan

    if plan is None:
        return None
    if method.type != "local":
        raise RecipeError("only local needs the plan of the cut", value=f"{method.type} --plan {plan}")
    return tuple(PrunePlan.read(plan).kept_layers)


BELONGS = {
    "demo": "demo", "generator:gsm_symbolic": "gsm_symbolic", "preset:gsm8k": "gsm8k", "preset:math-12k": "math"
}  # fmt: skip
"""`--data` -> the task whose verifier reads its answers."""


def judge_of(task: str | None, verifier: str | None, names: Sequence[str]) -> TaskConfig:
    """Who judges sampled answers: the task, the verifier named, or the task that the data belong to.

    Args:
        task: `--task`; its problems are not read.
        verifier: `--verifier`.
        names: `--data` as given.

    Raises:
        RecipeError, TaskError, MissingPath: nobody can judge, or a verifier that cannot be used.
    """
    guessed = {BELONGS.get(name) for name in names}
    if task is None and verifier is None and len(guessed) == 1:
        task = guessed.pop()
    if task is None and verifier is None:
        raise RecipeError(
            "nobody judges the sampled answers of these data",
            value=list(names),
            valid="--task gsm8k (or another with a verifier), or --verifier number|boxed|exact|file.py:f",
        )
    value = parse_task(task or "rows")
    if task is not None and verifier is None and value["name"] not in JUDGES:
        check_task(TaskConfig.model_validate(value))
        raise RecipeError(
            "this task cannot judge answers to other questions than its own", value=task, valid=sorted(JUDGES)
        )
    config = TaskConfig.model_validate(judged_by([value], verifier)[0])
    build_judge(config)
    return config


def sample_traces(
    model: str,
    out: Path,
    data: Sequence[dict[str, Any]],
    task: TaskConfig,
    *,
    seed: int,
    n: int | None,
    device: str,
    watch: Watch,
    **settings: Any,
) -> Traces:
    """Sample answers of training questions and write the verified ones as rows; a killed call goes on.

    Args:
        model: Whose answers.
        out: JSONL file.
        data: Questions with right answers, as sources of a recipe.
        task: Whose verifier judges.
        seed: Of the questions' shuffle and the sampling.
        n: Questions. None: all.
        device: Where.
        watch: Shows the progress.
        settings: Further fields of `TraceJob`.
    """
    from prunetune.tune.traces import TraceJob, Traces, make_traces

    folder = resolve_model(model)
    job = TraceJob(
        model=folder,
        out=out,
        sources=tuple(sources_of(data)),
        task=task,
        data_seed=seed,
        end=n,
        seed=seed,
        device=placed(device, folder),
        **settings,
    )
    key = {"generate": job.model_dump(mode="json", exclude={"out", "device"})}
    with output_new(out, key, folder=False) as made:
        if made is not None and made.more:
            watch.line(f"{out} is made already, with the same arguments")
            return Traces(**made.more)
        check_texts(job.model, load_stream(job.sources, seed), 0, n, job.fmt, watch)
        with watch.bar("generate") as bar:
            return make_traces(job, bar, key)
