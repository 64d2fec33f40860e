"""SliceGPT as a row of a comparison: the recipe's data, tokens, settings and tasks, but another way to make it small.

    summary = slicegpt_run(Recipe.read("recipe.yaml"), Path("runs/slicegpt"))      # the same call again continues
    compare([Path("runs/ptl"), Path("runs/slicegpt")])

The model is cut to at most the size that the recipe's target means, on the sequences that the loop would score;
recovery is `tune.job.run_job` with the recipe's methods and the whole run's budget, from the first sequence that the
loop would train on; measuring is the loop's own. The folder reads like a run folder (`original/`, one stage,
`summary.json`), but has no `final/`: its model is no plain Hugging Face folder (see `sliced.py`); stage.json says so.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prunetune.baselines.sliced import ARTEFACT
from prunetune.baselines.sliced_cost import ALIGN, kept_for, sliced_cost
from prunetune.baselines.slicegpt import load_sliced, slice_model, write_sliced
from prunetune.bench import Bench, free, line_of, samples_of
from prunetune.errors import RecipeError
from prunetune.recipe import Recipe
from prunetune.run import Record, RunFolder, Timed
from prunetune.schedule import final_shape
from prunetune.store import copy_files, model_sha, once, read_json, remove, resolve_model, write_json
from prunetune.summary import Summary, leaks, per_question, summarise
from prunetune.tune.job import TuneJob, TuneResult, run_job
from prunetune.ui import Watch


def slicegpt_run(recipe: Recipe, out: Path | str, watch: Watch | None = None, *, align: int = ALIGN) -> Summary:
    """Slice, recover and measure a model as a recipe's loop would prune, recover and measure it.

    Args:
        recipe: As for the loop. What it says of neurons and layers only gives the size to stay within.
        out: A folder of its own; made if it is not there. A killed run goes on.
        watch: Shows lines and bars.
        align: The kept width of the residual stream is a multiple of this.

    Returns:
        What `out/summary.json` holds: the loop's keys.

    Raises:
        RecipeError: A recipe without a target, or with a launcher (recovery runs in this process).
        UnsupportedModel: A family whose norms cannot be folded.
        OutOfReach: No slice is small enough, or there are too few data.
    """
    out, watch = Path(out), watch or Watch()
    if recipe.prune.by_threshold:
        raise RecipeError("SliceGPT needs a size to stay within", value="thresholds", fix="give prune.target")
    if recipe.launcher is not None:
        raise RecipeError(
            "the sliced model is recovered in this process", value=f"launcher: {recipe.launcher}", fix="no launcher"
        )
    with RunFolder.open(out, recipe, resolve_model(recipe.model)) as run:
        bench = Bench(recipe, run, watch)
        bench.check()
        share = bench.sizes.params(*final_shape(recipe.prune, bench.sizes)) / bench.sizes.original
        kept = kept_for(bench.config, share, align)
        bench.original()
        stage = _stage(bench, kept, share, align)
        used = bench.stream.take(*stage["samples"])
        latency = _latency(bench, run.folder(stage["name"]) / "tuned")
        summary = summarise(run, recipe, stage, latency, leaks(used, bench.tasks))
        summary["artefact"] = ARTEFACT
        write_json(out / "summary.json", summary)
        return summary


def _stage(bench: Bench, kept: int, share: float, align: int) -> Record:
    """Slice, recover, measure: the one stage of such a run, recorded as the loop records a round."""
    at = bench.run.folder(f"01-slicegpt-{kept}")
    if (at / "stage.json").is_file():
        found: Record = read_json(at / "stage.json")
        return found
    timed, source = Timed(at), bench.run.source
    key = {"model": model_sha(source), "kept": kept, "data": bench.stream.sha, "samples": bench.recipe.score.samples}

    def cut(tmp: Path) -> None:
        tmp.mkdir()
        model = bench.load(source)
        with bench.watch.bar("slice") as bar:
            write_sliced(slice_model(model, bench.scoring, share, align=align, progress=bar), source, tmp)
        del model
        free()

    pruned = timed.once("pruned", "apply", key, cut)
    results = _recover(bench, timed, pruned, key)
    tuned = at / "tuned"
    sha = model_sha(tuned)

    def measure(tmp: Path) -> None:
        model: Any = load_sliced(pruned, device=bench.device)
        pruned_loss = bench.loss(model)
        model = load_sliced(tuned, device=bench.device)
        evals = bench.measure(model, sha, at, None)
        cost = sliced_cost(bench.config, kept)
        flops = {t.name: per_question(cost, samples_of(at, t)) for t in bench.tasks}
        write_json(
            tmp,
            {
                "cost": {**cost.to_json(), "flops": flops},
                "evals": [e.to_json() for e in evals],
                "pruned_loss": pruned_loss,
                "held_out_loss": bench.loss(model),
            },
        )

    tasks = [t.model_dump(mode="json") for t in bench.recipe.evaluate.tasks]
    measured = read_json(timed.once(".measured.json", "evaluate", {"model": sha, "tasks": tasks}, measure))
    record = {
        "index": 1,
        "name": at.name,
        "attempt": 1,
        "step": None,
        "model_sha": sha,
        "depth": bench.sizes.depth,
        "width": bench.sizes.width,
        **measured,
        "samples": [bench.reserved, bench.reserved + sum(r.samples for r in results)],
        "tokens": sum(r.tokens for r in results),
        "tune": [r.to_json() for r in results],
        "rounds": 1,
        "removed": {"neurons": 0, "layers": [], "hidden": bench.config.hidden_size - kept},
        "seconds": {**dict.fromkeys(("score", "plan", "apply", "tune"), 0.0), **timed.seconds},
        "verdict": {"accepted": True, "why": f"SliceGPT, {kept} of {bench.config.hidden_size}: {ARTEFACT}"},
    }
    write_json(at / "stage.json", record)
    remove(pruned)
    bench.watch.line(line_of(record, bench.run.original))
    free()
    return record


def _recover(bench: Bench, timed: Timed, pruned: Path, key: Record) -> list[TuneResult]:
    """The recipe's methods one after another with the whole run's budget, each on its own part of the stream."""
    model, cursor, results = pruned, bench.reserved, []
    methods = bench.recipe.recover
    for i, method in enumerate(methods):
        rounds = bench.rounds if method.per == "round" else 1
        samples, tokens = (b and b * rounds for b in (method.samples, method.tokens))
        if samples is None and tokens is None:
            samples = (len(bench.stream) - bench.reserved) // len(methods)
        end = len(bench.stream) if samples is None else min(len(bench.stream), cursor + samples)
        note, work = timed.at / f"tune-{i}-{method.type}.json", timed.at / f".tuned-{i}"
        job = {
            "work": work,
            "method": method.changed(samples=None, tokens=None, per="round"),
            "sources": tuple(bench.recipe.data),
            "data_seed": bench.recipe.seed,
            "start": cursor,
            "end": end,
            "tokens": tokens,
            "seed": bench.recipe.seed,
            "fmt": bench.recipe.prompt,
            "teacher": bench.run.source,
            "device": bench.recipe.device,
            "task": bench.recipe.evaluate.tasks[0] if bench.recipe.evaluate.tasks else None,
        }

        def make(tmp: Path, job: dict[str, Any] = job, model: Path = model, note: Path = note) -> None:
            whole = TuneJob(model=model, out=tmp, **job)
            with bench.watch.bar(f"tune {whole.method.type}") as bar:
                write_json(note, run_job(whole, bar).to_json())
            copy_files(model, tmp, ["README.md"])
            free()

        done = [m.model_dump(mode="json") for m in methods[: i + 1]]
        name = "tuned" if i == len(methods) - 1 else f".step-{i}"
        model = timed.once(name, "tune", {**key, "recover": done, "seed": bench.recipe.seed, "end": end}, make)
        results.append(TuneResult.from_json(json.loads(note.read_text(encoding="utf-8"))))
        cursor += results[-1].samples
        remove(work)
    return results


def _latency(bench: Bench, tuned: Path) -> Record | None:
    """Prefill and decode times of original and sliced model, taken in turns; None where the recipe wants none."""
    repeats = bench.recipe.evaluate.latency_repeats
    if not repeats:
        return None
    from prunetune.latency import measure

    def make(tmp: Path) -> None:
        models = {"original": bench.load(bench.run.source), "final": load_sliced(tuned, device=bench.device)}
        with bench.watch.bar("latency") as bar:
            write_json(tmp, {k: v.to_json() for k, v in measure(models, repeats=repeats, progress=bar).items()})
        models.clear()
        free()

    found: Record = read_json(
        once(bench.run.path / ".latency.json", {"model": model_sha(tuned), "repeats": repeats}, make)
    )
    return found
