"""What recovery gives back of a cut: held-out losses of several folders on the same rows, and paired differences to the first cut.

    D=$PRUNETUNE_DATA/gsm8k/train.jsonl M=smollm2
    prunetune score $M -d $D --samples 128 -o s.safetensors && prunetune plan s.safetensors --neurons 776 -o plan.json
    prunetune compensate plan.json $M -d $D --samples 128 -o patch.safetensors
    prunetune apply plan.json $M cut --patch patch.safetensors
    prunetune tune local cut local --original $M -d $D --seed 1 --config local.yaml     # tokens: 4000, batch_size: 4, ...
    prunetune tune cpt cut cpt -d $D --seed 1 --tokens 4000 --config cpt.yaml
    prunetune tune cpt local both -d $D --seed 1 --tokens 4000 --config cpt.yaml
    python studies/speed/local_recovery.py $M cut local cpt both [--n 60] [--parts 12]

Losses are in nats a token: of the answers of the first GSM8K test rows (shuffled by seed 0), a mean over rows, and of WikiText-2's
test text in parts of 512 tokens. One seed: it says what these folders are, not what a method is.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from statistics import mean, stdev

import torch

from prunetune.data.stream import FileData, load_stream
from prunetune.evaluation.loss import reasoning_loss
from prunetune.models.folders import load_model, load_tokenizer
from prunetune.models.prompt import PromptFormat

DATA = Path(os.environ.get("PRUNETUNE_DATA", "data"))


def losses(folder: Path, n: int, parts: int) -> tuple[list[float], list[float]]:
    """Of each row, and of each part of the running text."""
    model, tokenizer = load_model(folder, dtype=torch.float32, device="cpu"), load_tokenizer(folder)
    rows = load_stream([FileData(path=str(DATA / "gsm8k" / "test.jsonl"))], 0).take(0, n)
    task = [reasoning_loss(model, tokenizer, [row], PromptFormat(), 1024)[0] for row in rows]
    text = (DATA / "wikitext2" / "wiki.test.raw").read_text(encoding="utf-8")[: 6000 * parts]
    ids = torch.tensor(tokenizer(text).input_ids[: parts * 512]).view(parts, 512)
    with torch.no_grad():
        return task, [float(model(input_ids=part[None], labels=part[None]).loss) for part in ids]


def told(values: list[float], before: list[float]) -> str:
    """The mean, and the mean of the paired differences with its standard error."""
    gaps = [a - b for a, b in zip(values, before, strict=True)]
    return f"{mean(values):.4f} ({mean(gaps):+.4f} ± {stdev(gaps) / len(gaps) ** 0.5:.4f})"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("original", type=Path)
    parser.add_argument("cut", type=Path)
    parser.add_argument("others", type=Path, nargs="*")
    parser.add_argument("--n", type=int, default=60)
    parser.add_argument("--parts", type=int, default=12)
    args = parser.parse_args()
    before = losses(args.cut, args.n, args.parts)
    print(f"| model | GSM8K answers, n = {args.n} | WikiText-2, {args.parts} parts |\n| --- | ---: | ---: |")
    for folder in (args.original, args.cut, *args.others):
        found = before if folder == args.cut else losses(folder, args.n, args.parts)
        print(f"| {folder.name} | {told(found[0], before[0])} | {told(found[1], before[1])} |", flush=True)


if __name__ == "__main__":
    main()
