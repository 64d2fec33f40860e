"""Train a study model (issue 5): a small Llama that traces programs, or writes them, right on 60 to 95 % of them.

    python studies/train/train_study_model.py --out runs/traces      # runs/ is not in the repository
    python studies/train/train_study_model.py --out DIR --steps 2000 --ffn 768
    python studies/train/train_study_model.py --task programs --out runs/programs

Beside the plain Hugging Face folder it writes train.jsonl and test.jsonl, for recipes (`data: file`, `task: rows`),
and `trained.json`: the settings, the seconds and the accuracy on 1,000 test problems (programs to write: 300, each of
which is run in the sandbox).
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import programs
import torch
from from_scratch import llama, save, train
from traces import traces
from transformers import LlamaForCausalLM

from prunetune.data.demo.tokenizer import byte_tokenizer
from prunetune.evaluation.evaluate import evaluate
from prunetune.models.prompt import PromptFormat
from prunetune.tasks.registry import TaskConfig, build_task

MODEL_SEED, RECOVERY_SEED = 0, 1  # recovery draws its own problems
JUDGE = Path(__file__).parents[1] / "09-code" / "judge.py"


def main() -> None:
    """Train, save, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--task", choices=("traces", "programs"), default="traces")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--ffn", type=int, default=768)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--steps", type=int, default=1100)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", "1")))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(MODEL_SEED)
    tokenizer = byte_tokenizer()
    model = LlamaForCausalLM(llama(args.width, args.ffn, args.layers))
    draw = traces if args.task == "traces" else programs.programs
    seconds = train(model, tokenizer, draw(args.steps * args.batch, MODEL_SEED, "train"), args.batch)
    save(model, tokenizer, args.out)
    task = build_task(_traces(args.out) if args.task == "traces" else _programs(args.out))
    saved = LlamaForCausalLM.from_pretrained(args.out).eval()
    result = evaluate(saved, tokenizer, task, fmt=PromptFormat(), out=None, batch_size=250)
    settings = {k: v for k, v in vars(args).items() if k not in ("out", "task")}
    report = {**settings, "params": saved.num_parameters(), "seconds": seconds, "evaluation": result.to_json()}
    (args.out / "trained.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"{saved.num_parameters():,} parameters, {result.correct} of {result.n} right, {seconds:.0f} s")


def _traces(out: Path) -> TaskConfig:
    """Writes the rows."""
    for name, pairs in (
        ("train", traces(60_000, RECOVERY_SEED, "train")),
        ("test", traces(4_000, RECOVERY_SEED, "test")),
    ):
        lines = [json.dumps({"question": q, "answer": a}) for q, a in pairs]
        (out / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return TaskConfig(name="rows", path=str(out / "test.jsonl"), verifier="number", n=1000)


def _programs(out: Path) -> TaskConfig:
    """Writes the rows."""
    programs.write(out, 60_000, 4_000, RECOVERY_SEED)
    judge, path = f"{JUDGE}:judge", str(out / "test.jsonl")
    return TaskConfig(name="programs", path=path, verifier=judge, allow_custom_code=True, n=300, max_new_tokens=160)


if __name__ == "__main__":
    main()
