"""Held-out loss after a cut whose layers were walked in fp32 and in bf16: what the quick default of some CPUs costs.

    PRUNETUNE_DATA=... python studies/speed/walk_dtype.py --model FOLDER [--samples 64] [--widths 1024 768]

`greedy` and least squares, GSM8K, no training. The same sequences for both; loss on 64 further ones (nats a token).
"""

from __future__ import annotations

import argparse

import torch
from first_cut import recipe_of

from prunetune.common.progress import Watch
from prunetune.loop.context import prepare
from prunetune.loop.measure import held_out_loss
from prunetune.models.folders import model_sha, resolve_model
from prunetune.pruning.apply import apply_in_memory
from prunetune.pruning.compensate import calibration_and_held_out, compensate
from prunetune.pruning.criteria import criterion
from prunetune.pruning.plan import make_plan
from prunetune.pruning.ranking import rank


def main() -> None:
    """Print a line a width and dtype."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--widths", type=int, nargs="+", default=[1024, 768])
    options = parser.parse_args()
    recipe = recipe_of(options.model, 0.7, options.samples)
    source = resolve_model(options.model)
    context, sha = prepare(recipe, source, Watch(quiet=True)), model_sha(source)
    model = context.load(source)
    print(f"tokens {sum(int(b['attention_mask'].sum()) for b in context.scoring):,}")
    print(f"whole: {held_out_loss(context, model):.4f}", flush=True)
    examples = context.stream.take(0, options.samples)
    calibration, ridge = (context.batches(part) for part in calibration_and_held_out(examples))
    for dtype in (torch.float32, torch.bfloat16):
        found = rank(model, context.scoring, criterion("greedy"), dtype=dtype)
        for width in options.widths:
            gone = model.config.intermediate_size - width
            layers = [c.mean for c in found.changes]
            plan = make_plan(found.neurons.tolist(), layers, sha, n_neurons=gone)
            patch = compensate(model, plan, calibration, held_out=ridge, dtype=dtype)
            loss = held_out_loss(context, apply_in_memory(model, plan, patch.tensors))
            print(f"{str(dtype).removeprefix('torch.')}, width {width}: {loss:.4f}", flush=True)


if __name__ == "__main__":
    main()
