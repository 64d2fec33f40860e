"""Probes that share a walk against probes made one by one: held-out losses, and CPU seconds over a bare forward pass.

    OMP_NUM_THREADS=1 python studies/speed/probes.py --model FOLDER [--target 0.7] [--samples 256] [--shared]

Recommended settings and GSM8K ($PRUNETUNE_DATA). The places are those that a decision by damage probes before its
target, which it has probed by then as a round cuts.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from bars import verdict
from first_cut import bare, recipe_of

from prunetune.common.progress import Watch
from prunetune.loop.context import Context, prepare
from prunetune.loop.loop import begin
from prunetune.loop.probe import losses, take_scores
from prunetune.models.folders import model_sha, resolve_model
from prunetune.runs.folder import RunFolder, Timed
from prunetune.schedule.damage import places
from prunetune.schedule.way import Place, path


def timed(context: Context, run: RunFolder, name: str, shapes: Sequence[Place]) -> tuple[list[float], float]:
    """The losses of some shapes, probed together, and the CPU seconds of it without scores and loading."""
    at = run.folder("decisions") / name
    at.mkdir(parents=True)
    first = Timed(run.folder("decisions") / "01")
    first.at.mkdir(exist_ok=True)
    scores = take_scores(context, run, first, context.source, model_sha(context.source))
    start = time.process_time()
    found = [p.loss for p in losses(context, run, at, context.source, scores, shapes)]
    return found, time.process_time() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--target", type=float, default=0.7)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--shared", action="store_true", help="leave out the probes that are made one by one")
    args = parser.parse_args()
    recipe = recipe_of(args.model, args.target, args.samples)
    context = prepare(recipe, resolve_model(recipe.model), Watch(quiet=True))
    now = (context.sizes.depth, context.sizes.width)
    way = path(recipe.prune, context.sizes, now)
    shapes = [way[i] for i in places(way, context.sizes, now)[:-1]]
    start = time.process_time()
    bare(context)
    once = time.process_time() - start
    with tempfile.TemporaryDirectory() as name, RunFolder.open(Path(name) / "run", recipe, context.source) as run:
        begin(context, run)
        shared, seconds = timed(context, run, "shared", shapes)
        print(f"{len(shapes)} probes that share a walk: {seconds:.1f} CPU s; a bare pass: {once:.1f}", flush=True)
        alone = [] if args.shared else [timed(context, run, f"alone-{w}", [(d, w)]) for d, w in shapes]
    for (_, width), loss, (found, cpu) in zip(shapes, shared, alone, strict=False):
        print(f"width {width}: {loss:.4f}, by itself {found[0]:.4f} ({cpu:.1f} CPU s, {cpu / once:.2f} passes)")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {args.samples} sequences")
    verdict("a further probe over a bare forward pass", seconds / len(shapes) / once, at_most=1)


if __name__ == "__main__":
    main()
