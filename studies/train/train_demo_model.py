"""Train the embedded demo's reasoning model from scratch: a Llama of 1.5 M parameters, on generated arithmetic.

    python studies/train/train_demo_model.py                       # about ten minutes on one CPU core; the seed is fixed
    python studies/train/train_demo_model.py --out DIR --steps 100

Written: the plain Hugging Face folder with bf16 weights, and a model card with the accuracy on 1,000 test problems.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from from_scratch import llama, save, train
from transformers import LlamaForCausalLM

from prunetune.data.demo.problems import distinct, problems
from prunetune.data.demo.tokenizer import byte_tokenizer
from prunetune.evaluation.evaluate import evaluate
from prunetune.models.folders import DEMO_MODEL
from prunetune.models.prompt import PromptFormat
from prunetune.tasks.registry import TaskConfig, build_task

SEED = 0
BATCH = 64
WIDTH, FFN, LAYERS = 128, 768, 4  # four fifths of the parameters are neurons, which can be cut
TEST_N, TEST_SEED = 1000, 2026

CARD = """---
license: apache-2.0
tags: [arithmetic, chain-of-thought]
---
# The demo model of prunetune

A Llama of {params:,} parameters ({layers} layers, width {width}, FFN {ffn}), trained from scratch by

    {command}

({seconds:.0f} s on {threads} CPU thread(s), {steps} steps of {batch} fresh problems, seed {seed}) to work out chains of
four steps, one line each:

    {question}
    {solution}

Accuracy on {n:,} test problems (seed {test_seed}; drawn from a split of {pool:,} that training never sees), greedy,
bf16 weights: **{accuracy:.1%}** ± {stderr:.1%}.

The tokenizer has one token a byte: digits stand one by one, and every text can be encoded. The prompt is
`Question: <question>\\nAnswer:`; the answer starts with a space and ends with `<eos>`. It knows nothing but these
problems.
"""


def main() -> None:
    """Train, save, measure, write the card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=DEMO_MODEL)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", "1")))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(SEED)
    tokenizer = byte_tokenizer()
    model = LlamaForCausalLM(llama(WIDTH, FFN, LAYERS))
    pairs = problems(args.steps * BATCH, SEED, "train")
    seconds = train(model, tokenizer, pairs, BATCH)
    save(model, tokenizer, args.out)

    saved = LlamaForCausalLM.from_pretrained(args.out).eval()
    task = build_task(TaskConfig(name="demo", n=TEST_N, seed=TEST_SEED))
    result = evaluate(saved, tokenizer, task, fmt=PromptFormat(), out=None)
    question, solution = pairs[0]
    card = CARD.format(
        params=saved.num_parameters(), layers=saved.config.num_hidden_layers, width=saved.config.hidden_size,
        ffn=saved.config.intermediate_size, command="python studies/train/train_demo_model.py", seconds=seconds,
        threads=args.threads, steps=args.steps, batch=BATCH, seed=SEED, question=question,
        solution=solution.replace("\n", "\n    "), n=result.n, test_seed=TEST_SEED, pool=distinct() // 4,
        accuracy=result.value, stderr=result.stderr,
    )  # fmt: skip
    (args.out / "README.md").write_text(card, encoding="utf-8")
    print(f"{result.correct} of {result.n} correct in {result.seconds:.0f} s")


if __name__ == "__main__":
    main()
