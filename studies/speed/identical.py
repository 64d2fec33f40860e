"""Identical weights timed against themselves: how often the 95 % interval of a speed-up holds 1 (issue 13: 18 of 20 at least).

    .venv/bin/python studies/speed/identical.py [--model demo] [--times 20] [--batch 1]

The model is loaded twice, as original and final are; each time is a whole measurement as a run makes it. The load is printed.
"""

from __future__ import annotations

import argparse
import os
import time

from bars import verdict  # before torch

from prunetune.common.stats import paired_ratio
from prunetune.evaluation.latency import measure
from prunetune.models.folders import load_model, resolve_model


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="demo")
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--batch", type=int, default=1)
    args = parser.parse_args()
    folder = resolve_model(args.model)
    held = dict.fromkeys(("prefill", "decode", "question"), 0)
    for i in range(args.times):
        begin = time.monotonic()
        found = measure(
            {"original": load_model(folder), "final": load_model(folder)}, batch=args.batch, repeats=5, settle=True
        )
        said = []
        for kind in held:
            p, d = (kind != "decode"), (0 if kind == "prefill" else 31)
            old, new = (
                [p * a + d * b for a, b in zip(m.prefill_each_ms, m.decode_each_ms, strict=True)]
                for m in found.values()
            )
            r = paired_ratio(old, new)
            held[kind] += r.low is not None and r.high is not None and r.low <= 1 <= r.high
            said.append(f"{kind} {r.value:.3f} ({r.low:.3f}-{r.high:.3f})")
        repeats, load = found["final"].repeats, os.getloadavg()[0]
        print(
            f"{i + 1:>2}: {', '.join(said)}; {repeats} repeats, load {load:.1f}, {time.monotonic() - begin:.0f} s",
            flush=True,
        )
    for kind, n in held.items():
        verdict(f"{kind}: intervals of {args.times} that hold 1", n, at_least=0.9 * args.times)


if __name__ == "__main__":
    main()
