"""Does `stop_at` keep its promise? The demo model is compacted as far as 98 % of its accuracy allows, then tested anew.

    python studies/02-stop-at/stop_at.py          # resumable; writes record.json and README.md beside this file

The final model and the original answer 2,000 problems that neither recovery, nor the validation, nor the report used. The
promise is kept if the lower end of the 95 % interval of the share of accuracy kept reaches the wanted share. A second run
asks for all of the accuracy with hardly any recovery, which no smaller model can promise: it must say so.
"""

from __future__ import annotations

import json
from pathlib import Path

from prunetune import Recipe, prune_tune_loop
from prunetune.common.stats import kept_share, pair
from prunetune.evaluation.evaluate import evaluate, read_samples
from prunetune.models.folders import load_model, load_tokenizer, resolve_model
from prunetune.models.prompt import PromptFormat
from prunetune.tasks.registry import TaskConfig, build_task

HERE = Path(__file__).parent
RUNS = HERE.parents[1] / "runs" / "stop-at"
FRESH = TaskConfig(name="demo", n=2000, seed=4242)
NEVER_MIND = 10**12  # the interval of these 2,000 problems alone


def recipe(accuracy: float, samples: int, seed: int) -> Recipe:
    """The demo's recipe, as deep as 30 %, with a budget a round."""
    value = Recipe.read("demo").model_dump(mode="json")
    value["prune"] |= {"target": 0.3, "step": 0.15}
    value["recover"][0] |= {"samples": samples, "per": "round"}
    value["evaluate"] |= {"round_n": 100, "latency_repeats": 0}
    value["evaluate"]["tasks"][0]["n"] = 1000
    return Recipe.parse({**value, "control": "none", "stop_at": {"accuracy": accuracy, "n": 1000}, "seed": seed})


def fresh(folder: Path, out: Path) -> dict[str, bool]:
    """Verdicts of a model on the fresh problems."""
    task = build_task(FRESH)
    evaluate(
        load_model(folder), load_tokenizer(folder), task, fmt=PromptFormat(), out=out, batch_size=250, key=str(folder)
    )
    return {r["id"]: bool(r["correct"]) for r in read_samples(out)}


def main() -> None:
    """Run, test, write."""
    RUNS.mkdir(parents=True, exist_ok=True)
    before, found = fresh(resolve_model("demo"), RUNS / "original.jsonl"), []
    for name, accuracy, samples, seed in (("98 %", 0.98, 1280, 0), ("all of it", 1.0, 64, 0)):
        out = RUNS / f"{accuracy:g}-s{seed}"
        summary = prune_tune_loop(recipe(accuracy, samples, seed), out)
        row = {"asked": name, "wanted": accuracy, "seed": seed, "promise": summary["promise"]}
        row |= {"params_ratio": summary["params_ratio"], "recovery_tokens": summary["recovery_tokens"]}
        row["rounds"] = [[s["name"], s["verdict"]["accepted"], s["verdict"]["why"]] for s in summary["stages"]]
        if summary["promise"]["kept"]:
            after = fresh(out / "final", RUNS / f"{out.name}.jsonl")
            pairs = [(before[i], after[i]) for i in before]
            kept, lower = kept_share(pairs, accuracy, fresh=NEVER_MIND)
            cells = pair(pairs)
            row |= {"n": len(pairs), "original": (cells.both + cells.lost) / len(pairs), "kept": kept, "lower": lower}
            row |= {"final": (cells.both + cells.gained) / len(pairs), "holds": lower >= accuracy}
        found.append(row)
    (HERE / "record.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    (HERE / "README.md").write_text(page(found), encoding="utf-8")


def page(found: list[dict]) -> str:
    """The results as Markdown."""
    lines = [
        "# Does `stop_at` keep its promise?",
        "",
        "`python studies/02-stop-at/stop_at.py`: the embedded demo model, seed 0, one run of each. Fresh problems: "
        f"`demo`, seed {FRESH.seed}, n = {FRESH.n:,}; interval: 95 %, paired.",
        "",
        "| asked to keep | parameters left | recovery tokens | on fresh problems | verdict |",
        "| --- | ---: | ---: | --- | --- |",
    ]
    for r in found:
        tested = "not tested: nothing was promised"
        verdict = "says that no smaller model keeps it" if not r["promise"]["kept"] else None
        if "kept" in r:
            tested = (
                f"{r['final']:.1%} (original {r['original']:.1%}): {r['kept']:.1%} kept, lower end {r['lower']:.1%}"
            )
            verdict = "promise kept" if r["holds"] else "promise BROKEN"
        lines.append(f"| {r['asked']} | {r['params_ratio']:.1%} | {r['recovery_tokens']:,} | {tested} | {verdict} |")
    for r in found:
        lines += ["", f"## Asked for {r['asked']}", "", "| round | stands | why |", "| --- | --- | --- |"]
        lines += [f"| {name} | {'yes' if ok else 'no'} | {why} |" for name, ok, why in r["rounds"]]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
