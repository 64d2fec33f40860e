"""Train a small mixture of experts from nothing: a Qwen3-MoE that works out the demo's sums, one token a byte.

    python studies/train/train_mixture.py --out runs/mixture      # two minutes on one thread; the seed is fixed

Without a loss for the balance of its router: some experts get few tokens, as they do in large mixtures on a narrow task.
Beside the plain Hugging Face folder it writes train.jsonl, problems of another seed, and `trained.json`.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import torch
from from_scratch import save, train
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from prunetune.data.demo.problems import problems
from prunetune.data.demo.tokenizer import VOCAB_SIZE, byte_tokenizer
from prunetune.evaluation.evaluate import evaluate
from prunetune.models.prompt import PromptFormat
from prunetune.tasks.registry import TaskConfig, build_task

SEED, ROWS_SEED, BATCH = 0, 1, 64
WIDTH, FFN, LAYERS, EXPERTS, ACTIVE = 96, 64, 3, 16, 4


def mixture() -> Qwen3MoeConfig:
    """Heads of 32, tied embeddings; a token passes a quarter of the experts."""
    return Qwen3MoeConfig(
        vocab_size=VOCAB_SIZE, hidden_size=WIDTH, moe_intermediate_size=FFN, intermediate_size=FFN,
        num_hidden_layers=LAYERS, num_attention_heads=WIDTH // 32, num_key_value_heads=WIDTH // 32,
        num_experts=EXPERTS, num_experts_per_tok=ACTIVE, norm_topk_prob=True, max_position_embeddings=512,
        tie_word_embeddings=True, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip


def main() -> None:
    """Train, save, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", "1")))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(SEED)
    tokenizer, model = byte_tokenizer(), Qwen3MoeForCausalLM(mixture())
    seconds = train(model, tokenizer, problems(args.steps * BATCH, SEED, "train"), BATCH)
    save(model, tokenizer, args.out)
    rows = [json.dumps({"question": q, "answer": a}) for q, a in problems(8000, ROWS_SEED, "test")]
    (args.out / "train.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    saved = Qwen3MoeForCausalLM.from_pretrained(args.out).eval()
    task = build_task(TaskConfig(name="demo", n=500, seed=ROWS_SEED + 1))
    result = evaluate(saved, tokenizer, task, fmt=PromptFormat(), out=None, batch_size=250)
    told = {"steps": args.steps, "params": saved.num_parameters(), "seconds": seconds, "evaluation": result.to_json()}
    (args.out / "trained.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    print(f"{saved.num_parameters():,} parameters, {result.correct} of {result.n} right, {seconds:.0f} s")


if __name__ == "__main__":
    main()
