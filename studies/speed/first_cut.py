"""From the start of `prunetune run` to its first finished cut, in bare forward passes of the scored tokens (at most 4).

    OMP_NUM_THREADS=1 python studies/speed/first_cut.py --model FOLDER [--target 0.7] [--samples 256] [--repeats 3]

Recommended settings and GSM8K ($PRUNETUNE_DATA), no tasks: nothing of the original is evaluated but its held-out loss.
Each repeat times, in turns: a bare forward pass of the base model over the batches that are scored, in the dtype that
the model is stored in, and a whole process of `prunetune run` up to the moment when the first round's `pruned/` is
there, imports and loading included. With `--target` so low that there are several rounds, that holds further probes.
One further probe is timed on its own: what a second shape costs once the scores are there. CPU seconds are given beside
wall time: on a busy machine they say more.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from bars import verdict

from prunetune.common.progress import Watch
from prunetune.loop.context import Context, prepare
from prunetune.loop.probe import losses
from prunetune.models.folders import resolve_model
from prunetune.pruning.scores import Scores
from prunetune.recipe.schema import Recipe
from prunetune.runs.folder import RunFolder


def recipe_of(model: str, target: float, samples: int) -> Recipe:
    """The recommended settings; nothing is evaluated."""
    data = [{"type": "file", "path": "$PRUNETUNE_DATA/gsm8k/train.jsonl"}]
    score, evaluate = {"samples": samples}, {"latency_repeats": 0}
    return Recipe.parse(
        {"model": model, "data": data, "prune": {"target": target}, "score": score, "evaluate": evaluate}
    )


def cpu() -> float:
    """CPU seconds of this process and of those that it has waited for."""
    return sum(os.times()[:4])


def bare(context: Context) -> float:
    """Seconds of one forward pass of the base model over the scored batches."""
    return passed(context)[0]


def passed(context: Context) -> tuple[float, float]:
    """The same, and its CPU seconds."""
    model: Any = context.load(context.source)
    with torch.inference_mode():
        model.model(**{k: v[:2] for k, v in context.scoring[-1].items()}, use_cache=False)
        start, used = time.perf_counter(), cpu()
        for batch in context.scoring:
            model.model(**batch, use_cache=False)
        return time.perf_counter() - start, cpu() - used


def first_cut(recipe: Recipe, at: Path) -> float:
    """Seconds until a run's first cut is there; the run is stopped then."""
    recipe.write(at / "recipe.yaml")
    command = [sys.executable, "-m", "prunetune", "run", str(at / "recipe.yaml"), "--out", str(at / "run"), "--yes"]
    start = time.perf_counter()
    with (at / "log").open("w", encoding="utf-8") as log, subprocess.Popen(command, stderr=log, stdout=log) as process:
        while not any((at / "run").glob("01-*/pruned")):
            if process.poll() is not None:
                raise SystemExit((at / "log").read_text(encoding="utf-8"))
            time.sleep(0.05)
        seconds = time.perf_counter() - start
        process.send_signal(signal.SIGKILL)  # nothing more is to be counted
    return seconds


def further_probe(context: Context, run: RunFolder, width: int) -> float:
    """Seconds of two more shapes, in halves: the scores are there, the model is loaded."""
    at = run.folder("decisions") / "01"
    scores, depth = Scores.read(at / "scores.safetensors"), context.sizes.depth
    scratch = run.folder("decisions") / "timing"  # inside the run: what lies there is ours to clear
    scratch.mkdir()
    start = time.perf_counter()
    losses(context, run, scratch, context.source, scores, [(depth, width), (depth, width - 64)])
    return (time.perf_counter() - start) / 2


def main() -> None:
    """Time and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--target", type=float, default=0.7)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    recipe = recipe_of(args.model, args.target, args.samples)
    context = prepare(recipe, resolve_model(recipe.model), Watch(quiet=True))
    tokens = sum(int(b["attention_mask"].sum()) for b in context.scoring)
    print(f"{tokens:,} tokens in {args.samples} sequences, {torch.get_num_threads()} threads", flush=True)
    cuts, probes = [], []
    for _ in range(args.repeats):
        with tempfile.TemporaryDirectory() as name:
            at = Path(name)
            before, used = passed(context)
            start = cpu()
            cut = first_cut(recipe, at)
            spent = cpu() - start
            print(f"bare {before:.1f} s, first cut {cut:.1f} s: {cut / before:.2f}", flush=True)
            print(f"CPU: bare {used:.1f} s, first cut {spent:.1f} s: {spent / used:.2f}", flush=True)
            with RunFolder.open(at / "run", recipe, context.source) as run:
                probe = further_probe(context, run, context.sizes.width * 3 // 4)
            after = bare(context)
        whole = (before + after) / 2
        cuts.append(cut / whole)
        probes.append(probe / whole)
        print(
            f"with the bare pass after it, {after:.1f} s: {cuts[-1]:.2f}; "
            f"a further probe {probe:.1f} s: {probes[-1]:.2f}",
            flush=True,
        )
    verdict("first cut over a bare forward pass", median(cuts), at_most=4)
    verdict("a further probe over a bare forward pass", median(probes), at_most=1)


if __name__ == "__main__":
    main()
