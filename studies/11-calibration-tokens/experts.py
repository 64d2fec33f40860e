"""With how many held-out tokens an expert's ridge is chosen, and with how many chance chooses it.

    python studies/11-calibration-tokens/experts.py               # three mixtures, a minute or two each
    python studies/11-calibration-tokens/calibrate.py --tables    # README.md from records.json alone

Each expert of each layer loses half of its neurons (the lowest `contribution`), and its least squares is fitted and its
ridge chosen as `compensate` does it, but without its rule for few tokens. What counts is the expert's error on fresh
tokens, against that of the cut alone. Routing sends experts different numbers of tokens, and so do the numbers of
sequences: three to fit to for each that is held out.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GptOssConfig, PreTrainedModel, Qwen3MoeConfig

from prunetune.common.files import write_json
from prunetune.data.stream import FileData, load_stream
from prunetune.models.folders import load_model, load_tokenizer
from prunetune.models.prompt import PromptFormat, encode_example
from prunetune.pruning.compensate import RIDGES
from prunetune.pruning.experts.cut import kept_neurons
from prunetune.pruning.experts.fold import FEW, RoutedTap
from prunetune.pruning.experts.walk import expert_of
from prunetune.pruning.layerwise import embed, one_layer, open_source
from prunetune.pruning.least_squares import fold, residue_of
from prunetune.pruning.plan import make_plan
from prunetune.pruning.scores import Batch, make_batches, score

HERE = Path(__file__).parent
RECORDS = HERE / "records.json"
TAUGHT = HERE.parents[1] / "runs" / "mixture"
HELD_OUT, FRESH, LEAST = (1, 2, 4, 8, 16, 32, 64, 128), 400, 50
BINS = ((1, 3), (4, 7), (8, 15), (16, 31), (32, 63), (64, None))
SEEDS = (0, 1, 2)
Draw = Callable[[int, int], list[Batch]]
"""(how many sequences, after how many others) -> batches."""


def recorded(what: str) -> dict[str, list[dict[str, Any]]]:
    """What this study has measured, part by part: of the `calibration` of layers, or of `experts`."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = (
        json.loads(RECORDS.read_text(encoding="utf-8")) if RECORDS.is_file() else {}
    )
    return found.get(what, {})


def keep(what: str, found: dict[str, list[dict[str, Any]]]) -> None:
    """Write one of the two, with the other as it is."""
    write_json(RECORDS, {**{name: recorded(name) for name in ("calibration", "experts")}, what: found})


def random_tokens(seed: int) -> Draw:
    """Sequences of 24 random tokens."""

    def draw(count: int, after: int) -> list[Batch]:
        rows = [
            torch.randint(3, 100, (24,), generator=torch.Generator().manual_seed(seed * 10**6 + after + i))
            for i in range(count)
        ]
        return make_batches([row.tolist() for row in rows], 0)

    return draw


def solutions(seed: int) -> Draw:
    """Questions with their solutions, as the mixture was taught."""
    tokenizer, stream = load_tokenizer(TAUGHT), load_stream([FileData(path=str(TAUGHT / "train.jsonl"))], seed)

    def draw(count: int, after: int) -> list[Batch]:
        chosen = stream.take(after, after + count)
        return make_batches(
            [encode_example(tokenizer, e.question, e.answer, PromptFormat(), 256).input_ids for e in chosen], 0
        )

    return draw


def invented(config: Any, seed: int) -> PreTrainedModel:
    """Random weights, no norm or bias at its trivial value."""
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    model.eval()
    return model


SHAPE: dict[str, Any] = {
    "vocab_size": 104, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "num_experts_per_tok": 3, "max_position_embeddings": 256,
}  # fmt: skip
PARTS: dict[str, tuple[str, Callable[[int], PreTrainedModel], Callable[[int], Draw]]] = {
    "taught": ("the taught mixture", lambda seed: load_model(TAUGHT, torch.float32), solutions),
    "qwen3_moe": (
        "random weights, 32 experts, SwiGLU",
        lambda seed: invented(Qwen3MoeConfig(**SHAPE, num_experts=32, moe_intermediate_size=48), seed),
        random_tokens,
    ),
    "gpt_oss": (
        "random weights, 32 experts, with biases",
        lambda seed: invented(GptOssConfig(**SHAPE, num_local_experts=32, layer_types=["full_attention"] * 2), seed),
        random_tokens,
    ),
}


