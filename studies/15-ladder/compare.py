"""A ladder against as many separate cuts at equal total tokens: each rung beside a cut with its share, paired.

    .venv/bin/python studies/15-ladder/compare.py --model demo --data demo --task demo --out runs/15-demo
    .venv/bin/python studies/15-ladder/compare.py --model MODEL --data gsm8k/train.jsonl --task gsm8k=gsm8k/ --ladder 0.8,0.7,0.6,0.5 \
        --tokens 400000 --n 500 --seeds 0,1,2 --out runs/15-smollm2

The ladder and the cuts have the same recipe but for the sizes: the ladder `--tokens` in all, each of its k rungs' cuts a
k-th of them. Run it again after any interruption and it goes on. Records go to `--records`, a line a seed and rung;
`--table` prints them alone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prunetune.cli.asked import Asked, mapping_of
from prunetune.common.progress import Watch
from prunetune.loop.loop import prune_tune_loop
from prunetune.recipe.said import ladder
from prunetune.recipe.schema import Recipe
from prunetune.report.pairs import ahead, read_samples
from prunetune.runs.summary import Summary

HERE = Path(__file__).parent


def recipe(args: argparse.Namespace, seed: int, tokens: int, **size: Any) -> Recipe:
    """The recipe of one run: options as the command line has them, nothing else than sizes and tokens differing."""
    asked = Asked(
        model=args.model, data=args.data, tasks=[args.task], n=args.n, seed=seed, device="cpu", chat=args.chat,
        sets=["evaluate.latency_repeats=0", *args.set], **size,
    )  # fmt: skip
    value = mapping_of(asked)
    value["recover"] = [{"type": "cpt", **args.recover, "tokens": tokens}]
    return Recipe.parse(value)


def seeds_of(args: argparse.Namespace) -> Iterator[list[dict[str, Any]]]:
    """The records of each seed, all runs made once."""
    shares = ladder(args.ladder)
    for seed in args.seeds:
        at = args.out / f"seed-{seed}"
        whole = prune_tune_loop(recipe(args, seed, args.tokens, ladder=args.ladder), at / "ladder", Watch())
        found = []
        for rung, share in zip(whole.ladder, shares, strict=True):
            one = at / f"cut-{share:g}"
            cut = prune_tune_loop(recipe(args, seed, args.tokens // len(shares), target=f"{share:g}"), one, Watch())
            found.append(
                record(args, seed, at, whole, rung.stage, one, cut) | {"share": share, "rung_params": rung.params}
            )
        yield found


def record(args: Any, seed: int, at: Path, whole: Summary, stage: str, one: Path, cut: Summary) -> dict[str, Any]:
    """A rung beside its cut, on the same questions."""
    assert cut.final is not None
    task = cut.final.evals[0].task
    ours, theirs = read_samples(at / "ladder" / stage, task), read_samples(one / cut.final.name, task)
    pair = ahead(theirs, ours)
    assert pair is not None
    rung = next(s for s in whole.stages if s.name == stage)
    first = whole.original
    return {
        "model": args.model, "task": task, "seed": seed, "n": pair.n, "tokens": args.tokens,
        "original": first.evals[0].value if first else None,
        "rung": rung.evals[0].value, "rung_loss": rung.held_out_loss, "spent": sum(s.tokens or 0 for s in whole.stages[: whole.stages.index(rung) + 1]),
        "cut": cut.final.evals[0].value, "cut_loss": cut.final.held_out_loss, "cut_params": cut.final.params, "cut_spent": cut.recovery_tokens,
        "difference": pair.difference, "low": pair.low, "high": pair.high,
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a row a seed and rung, then the mean of each rung over seeds."""
    lines = [
        "| seed | share | parameters | original | rung | cut alone | rung minus cut, points (95 %) | loss: rung, cut | tokens: rung, cut |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for r in sorted(rows, key=lambda r: (-r["share"], r["seed"])):
        interval = f"{100 * r['difference']:+.1f} ({100 * r['low']:+.1f} to {100 * r['high']:+.1f})"
        lines.append(
            f"| {r['seed']} | {r['share']:g} | {r['rung_params']:,} | {100 * r['original']:.1f} % | {100 * r['rung']:.1f} % | {100 * r['cut']:.1f} % | "
            f"{interval} | {r['rung_loss']:.3f}, {r['cut_loss']:.3f} | {r['spent']:,}, {r['cut_spent']:,} |"
        )
    lines += ["", "| share | mean of rung minus cut, points | lowest lower end |", "| ---: | ---: | ---: |"]
    for share in sorted({r["share"] for r in rows}, reverse=True):
        own = [r for r in rows if r["share"] == share]
        mean, low = sum(r["difference"] for r in own) / len(own), min(r["low"] for r in own)
        lines.append(f"| {share:g} | {100 * mean:+.1f} | {100 * low:+.1f} |")
    return "\n".join(lines)


def main() -> None:
    """The runs that are not there yet, the records, the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="demo")
    parser.add_argument("--data", action="append")
    parser.add_argument("--task", default="demo")
    parser.add_argument("--ladder", default="0.7,0.55,0.45")
    parser.add_argument("--tokens", type=int, default=6_000)
    parser.add_argument("--n", type=int, default=300)
    parser.add_argument("--seeds", type=lambda s: [int(x) for x in s.split(",")], default=[0, 1, 2])
    parser.add_argument(
        "--recover", type=json.loads, default={"batch_size": 8, "learning_rate": 4e-4, "max_length": 128}
    )
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--chat", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/15-demo"))
    parser.add_argument("--records", type=Path, default=HERE / "records.jsonl")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    args.data = args.data or ["demo"]
    if not args.table:
        rows: list[dict[str, Any]] = []
        for seed in seeds_of(args):
            rows += seed
            args.records.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    print(table([json.loads(line) for line in args.records.read_text(encoding="utf-8").splitlines()]))


if __name__ == "__main__":
    main()
