"""Run a study's grid: every cell one run of the Prune-Tune Loop (or a baseline), of which only raw records stay.

    python studies/lib/grid.py studies/01-loop-against-once --workers 2
    python studies/lib/grid.py STUDY --list                           # cells and which are done; runs nothing
    python studies/lib/grid.py STUDY --only seed=0 --only method=default,once

Run it again and it goes on: a cell with a record is skipped, a half-run one is continued by the loop. Each worker is one
process with one thread, takes the next cell that no other has locked, and lives with the failure of a cell: its traceback
goes to SCRATCH/CELL.error.txt, the others go on, and the exit code is 1. The untouched model is measured once per set of
questions and data, and copied into each run, as the loop does for its control.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cells import LOOP, Cell, Grid, GridError, Record, paper, sha_of

if TYPE_CHECKING:
    from prunetune.common.progress import Watch
    from prunetune.recipe.schema import Recipe
    from prunetune.runs.summary import Summary

    Runner = Callable[[Recipe, Path, Watch], Summary | dict[str, Any]]

ONE_THREAD = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
KEYS = ("method", "size", "tokens", "seed")
STUDIES = [f"studies/{p.parent.name}" for p in Path(__file__).parents[1].glob("[0-9]*/grid.yaml")]
KEPT_OF_A_ROUND = (
    "name",
    "index",
    "attempt",
    "depth",
    "width",
    "tokens",
    "samples",
    "removed",
    "pruned_loss",
    "held_out_loss",
)


def main(arguments: list[str] | None = None) -> int:
    """Run what is left of a grid; the exit code is 1 if a cell has no record afterwards."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--scratch", type=Path, help="runs while they last (default: runs/studies/NAME)")
    parser.add_argument("--only", action="append", default=[], metavar="KEY=A,B", help="method, size, tokens or seed")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--again", action="store_true", help="measure the cells of --only again")
    args = parser.parse_args(arguments)
    if not (args.study / "grid.yaml").is_file():
        parser.error(f"{args.study}: no grid.yaml there; studies: {' '.join(sorted(STUDIES))}")
    grid = Grid.read(args.study.resolve())
    for rule in args.only:
        check_rule(grid, rule, parser)
    scratch = (args.scratch or Path("runs/studies") / grid.folder.name).resolve()
    chosen = [c for c in grid.cells() if all(_chosen(c, rule) for rule in args.only)]
    if gone := {c.method: c.retired for c in chosen if c.retired and (args.again or grid.record(c) is None)}:
        print("\n".join(f"{method} cannot be run any more: {why}" for method, why in gone.items()), flush=True)
        chosen = [c for c in chosen if c.method not in gone]
    if args.again:
        if not args.only:
            parser.error("--again wants --only: name the cells to measure again")
        for c in chosen:
            grid.records.drop(c.name)
    left = [c for c in chosen if grid.record(c) is None]
    print(f"{grid.folder.name}: {len(chosen)} cells, {len(chosen) - len(left)} done", flush=True)
    if args.list:
        for c in chosen:
            print("    " if c in left else "done", c.name)
        return 0
    os.environ.update(ONE_THREAD)  # before any worker imports torch
    if args.workers == 1 or len(left) <= 1:
        work(grid, left, scratch)
    else:
        spawn = multiprocessing.get_context("spawn")
        workers = [
            spawn.Process(target=work, args=(grid, left, scratch, os.getpid()))
            for _ in range(min(args.workers, len(left)))
        ]
        for w in workers:
            w.start()
        for w in workers:
            w.join()
    missing = [c.name for c in left if grid.record(c) is None]
    if missing:
        print(
            f"{len(missing)} cells have no record (failed: {scratch}/CELL.error.txt; or another process is at them): "
            + " ".join(missing),
            file=sys.stderr,
        )
    return 1 if missing else 0


def _chosen(cell: Cell, rule: str) -> bool:
    key, _, values = rule.partition("=")
    return _written(cell, key) in values.split(",")


def _written(cell: Cell, key: str) -> str:
    value = getattr(cell, key)
    return value if isinstance(value, str) else f"{value:.10g}"


def check_rule(grid: Grid, rule: str, parser: argparse.ArgumentParser) -> None:
    """Refuse an `--only` that names nothing of the grid."""
    key, _, values = rule.partition("=")
    if key not in KEYS:
        parser.error(f"--only {rule}: KEY is one of {', '.join(KEYS)}")
    known = list(dict.fromkeys(_written(c, key) for c in grid.cells()))
    if unknown := [v for v in values.split(",") if v not in known]:
        parser.error(f"--only {rule}: no {key} {', '.join(unknown)}; there are {', '.join(known)}")