@torch.no_grad()
def errors(model: PreTrainedModel, draw: Draw, held_out: int) -> list[tuple[int, float]]:
    """(held-out tokens, error on fresh ones against the cut alone) of every expert that gets enough fresh ones."""
    fitted, held, fresh = draw(3 * held_out, 0), draw(held_out, 3 * held_out), draw(FRESH, 1000)
    scores, source = score(model, fitted), open_source(model)
    width = source.width
    plan = make_plan(scores.neurons.tolist(), scores.layers.tolist(), "", n_neurons=width // 2, experts=scores.experts)
    parts = [
        (embed(source, [b["input_ids"] for b in some]), [b["attention_mask"].bool() for b in some])
        for some in (fitted, held, fresh)
    ]
    found, experts = [], source.family.experts
    if experts is None:
        raise TypeError("a mixture is asked for")
    for layer in range(source.depth):
        one, seen = one_layer(source, layer), []
        for hidden, masks in parts:
            with RoutedTap(one.block, source.family) as tap:
                hidden[:] = [tap.run(one, h, m, 0)[0] for h, m in zip(hidden, masks, strict=True)]
            seen.append({e: (gram.tokens, gram.finish()) for e, gram in tap.grams[0].items()})
        module = one.block.get_submodule(experts.module)
        for expert, kept in kept_neurons(plan, layer).items():
            if any(expert not in each for each in seen) or seen[2][expert][0] < LEAST:
                continue
            gone = torch.tensor([n for n in range(width) if n not in kept])
            stay = torch.tensor([*kept, *([width] if experts.bias else [])])
            lost = expert_of(module, experts, expert).down[:, gone].float()
            calibration, ridge, new = (residue_of(each[expert][1], lost, stay, gone) for each in seen)
            found.append((seen[1][expert][0], new.error(fold(calibration, ridge, RIDGES).change)))
    return found


def measured(name: str) -> list[dict[str, Any]]:
    """Of one mixture all experts, at all numbers of sequences and all seeds, by their held-out tokens."""
    found, (_, model, draws) = list[tuple[int, float]](), PARTS[name]
    for seed in SEEDS:
        draw, given = draws(seed), model(seed)
        for count in HELD_OUT:
            found += errors(given, draw, count)
    rows = []
    for low, high in BINS:
        part = [e for n, e in found if low <= n <= (high or n)]
        if part:
            worse, mean = sum(e > 1 for e in part), round(statistics.fmean(part), 4)
            rows.append(
                {
                    "from": low,
                    "to": high,
                    "experts": len(part),
                    "mean": mean,
                    "worse": worse,
                    "worst": round(max(part), 4),
                }
            )
    return rows


def section(found: dict[str, list[dict[str, Any]]]) -> list[str]:
    """The results as lines of Markdown."""
    lines = [
        "## How many held-out tokens choose an expert's ridge?",
        "",
        f"`python studies/11-calibration-tokens/experts.py`, seeds {', '.join(map(str, SEEDS))}. An expert loses half of its neurons. Its error on fresh tokens, as a part of",
        "that of the cut alone, by the number of held-out tokens that its ridge was chosen on; three times as many were fitted to. Above 1: worse than only cut.",
    ]
    for name, rows in found.items():
        head = "| held-out tokens | experts | error, mean | worse than only cut | the worst |"
        lines += ["", f"**{PARTS[name][0]}**", "", head, "| --- | ---: | ---: | ---: | ---: |"]
        for row in rows:
            tokens = f"{row['from']} to {row['to']}" if row["to"] else f"from {row['from']} on"
            lines.append(
                f"| {tokens} | {row['experts']} | {row['mean']:.2f} | {row['worse'] / row['experts']:.1%} | {row['worst']:.2f} |"
            )
    few = [
        sum(row[key] for rows in found.values() for row in rows if row["to"] and row["to"] < FEW)
        for key in ("worse", "experts")
    ]
    more = [
        sum(row[key] for rows in found.values() for row in rows if row["from"] >= FEW) for key in ("worse", "experts")
    ]
    worst = max(row["worst"] for rows in found.values() for row in rows if row["from"] >= FEW)
    said = f"with fewer than {FEW} {few[0] / few[1]:.0%} of the experts got worse, with as many or more {more[0] / more[1]:.1%}, by {worst - 1:.0%} at most."
    return [*lines, "", f"So `compensate` only cuts an expert that gets fewer than {FEW} held-out tokens: {said}"]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=[*PARTS], nargs="*", default=[*PARTS])
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in args.part:
        keep("experts", {**recorded("experts"), name: measured(name)})
    print("\n".join(section(recorded("experts"))))


if __name__ == "__main__":
    main()
