"""Peak memory of `score --offload` and of `compensate --offload` on a checkpoint of Llama-3-8B's shape, which is read from disk.

    .venv/bin/python studies/speed/offload.py --at FOLDER [--layers 32] [--tokens 2000] [--criterion greedy] [--stage score]

The checkpoint is random (bf16, four shards, 16 GB with 32 layers) and stays in FOLDER for the next call. Each stage is what the
command calls, in a process of its own, imports counted, on random tokens in sequences of 500. Of its resident memory
Linux tells two parts: its own (RssAnon and RssShmem) and mapped files (RssFile), which the kernel takes back when others
need room. Both are looked at every 20 ms; VmHWM is their sum's highest as the kernel knows it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch
from apply import CONFIG, make

from prunetune.pruning.compensate import calibration_and_held_out, compensate
from prunetune.pruning.plan import PrunePlan
from prunetune.pruning.scores import make_batches, score

VOCABULARY, GONE = 128_256, 1_408


def resident() -> dict[str, int]:
    """Bytes that this process has in memory, by kind."""
    lines = (line.split(":") for line in Path("/proc/self/status").read_text().splitlines() if line.endswith("kB"))
    return {name: 1024 * int(value.split()[0]) for name, value in lines}


class Peak(threading.Thread):
    """The highest of a process's own memory and of its mapped files, looked at every 20 ms and told every 30 s."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.own = self.mapped = 0

    def run(self) -> None:
        """Look until the process ends."""
        told = time.monotonic()
        while True:
            now = resident()
            self.own = max(self.own, now["RssAnon"] + now["RssShmem"])
            self.mapped = max(self.mapped, now["RssFile"])
            if time.monotonic() - told > 30:
                told = time.monotonic()
                said = f"own {self.own / 2**30:.2f} GiB at the peak, mapped {self.mapped / 2**30:.2f}"
                print(f"{time.process_time():.0f} CPU seconds: {said}", file=sys.stderr, flush=True)
            time.sleep(0.02)


def stage(name: str, folder: Path, tokens: int, criterion: str) -> dict[str, float]:
    """Run one stage and tell what it took."""
    peak = Peak()
    peak.start()
    torch.manual_seed(0)
    rows = [row.tolist() for row in torch.randint(3, VOCABULARY, (tokens,)).split(500)]
    begin, cpu = time.perf_counter(), time.process_time()
    if name == "score":
        score(folder, make_batches(rows, 0), neuron_criterion=criterion)
    else:
        depth, width = (
            json.loads((folder / "config.json").read_text())["num_hidden_layers"],
            CONFIG["intermediate_size"],
        )
        assert isinstance(width, int)
        gone = {i: tuple(sorted(torch.randperm(width)[:GONE].tolist())) for i in range(depth)}
        plan = PrunePlan(model_sha="", depth=depth, width=width, drop_neurons=gone)
        fitted, held_out = (make_batches(part, 0) for part in calibration_and_held_out(rows))
        compensate(folder, plan, fitted, held_out=held_out, place="disk")
    gib = 2**30
    return {
        "own GiB": peak.own / gib, "mapped GiB": peak.mapped / gib, "VmHWM GiB": resident()["VmHWM"] / gib,
        "seconds": time.perf_counter() - begin, "CPU seconds": time.process_time() - cpu,
    }  # fmt: skip


def main() -> None:
    """Make the checkpoint if it is not there, then run the stages."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--at", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=2_000)
    parser.add_argument("--criterion", default="greedy")
    parser.add_argument("--stage", choices=["score", "compensate"], action="append")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    folder = args.at / f"llama-3-8b-{args.layers}"
    if args.here:
        print(json.dumps(stage(args.stage[0], folder, args.tokens, args.criterion)))
        return
    if not folder.exists():
        make(folder, args.layers, vocabulary=VOCABULARY, shards=4)
    for name in args.stage or ["score", "compensate"]:
        command = [
            sys.executable,
            __file__,
            "--here",
            "--at",
            str(args.at),
            "--layers",
            str(args.layers),
            "--stage",
            name,
        ]
        more = ["--tokens", str(args.tokens), "--criterion", args.criterion]
        said = json.loads(subprocess.run([*command, *more], check=True, stdout=subprocess.PIPE, text=True).stdout)
        print(name, args.criterion if name == "score" else "", {k: round(v, 2) for k, v in said.items()})


if __name__ == "__main__":
    main()