def work(grid: Grid, cells: list[Cell], scratch: Path, parent: int | None = None) -> None:
    """One worker: every cell that has no record and that nobody else is at; no further one once its parent is gone."""
    import torch

    torch.set_num_threads(1)
    for number, cell in enumerate(cells, 1):
        if parent and os.getppid() != parent:
            return
        with _lock(scratch / f".{cell.name}.lock", wait=False) as mine:
            if not mine or grid.record(cell) is not None:
                continue
            start, error = time.monotonic(), scratch / f"{cell.name}.error.txt"
            try:
                record = run_cell(grid, cell, scratch)
            except Exception as e:  # a cell that fails must not take the study with it
                error.write_text(traceback.format_exc(), encoding="utf-8")
                print(f"{number}/{len(cells)}  {cell.name}  FAILED: {e}", file=sys.stderr, flush=True)
                continue
            error.unlink(missing_ok=True)
            shares = "  ".join(shown(e) for e in record["final"]["evals"])
            taken = time.monotonic() - start
            print(
                f"{number}/{len(cells)}  {cell.name}  {shares}  {len(record['rounds'])} rounds  {taken:.0f} s",
                flush=True,
            )


def shown(figure: dict[str, Any]) -> str:
    """A task's figure: a share in per cent, a perplexity as it is."""
    value = figure["value"]
    return f"{figure['task']} {value:.4g}" if figure["metric"] == "perplexity" else f"{figure['task']} {value:.1%}"


def runner(name: str) -> Runner:
    """What makes a cell of `run: NAME`: (recipe, out, watch) -> summary with the loop's keys."""
    from prunetune import prune_tune_loop
    from prunetune.baselines.full_model import full_model_run
    from prunetune.baselines.sliced_cost import ALIGN
    from prunetune.baselines.slicegpt_run import slicegpt_run

    def sliced(recipe: Recipe, out: Path, watch: Watch) -> Summary | dict[str, Any]:
        return slicegpt_run(recipe, out, watch, align=recipe.prune.align or ALIGN)

    runners: dict[str, Runner] = {LOOP: prune_tune_loop, "slicegpt": sliced, "full_model": full_model_run}
    if name not in runners:
        raise GridError(f"run: {name}: must be one of {sorted(runners)}")
    return runners[name]


def run_cell(grid: Grid, cell: Cell, scratch: Path) -> Record:
    """Run (or continue) one cell, write its record, delete its run folder."""
    from prunetune import Recipe
    from prunetune.common.files import mark, remove
    from prunetune.common.progress import Watch

    recipe = Recipe.parse(paper(cell), f"{cell.name}, from {grid.folder.name}/grid.yaml")
    run, began = scratch / cell.name, time.monotonic()
    shared = original_of(recipe, scratch / "originals")
    if not (run / "original" / "stage.json").is_file():
        mark(run, "run")
        remove(run / "original")
        shutil.copytree(shared, run / "original")
    summary = runner(cell.run)(recipe, run, Watch(quiet=True))
    record = record_of(grid, cell, run, summary) | {"wall_seconds": round(time.monotonic() - began, 1)}
    grid.records.put(cell.name, record)
    remove(run)
    return record


def original_of(recipe: Recipe, home: Path) -> Path:
    """The untouched model's `original/`, measured once for all cells with the same questions and held-out data."""
    from prunetune.common.files import mark, remove
    from prunetune.common.progress import Watch
    from prunetune.loop.context import prepare
    from prunetune.loop.loop import begin
    from prunetune.models.folders import model_sha, resolve_model
    from prunetune.runs.folder import RunFolder

    source = resolve_model(recipe.model)
    value = recipe.model_dump(mode="json")
    asked = {
        "model": model_sha(source),
        "evaluate": value["evaluate"],
        "prompt": value["prompt"],
        "device": recipe.device,
    }
    measured = {"data": value["data"], "score": value["score"], "seed": recipe.seed}
    at = home / f"{sha_of(asked)}-{sha_of(measured)}"
    with _lock(home / ".lock", wait=True):
        if not (at / "original" / "stage.json").is_file():
            twins = sorted(home.glob(f"{sha_of(asked)}-*/original/eval"))
            if twins and not (at / "original" / "eval").exists():  # other held-out data, the same questions
                mark(at, "run")
                shutil.copytree(twins[0], at / "original" / "eval")
            with RunFolder.open(at, recipe, source) as run:
                begin(prepare(recipe, source, Watch(quiet=True)), run)
            for left in at.glob("[!o.]*"):
                remove(left)
    return at / "original"


