"""`distill` against `cpt` on the embedded model, cut and then recovered with the same tokens: paired over seeds.

    python studies/speed/distill_or_cpt.py --neurons 576 --seeds 0,1,2          # one thread

Every seed has its own recovery data; both methods see the same ones in the same order, with the same rate and batch. One
JSON line a seed and setting, then the paired differences with a 95 % interval (t, n - 1 degrees of freedom).
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
from pathlib import Path

from grpo_recovery import accuracy, cut
from scipy.stats import t as student

from prunetune.data.stream import DemoData
from prunetune.models.folders import resolve_model
from prunetune.tune.job import TuneJob
from prunetune.tune.methods import Cpt, Distill, Method
from prunetune.tune.stage import run_job


def main() -> None:
    """Recover the same cut with each method and seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--neurons", type=int, default=576)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--samples", type=int, default=640)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--problems", type=int, default=300)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    common = {
        "batch_size": arguments.batch,
        "micro_batch_size": arguments.batch,
        "learning_rate": arguments.rate,
        "max_length": 128,
        "precision": "fp32",
    }
    methods: dict[str, Method] = {
        "cpt": Cpt.model_validate(common),
        "distill 0.5": Distill.model_validate(common | {"kl_weight": 0.5}),
        "distill 0.9": Distill.model_validate(common | {"kl_weight": 0.9}),
    }
    found: dict[str, list[float]] = {name: [] for name in methods}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        model = cut(place / "cut", arguments.neurons)
        print(json.dumps({"before": accuracy(model, 99, arguments.problems)}), flush=True)
        for seed in (int(s) for s in arguments.seeds.split(",")):
            for name, method in methods.items():
                job = TuneJob(
                    model=model,
                    out=place / f"{name}-{seed}",
                    work=place / f"{name}-{seed}.work",
                    method=method,
                    sources=(DemoData(size=arguments.samples, seed=100 + seed),),
                    data_seed=seed,
                    seed=seed,
                    teacher=resolve_model("demo"),
                    device="cpu",
                )
                result = run_job(job)
                value = accuracy(job.out, 99, arguments.problems)
                found[name].append(value)
                line = {
                    "seed": seed,
                    "method": name,
                    "after": value,
                    "tokens": result.tokens,
                    "s": round(result.seconds),
                }
                print(json.dumps(line), flush=True)
    for name, values in found.items():
        differences = [a - b for a, b in zip(values, found["cpt"], strict=True)]
        n = len(differences)
        half = float(student.ppf(0.975, n - 1)) * statistics.stdev(differences) / n**0.5 if n > 1 else float("nan")
        word = "no better and no worse"
        if n > 1 and abs(statistics.mean(differences)) > half:
            word = "better" if statistics.mean(differences) > 0 else "worse"
        print(
            f"{name:15} mean {statistics.mean(values):.3f}  minus cpt {statistics.mean(differences):+.3f} +- {half:.3f}"
            + ("" if name == "cpt" else f": {word} than the default, cpt")
        )


if __name__ == "__main__":
    main()
