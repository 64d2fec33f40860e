"""How many calibration tokens least squares, and the selection that knows of it, need.

    python studies/11-calibration-tokens/calibrate.py --part traces       # the study model; seconds a point
    python studies/11-calibration-tokens/calibrate.py --part smollm2      # the taught SmolLM2; minutes a point
    python studies/11-calibration-tokens/calibrate.py --part mixture      # sixteen experts, taught the demo's sums; seconds
    python studies/11-calibration-tokens/calibrate.py --tables            # README.md from records.json alone

For growing numbers of sequences, drawn anew by each seed: one cut to a given width, ranked by `contribution` or by `greedy` (both
from the same sequences), with least squares from them (three quarters fit, a quarter chooses the ridge) or without. No
training. What counts is the loss on sequences of a third split. Points that records.json has are not measured again.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from experts import keep, recorded, section

from prunetune.data.stream import Example, FileData, GeneratedData, load_stream
from prunetune.evaluation.loss import reasoning_loss
from prunetune.models.axes import axis_of
from prunetune.models.folders import load_model, load_tokenizer
from prunetune.models.prompt import PromptFormat, encode_example
from prunetune.pruning.apply import apply_in_memory
from prunetune.pruning.compensate import compensate
from prunetune.pruning.plan import make_plan
from prunetune.pruning.scores import Batch, make_batches, score

HERE = Path(__file__).parent
RUNS = HERE.parents[1] / "runs"
WAYS = ("contribution", "contribution + least squares", "greedy + least squares")
PARTS: dict[str, dict[str, Any]] = {
    "traces": {
        "model": RUNS / "traces",
        "data": FileData(path=str(RUNS / "traces" / "train.jsonl")),
        "kept": 0.24,  # of the width: 40 % of the parameters
        "sequences": [2, 4, 8, 16, 32, 64, 128, 256, 512],
        "seeds": [0, 1, 2],
        "held_out": 256,
        "max_length": 256,
        "model_name": "the study model (1.5 M parameters, 768 neurons a layer, cut to 184)",
    },
    "smollm2": {
        "model": RUNS / "smollm2-reasoning",
        "data": GeneratedData(name="gsm_symbolic", size=4000, seed=1),
        "kept": 0.625,
        "sequences": [4, 8, 16, 32, 64],
        "seeds": [0, 1, 2],
        "held_out": 48,
        "max_length": 512,
        "model_name": "SmolLM2-135M taught on gsm_symbolic (1,536 neurons a layer, cut to 960)",
    },
    "mixture": {
        "model": RUNS / "mixture",
        "data": FileData(path=str(RUNS / "mixture" / "train.jsonl")),
        "kept": 0.25,
        "share": 0.25,  # of the tokens, which an expert gets
        "sequences": [4, 16, 64, 256],
        "seeds": [0, 1, 2],
        "held_out": 256,
        "max_length": 256,
        "model_name": "a mixture of experts (16, of which a token passes 4; 64 neurons each, cut to 16)",
    },
}


def point(part: dict[str, Any], seed: int, sequences: int) -> dict[str, Any]:
    """One number of sequences: the losses of every way."""
    model, tokenizer = load_model(part["model"], torch.float32), load_tokenizer(part["model"])
    stream = load_stream([part["data"]], seed)
    chosen = stream.take(part["held_out"], part["held_out"] + sequences)

    def batches(examples: Sequence[Example]) -> list[Batch]:
        rows = [encode_example(tokenizer, e.question, e.answer, PromptFormat(), part["max_length"]) for e in examples]
        return make_batches([r.input_ids for r in rows], tokenizer.pad_token_id, 8192)

    def loss(candidate: Any) -> float:
        held_out = stream.take(0, part["held_out"])
        return reasoning_loss(candidate, tokenizer, held_out, PromptFormat(), part["max_length"])[0]

    every, ridge = batches(chosen), batches(chosen[::4])
    fit = batches([e for i, e in enumerate(chosen) if i % 4])
    width = axis_of("neurons").units(model.config.to_dict())
    gone = width - round(part["kept"] * width / 8) * 8
    start, losses = time.perf_counter(), {}
    contribution = score(model, every)
    ranked = {"contribution": contribution.neurons, "greedy": score(model, every, neuron_criterion="greedy").neurons}
    for way in WAYS:
        by = way.split()[0]
        plan = make_plan(
            ranked[by].tolist(), contribution.layers.tolist(), "", n_neurons=gone, experts=contribution.experts
        )
        patch = compensate(model, plan, fit, held_out=ridge).tensors if "least" in way else {}
        losses[way] = loss(apply_in_memory(model, plan, patch))
    return {
        "sequences": sequences,
        "tokens": int(sum(b["attention_mask"].sum() for b in every)),
        "seed": seed,
        "width": width,
        "kept": width - gone,
        "whole": loss(model),
        "losses": losses,
        "seconds": round(time.perf_counter() - start, 1),
    }


def measure(name: str, sequences: list[int] | None, seeds: list[int] | None) -> None:
    """All points of a part that are not there yet."""
    records = recorded("calibration")
    part, done = PARTS[name], {(r["seed"], r["sequences"]) for r in records.get(name, [])}
    for seed in seeds or part["seeds"]:
        for n in sequences or part["sequences"]:
            if (seed, n) in done:
                continue
            found = point(part, seed, n)
            records.setdefault(name, []).append(found)
            keep("calibration", records)
            print(found, flush=True)


def page(records: dict[str, list[dict[str, Any]]]) -> str:
    """The results as Markdown."""
    lines = [
        "<!-- Made by calibrate.py --tables from records.json -->",
        "# How many calibration tokens are enough?",
        "",
        "`python studies/11-calibration-tokens/calibrate.py --part traces` (and `smollm2`, `mixture`). One cut, no training; loss in nats on",
        "held-out solutions that neither fitted nor chose the ridge. Each seed draws its own calibration and held-out sequences.",
    ]
    for name, found in records.items():
        seeds = sorted({r["seed"] for r in found})
        whole = statistics.fmean({r["seed"]: r["whole"] for r in found}.values())
        lines += [
            "",
            f"## {name}: {PARTS[name]['model_name']}",
            "",
            f"Loss of the whole model {whole:.4f}. Mean over seeds {', '.join(map(str, seeds))} (lowest to highest); {PARTS[name]['held_out']} held-out sequences.",
            "",
            "| sequences | tokens | " + " | ".join(WAYS) + " |",
            "| ---: | ---: |" + " --- |" * len(WAYS),
        ]
        for n in sorted({r["sequences"] for r in found}):
            rows = [r for r in found if r["sequences"] == n]
            tokens = statistics.fmean(r["tokens"] for r in rows)
            cells = [[r["losses"][w] for r in rows] for w in WAYS]
            shown = " | ".join(f"{statistics.fmean(c):.3f} ({min(c):.3f} to {max(c):.3f})" for c in cells)
            lines.append(f"| {n} | {tokens:,.0f} | {shown} |")
        lines += ["", _enough(found, PARTS[name].get("share", 1))]
    if experts := recorded("experts"):
        lines += ["", *section(experts)]
    return "\n".join(lines) + "\n"


def _enough(found: list[dict[str, Any]], share: float) -> str:
    """The smallest number whose loss increase is within a tenth of that of the largest, for the default way."""
    way, numbers = WAYS[-1], sorted({r["sequences"] for r in found})

    def rise(n: int) -> float:
        return statistics.fmean(r["losses"][way] - r["whole"] for r in found if r["sequences"] == n)

    best = rise(numbers[-1])
    enough = next(n for n in numbers if rise(n) <= 1.1 * best)
    rows = [r for r in found if r["sequences"] == enough]
    tokens, kept = statistics.fmean(r["tokens"] for r in rows), rows[0]["kept"]
    what = f"{enough} sequences ({tokens:,.0f} tokens, {share * tokens / kept:.0f} for each kept neuron of {'a layer' if share == 1 else 'an expert'})"
    if enough == numbers[-1]:
        return f"With {way}, more still helps at the largest number: {what} is not yet known to be enough."
    return f"With {way}, {what} come within a tenth of the loss increase that {numbers[-1]} sequences leave ({best:.4f} nats)."


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=[*PARTS])
    parser.add_argument("--sequences", type=int, nargs="*")
    parser.add_argument("--seeds", type=int, nargs="*")
    parser.add_argument("--tables", action="store_true")
    args = parser.parse_args()
    if args.part:
        measure(args.part, args.sequences, args.seeds)
    (HERE / "README.md").write_text(page(recorded("calibration")), encoding="utf-8")


if __name__ == "__main__":
    main()
