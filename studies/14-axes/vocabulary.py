"""What a smaller vocabulary costs: a model, and the same one with the tokens of GSM8K's training text, on unseen answers.

    .venv/bin/python studies/14-axes/vocabulary.py MODEL --out DIR [--keep N] [--wikitext] [--n 60]

Needs $PRUNETUNE_DATA (gsm8k/, wikitext2/). Nothing is trained. The loss is that of the answers of `n` test questions
after their prompt, end token included, divided by the answers' bytes; the interval is over questions, paired. Prints one
line of JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from prunetune.common.files import once
from prunetune.data.example import Example
from prunetune.data.sources import FileData
from prunetune.data.stream import load_stream
from prunetune.models.cost import params
from prunetune.models.folders import config_values, load_model, load_tokenizer, resolve_model
from prunetune.models.prompt import PromptFormat, encode
from prunetune.pruning.vocabulary.folder import cut_vocabulary, fit
from prunetune.pruning.vocabulary.texts import length


def texts(name: str) -> list[Example]:
    """The samples of a data file, shuffled by seed 0."""
    return list(load_stream([FileData(path=str(Path(os.environ["PRUNETUNE_DATA"]) / name))], 0).examples)


def losses(folder: Path, examples: Sequence[Example]) -> list[float]:
    """Summed loss (nats) of each answer, end token included, in fp32."""
    model, tokenizer, found = load_model(folder, torch.float32), load_tokenizer(folder), []
    for example in examples:
        row = encode(tokenizer, example, PromptFormat(), None)
        ids, answer = torch.tensor([row.input_ids]), torch.tensor(row.input_ids[row.prompt_length :])
        with torch.inference_mode():
            logits = model(ids, logits_to_keep=len(answer) + 1).logits[0, :-1]
        found.append(float(torch.nn.functional.cross_entropy(logits, answer, reduction="sum")))
    return found


def main() -> None:
    """One model."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--keep", type=int)
    parser.add_argument("--wikitext", action="store_true", help="WikiText-2's validation text is a guard")
    parser.add_argument("--n", type=int, default=60)
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))

    source, unseen = resolve_model(args.model), texts("gsm8k/test.jsonl")
    guard = texts("wikitext2/valid.txt") if args.wikitext else []
    fitted = fit(source, texts("gsm8k/train.jsonl"), guard, keep=args.keep)
    cut = once(args.out, fitted.sha, lambda tmp: cut_vocabulary(source, fitted, tmp))

    asked = unseen[: args.n]
    size = [len(e.answer.encode()) for e in asked]
    before, after = losses(source, asked), losses(cut, asked)
    old, new = load_tokenizer(source), load_tokenizer(cut)
    long = {
        name: length(old, new, part, fitted.kept.rows)
        for name, part in {
            "gsm8k_test": unseen, "wikitext_test": texts("wikitext2/wiki.test.raw"), "mbpp": texts("mbpp/mbpp.jsonl")
        }.items()
    }  # fmt: skip
    each = [(b - a) / s for a, b, s in zip(before, after, size, strict=True)]
    mean = sum(each) / len(each)
    spread = math.sqrt(sum((e - mean) ** 2 for e in each) / (len(each) - 1) / len(each))
    was, now = (params(config_values(folder)) for folder in (source, cut))
    print(
        json.dumps({
            "model": args.model, "n": args.n, "keep": args.keep, "wikitext": args.wikitext,
            "tokens": fitted.kept.tokens, "of": len(fitted.tokenizer.tokens), "params": now, "original_params": was,
            "loss_per_byte": [sum(before) / sum(size), sum(after) / sum(size)],
            "mean_difference": mean, "standard_error": spread,
            "length": {name: [round(x.ratio, 5), x.alike, x.texts] for name, x in long.items()},
        })
    )  # fmt: skip


if __name__ == "__main__":
    main()