# ----------------------------------------------------------------------------------------------------------- records


def record_of(grid: Grid, cell: Cell, run: Path, summary: Summary | dict[str, Any]) -> Record:
    """What stays of a run: see `cells.py`. Losses are nats a token on sequences that nothing else ever saw."""
    original, final, stages = summary["original"], summary["final"], summary["stages"]
    everyone = [original, *stages]
    last = next((s for s in reversed(stages) if s["pruned_loss"] is not None and s["verdict"]["accepted"]), None)
    return {
        "cell": cell.name,
        "method": cell.method,
        "size": cell.size,
        "tokens": cell.tokens,
        "seed": cell.seed,
        "recipe_sha": cell.sha,
        "commit": _commit(),
        "model_sha": original["model_sha"],
        "params_ratio": summary["params_ratio"],
        "recovery_tokens": summary["recovery_tokens"],
        "seconds": summary["seconds"],
        "pruned_loss": last and last["pruned_loss"],
        "held_out_loss": final["held_out_loss"],
        "original": _measured(grid, run, original, everyone),
        "final": _measured(grid, run, final, everyone),
        "rounds": [_round(s) for s in stages],
        "decisions": {
            p.stem: json.loads(p.read_text(encoding="utf-8")) for p in sorted((run / "decisions").glob("*.json"))
        },
    }


def _round(stage: dict[str, Any]) -> dict[str, Any]:
    kept = {k: stage[k] for k in KEPT_OF_A_ROUND}
    evals = [{k: e[k] for k in ("task", "value", "n")} for e in stage["evals"]]
    return {
        **kept,
        "params": stage["cost"]["params"],
        "evals": evals,
        "seconds": stage["seconds"],
        "verdict": stage["verdict"],
    }


def _measured(grid: Grid, run: Path, stage: dict[str, Any], everyone: list[dict[str, Any]]) -> dict[str, Any]:
    """A model's figures and verdicts; a stage that removed nothing has those of the same model before it."""
    same = [stage["name"], *(s["name"] for s in reversed(everyone) if s["model_sha"] == stage["model_sha"])]
    verdicts = {}
    for e in stage["evals"]:
        files = [run / name / "eval" / f"{e['task'].replace('/', '_')}.jsonl" for name in same]
        path = next((f for f in files if f.is_file()), None)
        if path is not None:  # a perplexity has no questions
            verdicts[e["task"]] = _verdicts(grid, path, e)
    evals = [
        {k: e[k] for k in ("task", "version", "metric", "value", "n", "new_tokens", "truncated")}
        for e in stage["evals"]
    ]
    figures = {"params": stage["cost"]["params"], "depth": stage["depth"], "width": stage["width"]}
    return {
        **figures,
        "flops": stage["cost"]["flops"],
        "held_out_loss": stage["held_out_loss"],
        "evals": evals,
        "verdicts": verdicts,
    }


def _verdicts(grid: Grid, path: Path, figure: dict[str, Any]) -> dict[str, str]:
    """One digit a question, in the order of the ids; checked against the figure that the run reports."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = sorted({r["id"]: r for r in rows}.values(), key=lambda r: (len(r["id"]), r["id"]))
    right = "".join("1" if r["correct"] else "0" for r in rows)
    if len(rows) != figure["n"] or right.count("1") != round(figure["value"] * figure["n"]):
        raise ValueError(f"{path}: {right.count('1')} of {len(rows)} right, but the run reports {figure}")
    questions = sha_of([[r["id"], r["question"]] for r in rows])
    if grid.records.get(f"questions/{questions}") is None:
        grid.records.put(f"questions/{questions}", [r["id"] for r in rows])
    return {"questions": questions, "right": right}


def _commit() -> str:
    """The code's commit, `+` if the code (not a page or a record) has changes on top."""
    at: dict[str, Any] = {"cwd": Path(__file__).parent, "text": True, "stderr": subprocess.DEVNULL}
    try:
        commit: str = subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], **at).strip()
        changed = subprocess.check_output(["git", "diff", "--name-only", "HEAD", "--", "../../src", "../*.py"], **at)
        return commit + ("+" if changed.strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


@contextmanager
def _lock(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold a lock file; False if another process has it and `wait` is not set."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokenPipeError:  # `--list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
