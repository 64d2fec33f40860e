"""Training a small reasoning model from nothing: shared by the demo's model and the study models.

Fresh problems at every step, solutions at full weight in the loss and questions, which are random, at a tenth. Muon
moves the matrices: with AdamW alone the same model needs several times the steps.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch
from transformers import LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

from prunetune.data.demo.tokenizer import VOCAB_SIZE
from prunetune.models.prompt import PromptFormat, encode_example

MUON_LR, ADAM_LR = 0.02, 3e-3
QUESTION_WEIGHT = 0.1


def llama(width: int, ffn: int, layers: int) -> LlamaConfig:
    """A byte-level Llama with heads of 32 and tied embeddings."""
    return LlamaConfig(
        vocab_size=VOCAB_SIZE, hidden_size=width, intermediate_size=ffn, num_hidden_layers=layers,
        num_attention_heads=width // 32, num_key_value_heads=width // 32, max_position_embeddings=512,
        tie_word_embeddings=True, pad_token_id=0, bos_token_id=1, eos_token_id=2,
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
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, pairs: list[tuple[str, str]], batch: int
) -> float:
    """One pass over the problems: warm-up, constant rate, linear decay over the last 60 %. Returns the seconds."""
    steps = len(pairs) // batch
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n and ".mlp.gate." not in n]
    others = [p for _, p in model.named_parameters() if all(p is not m for m in matrices)]  # a router, experts, norms
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
            solution = (losses * (weight[:, 1:] == 1)).sum().item() / (weight == 1).sum().item()
            taken = time.perf_counter() - start
            print(f"step {step + 1}/{steps}  solution loss {solution:.4f}  {taken:.0f} s", flush=True)
    return time.perf_counter() - start


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """A plain folder, bf16, that readers built on transformers 4 load too."""
    model.bfloat16().save_pretrained(out)
    tokenizer.save_pretrained(out)
    path = out / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (out / "model.safetensors").chmod(0o644)
