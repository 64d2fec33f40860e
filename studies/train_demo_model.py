"""Train the embedded demo's reasoning model from scratch: a Llama of 1.5 M parameters, on generated arithmetic.

    python studies/train_demo_model.py                       # about ten minutes on one CPU core; the seed is fixed
    python studies/train_demo_model.py --out /tmp/model --steps 100

Fresh problems at every step (`demo/problems.py`, split "train"), solutions at full weight in the loss and questions,
which are random, at a tenth. Muon moves the matrices: with AdamW alone the same model needs about five times the steps
(a probe with three two-digit operands: loss 0.34 after 100 steps against 1.26). Written: the plain Hugging Face folder
with bf16 weights, and a model card with the accuracy on 1,000 test problems.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from prunetune.demo.problems import distinct, problems
from prunetune.demo.tokenizer import VOCAB_SIZE, byte_tokenizer
from prunetune.evaluate import evaluate
from prunetune.prompt import PromptFormat, encode_example
from prunetune.store import DEMO_MODEL
from prunetune.tasks import TaskConfig, build_task

SEED = 0
BATCH = 64
MUON_LR, ADAM_LR = 0.02, 3e-3
QUESTION_WEIGHT = 0.1
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


def demo_config() -> LlamaConfig:
    """Four layers with a wide FFN: four fifths of the parameters are neurons that can be cut."""
    return LlamaConfig(
        vocab_size=VOCAB_SIZE, hidden_size=128, intermediate_size=768, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=512, tie_word_embeddings=True,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip


def rows(tokenizer: PreTrainedTokenizerFast, pairs: list[tuple[str, str]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [batch, length], padded on the right, and the weight of each in the loss."""
    encoded = [encode_example(tokenizer, q, a, PromptFormat(), None) for q, a in pairs]
    length = max(len(e.input_ids) for e in encoded)
    ids, weight = torch.zeros(len(pairs), length, dtype=torch.long), torch.zeros(len(pairs), length)
    for i, e in enumerate(encoded):
        ids[i, : len(e.input_ids)] = torch.tensor(e.input_ids)
        weight[i, : e.prompt_length] = QUESTION_WEIGHT
        weight[i, e.prompt_length : len(e.input_ids)] = 1.0
    return ids, weight


def train(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, pairs: list[tuple[str, str]], batch: int
) -> float:
    """One pass over the problems; warm-up, constant, then linear decay over the last 60 %. Returns the seconds."""
    steps = len(pairs) // batch
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=MUON_LR, momentum=0.95, weight_decay=0.01, adjust_lr_fn="original"),
        torch.optim.AdamW(others, lr=ADAM_LR, betas=(0.9, 0.95), weight_decay=0.0),
    ]

    def rate(step: int) -> float:
        return min((step + 1) / 20, 1.0, max(0.02, (steps - step) / (0.6 * steps)))

    schedules = [torch.optim.lr_scheduler.LambdaLR(o, rate) for o in optimizers]
    start = time.perf_counter()
    model.train()
    for step in range(steps):
        ids, weight = rows(tokenizer, pairs[step * batch : (step + 1) * batch])
        with torch.autocast("cpu", torch.bfloat16):  # padding on the right: the causal mask is mask enough
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        losses = torch.nn.functional.cross_entropy(logits.float().transpose(1, 2), ids[:, 1:], reduction="none")
        loss = (losses * weight[:, 1:]).sum() / weight[:, 1:].sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        if step % 25 == 24:
            solution = (losses * (weight[:, 1:] == 1)).sum() / (weight == 1).sum()
            print(
                f"step {step + 1}/{steps}  solution loss {solution.item():.4f}  {time.perf_counter() - start:.0f} s",
                flush=True,
            )
    return time.perf_counter() - start


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """A plain folder that readers built on transformers 4 load too."""
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    path = out / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


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
    model = LlamaForCausalLM(demo_config())
    pairs = problems(args.steps * BATCH, SEED, "train")
    seconds = train(model, tokenizer, pairs, BATCH)
    save(model, tokenizer, args.out)

    saved = LlamaForCausalLM.from_pretrained(args.out).eval()
    task = build_task(TaskConfig(name="demo", n=TEST_N, seed=TEST_SEED))
    result = evaluate(saved, tokenizer, task, fmt=PromptFormat(), out=None)
    question, solution = pairs[0]
    card = CARD.format(
        params=saved.num_parameters(), layers=saved.config.num_hidden_layers, width=saved.config.hidden_size,
        ffn=saved.config.intermediate_size, command="python studies/train_demo_model.py", seconds=seconds,
        threads=args.threads, steps=args.steps, batch=BATCH, seed=SEED, question=question,
        solution=solution.replace("\n", "\n    "), n=result.n, test_seed=TEST_SEED, pool=distinct() // 4,
        accuracy=result.value, stderr=result.stderr,
    )  # fmt: skip
    (args.out / "README.md").write_text(card, encoding="utf-8")
    print(f"{result.correct} of {result.n} correct in {result.seconds:.0f} s")


if __name__ == "__main__":
    main()
