"""Our stop texts against transformers' `stop_strings=`: seconds in turns, and where the answers differ.

python studies/speed/stop_strings.py MODEL [--n 8] [--tokens 60] [--repeats 5]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from prunetune.models.batches import mask_of, padded
from prunetune.models.folders import load_model, load_tokenizer, pad_id, resolve_model
from prunetune.models.generation import generate

STOPS = ("Question:", "\n\n", "\n", "end")
ACROSS = "Answer: "  # begins in the prompt, so it is no part of the answer


def main() -> None:
    """Print a line a stop text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    for name, value in (("--n", 8), ("--tokens", 60), ("--repeats", 5)):
        parser.add_argument(name, type=int, default=value)
    asked = parser.parse_args()
    folder = resolve_model(asked.model)
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    typed: Any = model  # `generate` of transformers is not annotated
    prompts = [list(tokenizer(f"Question: What is {i} + {7 * i + 3}?\nAnswer:").input_ids) for i in range(asked.n)]
    ids, mask = padded(prompts, pad_id(tokenizer), left=True), mask_of(prompts, left=True)

    def ours(stop: str) -> list[str]:
        return [a.text for a in generate(model, tokenizer, prompts, asked.tokens, (stop,))]

    def theirs(stop: str) -> list[str]:
        made = typed.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=asked.tokens,
            stop_strings=[stop],
            tokenizer=tokenizer,
        )
        return [t.partition(stop)[0] for t in tokenizer.batch_decode(made[:, ids.shape[1] :], skip_special_tokens=True)]

    for stop in (*STOPS, ACROSS):
        texts = ours(stop), theirs(stop)  # the first call builds what later ones keep
        times = [(_seconds(ours, stop), _seconds(theirs, stop)) for _ in range(asked.repeats)]
        ratios = sorted(b / a for a, b in times)
        same = sum(a == b for a, b in zip(*texts, strict=True))
        print(
            f"{stop!r}: {same} of {asked.n} the same; stop_strings takes {statistics.median(ratios):.2f} times as long "
            f"[{ratios[0]:.2f} to {ratios[-1]:.2f}]"
        )


def _seconds(call: Callable[[str], list[str]], stop: str) -> float:
    start = time.perf_counter()
    with torch.inference_mode():
        call(stop)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
