"""Does `keep` hold its promise? The demo model is compacted as far as a share of its accuracy allows, then tested anew.

    python studies/02-stop-at/stop_at.py          # resumable; writes record.json and README.md beside this file

The final model and the original answer 2,000 problems that neither recovery, nor the validation, nor the report used. The
promise is kept if the lower end of the 95 % interval of the share of accuracy kept reaches the wanted share. A last run
asks for all of the accuracy with hardly any recovery, which no smaller model can promise: it must say so.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from prunetune import Recipe, prune_tune_loop
from prunetune.common.stats import kept_share, pair
from prunetune.evaluation.evaluate import evaluate, read_samples
from prunetune.models.folders import load_model, load_tokenizer, resolve_model
from prunetune.models.prompt import PromptFormat
from prunetune.recipe.schema import recipe_mapping
from prunetune.tasks.registry import TaskConfig, build_task

HERE = Path(__file__).parent
RUNS = HERE.parents[1] / "runs" / "stop-at"
FRESH = TaskConfig(name="demo", n=2000, seed=4242)
WANTED = (("95 %", 0.95, None, 0), ("95 %", 0.95, None, 1), ("98 %", 0.98, None, 0), ("all of it", 1.0, 384, 0))
"""Asked for, as a share, samples of recovery (None: the recipe's), seed."""
NEVER_MIND = 10**12  # the interval of these 2,000 problems alone


def recipe(share: float, samples: int | None, seed: int) -> Recipe:
    """The demo's recipe as `prunetune run demo --keep SHARE` has it; of the last run with hardly any recovery."""
    value = recipe_mapping("demo")
    if samples is not None:
        value["recover"][0]["samples"] = samples
    kept = {k: v for k, v in value.items() if k not in ("prune", "control")}
    return Recipe.parse({**kept, "keep": share, "seed": seed})


def fresh(folder: Path, out: Path) -> dict[str, bool]:
    """Verdicts of a model on the fresh problems."""
    task = build_task(FRESH)
    evaluate(
        load_model(folder), load_tokenizer(folder), task, fmt=PromptFormat(), out=out, batch_size=250, key=str(folder)
    )
    return {r.id: r.correct for r in read_samples(out)}


def main() -> None:
    """Run, test, write."""
    RUNS.mkdir(parents=True, exist_ok=True)
    before, found = fresh(resolve_model("demo"), RUNS / "original.jsonl"), []
    for name, accuracy, samples, seed in WANTED:
        out = RUNS / f"{accuracy:g}-s{seed}"
        begun = time.process_time()
        summary = prune_tune_loop(recipe(accuracy, samples, seed), out)
        spent = time.process_time() - begun
        row = {"asked": name, "wanted": accuracy, "seed": seed, "promise": summary["promise"]}
        row["cpu_seconds"] = round(spent, 1)
        row |= {"params_ratio": summary["params_ratio"], "recovery_tokens": summary["recovery_tokens"]}
        row["rounds"] = [
            [s["name"], s["decision"], s["verdict"]["accepted"], s["verdict"]["why"]] for s in summary["stages"]
        ]
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


def page(found: list[dict[str, Any]]) -> str:
    """The results as Markdown."""
    lines = [
        "# Does `keep` hold its promise?",
        "",
        "`python studies/02-stop-at/stop_at.py`: the embedded demo model, one run of each row, all as "
        "`prunetune run demo --keep 95%` (the last with 384 sequences of recovery). Fresh problems: "
        f"`demo`, seed {FRESH.seed}, n = {FRESH.n:,}; interval: 95 %, paired.",
        "",
        "| asked to keep | seed | tries | parameters left | recovery tokens | CPU seconds | on fresh problems | verdict |",
        "| --- | --- | ---: | ---: | ---: | ---: | --- | --- |",
    ]
    for r in found:
        tested = "not tested: nothing was promised"
        verdict = "says that no smaller model keeps it" if not r["promise"]["kept"] else None
        if "kept" in r:
            tested = (
                f"{r['final']:.1%} (original {r['original']:.1%}): {r['kept']:.1%} kept, lower end {r['lower']:.1%}"
            )
            verdict = "promise kept" if r["holds"] else "promise BROKEN"
        cells = [r["asked"], r["seed"], len(r["rounds"]), f"{r['params_ratio']:.1%}", f"{r['recovery_tokens']:,}"]
        lines.append("| " + " | ".join(map(str, [*cells, f"{r['cpu_seconds']:.0f}", tested, verdict])) + " |")
    for r in found:
        head = ["| try | what it is | stands | why |", "| --- | --- | --- | --- |"]
        lines += ["", f"## Asked for {r['asked']}, seed {r['seed']}", "", *head]
        lines += [f"| {name} | {what} | {'yes' if ok else 'no'} | {why} |" for name, what, ok, why in r["rounds"]]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
