"""What recovery and scoring hold at their peak beside what is told before, each case in a process of its own.

OMP_NUM_THREADS=1 .venv/bin/python studies/speed/memory.py --model SMOLLM2 [--only lora] [--batch 8] [--samples 16]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CASES: dict[str, dict[str, Any]] = {
    "cpt": {"type": "cpt"},
    "cpt, rows one by one": {"type": "cpt", "micro_batch_size": 1},
    "cpt, fp32": {"type": "cpt", "precision": "fp32"},
    "cpt, checkpointing": {"type": "cpt", "gradient_checkpointing": True},
    "lora": {"type": "cpt", "lora": {"rank": 8}},
    "score, contribution": {"criterion": "contribution"},
    "score, taylor": {"criterion": "taylor"},
}


def measure(model: Path, settings: dict[str, Any], samples: int) -> dict[str, int]:
    """{told, peak, before, places} of a job in this process: bytes, and tokens of the longest row."""
    import psutil
    from pydantic import TypeAdapter

    from prunetune.data.sources import DataSource
    from prunetune.data.stream import load_stream
    from prunetune.models.cost import params
    from prunetune.models.folders import load_config, load_tokenizer
    from prunetune.models.prompt import encode
    from prunetune.recipe.said import parse_data
    from prunetune.tune.job import TuneJob
    from prunetune.tune.methods import TuneConfig
    from prunetune.tune.stage import run_job
    from prunetune.tune.training.machine import compute_type, pick_device, training_bytes

    method = TypeAdapter(TuneConfig).validate_python(settings)
    source = TypeAdapter(DataSource).validate_python(parse_data("generator:gsm_symbolic", 0))
    with tempfile.TemporaryDirectory() as at:
        job = TuneJob(
            model=model, out=Path(at) / "out", work=Path(at) / "work", method=method, sources=(source,), end=samples
        )
        config, tokenizer, device = load_config(model), load_tokenizer(model), pick_device("auto")
        rows = load_stream((source,), 0).take(0, samples)
        longest = max(len(encode(tokenizer, row, job.fmt, method.max_length).input_ids) for row in rows)
        before, compute = psutil.Process().memory_info().rss, compute_type(method.precision, device)
        ways: dict[str, Any] = {"config": config, "params": params(config), "longest": longest, "compute": compute}
        told = before + training_bytes(method, **ways, device=device, share=method.batch_size)
        result = run_job(job)
    return {"told": told, "peak": result.peak_bytes, "before": before, "longest": longest}


def scored(model: Path, criterion: str, samples: int) -> dict[str, int]:
    """The same of scoring, all in one batch."""
    import psutil

    from prunetune.cli.texts import sequences_of
    from prunetune.common.progress import Watch
    from prunetune.models.cost import cost_of
    from prunetune.models.folders import load_config, load_model
    from prunetune.pruning.scores import make_batches, score
    from prunetune.recipe.said import parse_data
    from prunetune.tune.training.machine import peak_bytes, pick_device, reset_peak

    data, device = [parse_data("generator:gsm_symbolic", 0)], pick_device("auto")
    ways: dict[str, Any] = {
        "samples": samples,
        "max_length": 1024,
        "seed": 0,
        "chat": False,
        "watch": Watch(quiet=True),
    }
    _, sequences, pad = sequences_of(model, data, **ways)
    batches = make_batches(sequences, pad)
    before, places = psutil.Process().memory_info().rss, max(b["input_ids"].numel() for b in batches)
    told = before + cost_of(load_config(model)).scoring_bytes(places, gradients=criterion == "taylor")
    reset_peak(device)
    asked: dict[str, Any] = {"neuron_criterion": criterion, "model_sha": "", "data_sha": ""}
    score(load_model(model, device=str(device)), batches, **asked)
    return {"told": told, "peak": peak_bytes(device), "before": before, "longest": max(map(len, sequences))}


def main() -> None:
    """A line a case."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--only", nargs="*", default=list(CASES))
    parser.add_argument("--case", help="For the processes of its own.")
    given = parser.parse_args()
    if given.case:
        case = json.loads(given.case)
        kind = case.get("criterion")
        print(json.dumps(scored(given.model, kind, 48) if kind else measure(given.model, case, given.samples)))
        return
    print(
        "| | tokens of the longest row | told, MB | measured, MB | told / measured |\n| --- | ---: | ---: | ---: | ---: |"
    )
    for name in given.only:
        case = json.dumps({**CASES[name], "batch_size": given.batch})
        command = [
            sys.executable,
            __file__,
            "--model",
            str(given.model),
            "--samples",
            str(given.samples),
            "--case",
            case,
        ]
        found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.splitlines()[-1])
        told, peak = found["told"], found["peak"]
        print(
            f"| {name} | {found['longest']} | {told / 1e6:,.0f} | {peak / 1e6:,.0f} | {told / peak:.2f} |", flush=True
        )


if __name__ == "__main__":
    main()
