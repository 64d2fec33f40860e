"""A small, complete run folder by the design's contract: original, four rounds, samples, loss logs, control, summary.

Verdicts come from a seeded draw and every figure in the records is counted from them, as in a real run.
"""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from prunetune.common.stats import stderr
from prunetune.models.cost import cost_of
from prunetune.pruning.plan import PrunePlan
from prunetune.runs.reading import RunRecord
from prunetune.runs.summary import Summary

DEPTH, WIDTH, HIDDEN, VOCAB = 8, 96, 64, 140
TASKS = {"demo": 240, "gsm_symbolic": 120}
# name, neurons left, layers left, chance to be right (demo, gsm_symbolic)
ROUNDS = [
    ("01-neurons-16", 80, 8, (0.985, 0.71)),
    ("02-neurons-16", 64, 8, (0.98, 0.69)),
    ("03-neurons-16", 48, 8, (0.97, 0.64)),
    ("04-layers-2", 48, 6, (0.965, 0.62)),
]


def config(depth: int, width: int) -> dict[str, Any]:
    """config.json of a Llama of that shape."""
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCAB, "hidden_size": HIDDEN,
        "intermediate_size": width, "num_hidden_layers": depth, "num_attention_heads": 4, "num_key_value_heads": 4,
        "tie_word_embeddings": True,
    }  # fmt: skip


def params(depth: int, width: int) -> int:
    return VOCAB * HIDDEN + depth * (4 * HIDDEN * HIDDEN + 3 * HIDDEN * width + 2 * HIDDEN) + HIDDEN


def _flops(folder: Path, tasks: dict[str, int], depth: int, width: int) -> dict[str, float]:
    cost, out = cost_of(config(depth, width)), {}
    for task in tasks:
        rows = [json.loads(line) for line in (folder / "eval" / f"{task}.jsonl").read_text().splitlines()]
        out[task] = sum(cost.flops(r["prompt_tokens"], r["new_tokens"]).total for r in rows) / len(rows)
    return out


def _write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")


def _evaluate(
    folder: Path, tasks: dict[str, int], chances: tuple[float, ...], seed: int, cost: int
) -> list[dict[str, Any]]:
    results = []
    for (task, n), chance in zip(tasks.items(), chances, strict=False):
        draw, rows = random.Random(f"{task}{seed}"), []
        hard = random.Random(task)
        for i in range(n):
            a, b = hard.randint(10, 99), hard.randint(10, 99)
            easy = hard.random()  # shared by all models: verdicts are correlated, as real ones are
            correct = (easy if draw.random() < 0.6 else draw.random()) < chance
            answer = a + b if correct else a + b + draw.choice([-10, 1, 10])
            work = f"{a} + {b}: {a % 10} + {b % 10} = {a % 10 + b % 10}, {a // 10} + {b // 10} = {a // 10 + b // 10}."
            rows.append(
                {
                    "id": f"{task}-{i}",
                    "question": f"Ann has {a} apples & <{b}> pears. How many fruits are there in all?",
                    "prompt": f"Question: Ann has {a} apples & <{b}> pears. How many fruits are there in all?\nAnswer:",
                    "output": f" {work}\n#### {answer}",
                    "extracted": str(answer),
                    "correct": correct,
                    "reason": "" if correct else f"{answer} is not {a + b}",
                    "prompt_tokens": 60 + a % 7,
                    "new_tokens": 40 + b % 9,
                }
            )
        path = folder / "eval" / f"{task}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
        right = sum(r["correct"] for r in rows)
        results.append(
            {
                "task": task, "version": "1", "metric": "accuracy", "value": right / n, "stderr": stderr(right, n), "n": n,
                "seed": 7, "prompt_tokens": sum(r["prompt_tokens"] for r in rows) / n,
                "new_tokens": sum(r["new_tokens"] for r in rows) / n, "seconds": 2e-5 * cost**0.5 * n, "correct": right,
            }
        )  # fmt: skip
    return results


def _stage(
    folder: Path, index: int, depth: int, width: int, chances: tuple[float, ...], tasks: dict[str, int], **more: Any
) -> dict[str, Any]:
    size = params(depth, width)
    evals = _evaluate(folder, tasks, chances, index, size)
    flops = _flops(folder, tasks, depth, width)
    stage = {
        "index": index, "name": folder.name, "attempt": 1, "step": None, "model_sha": f"{size:016x}", "depth": depth, "width": width,
        "cost": {"params": size, "weight_bytes": 2 * size, "kv_bytes_per_token": 64 * depth, "flops": flops},
        "evals": evals,
        "samples": [0, 0], "tokens": 0, "seconds": {"evaluate": 31.0}, "tune": [], "removed": None, "pruned_loss": None, "held_out_loss": 0.26, "verdict": None,
        **more,
    }  # fmt: skip
    _write(folder / "stage.json", stage)
    return stage


def _log(index: int, steps: int = 40) -> list[dict[str, float]]:
    noise = random.Random(index)
    return [
        {
            "step": s,
            "loss": 0.25 + 0.5 * math.exp(-s / 8) + 0.02 * noise.random(),
            "lr": 1e-3 * (1 - s / steps),
            "tokens": 512 * s,
        }
        for s in range(1, steps + 1)
    ]


def _plan(folder: Path, depth: int, width: int, new_depth: int, new_width: int, seed: int) -> dict[str, Any]:
    draw = random.Random(seed)
    drop = tuple(sorted(draw.sample(range(2, depth - 1), depth - new_depth)))
    kept = [i for i in range(depth) if i not in drop]
    gone = width - new_width
    neurons = {i: tuple(sorted(draw.sample(range(width), gone))) for i in kept} if gone else {}
    folder.mkdir(parents=True, exist_ok=True)
    plan = PrunePlan(model_sha="0" * 16, depth=depth, width=width, drop_layers=drop, drop_neurons=neurons)
    (folder / "plan.json").write_text(plan.model_dump_json(), encoding="utf-8")
    return {"neurons": gone, "layers": list(drop)}


def _prune(
    run: Path,
    index: int,
    name: str,
    old: tuple[int, int],
    new: tuple[int, int],
    chances: tuple[float, ...],
    tasks: dict[str, int],
    share: int,
) -> dict[str, Any]:
    folder = run / name
    removed = _plan(folder, *old, *new, seed=index)
    tune = {
        "samples": 1000 * share, "tokens": 20480 * share, "seconds": 44.0 * share, "steps": 40, "log": _log(index), "truncated": 3 * share,
        "tokens_per_s": 465.0, "peak_bytes": 1 << 30, "mfu": None, "notes": [],
    }  # fmt: skip
    return _stage(
        folder, index, new[0], new[1], chances, tasks,
        step={"index": index, "attempt": 1, "neurons": old[1] - new[1], "layers": old[0] - new[0]},
        samples=[1000 * share * (index - 1), 1000 * share * index], tokens=20480 * share, removed=removed, pruned_loss=0.42 + 0.03 * index, held_out_loss=0.27 + 0.012 * index,
        seconds={"score": 4.0, "plan": 0.1, "apply": 0.6, "tune": 44.0 * share, "evaluate": 30.0 - 2 * index}, tune=[tune],
        verdict={"accepted": True, "why": "within 0.97 of the original"},
    )  # fmt: skip


def _summary(original: dict[str, Any], stages: list[dict[str, Any]], recipe: dict[str, Any]) -> dict[str, Any]:
    final = stages[-1]
    before, after = ({e["task"]: e for e in s["evals"]} for s in (original, final))
    sizes = original["cost"]["params"], final["cost"]["params"]
    return {
        "original": original, "stages": stages, "final": final, "params_ratio": sizes[1] / sizes[0],
        "flops_ratio": {t: final["cost"]["flops"][t] / original["cost"]["flops"][t] for t in before},
        "accuracy": {
            t: {
                "original": before[t]["value"], "final": after[t]["value"], "original_stderr": before[t]["stderr"],
                "final_stderr": after[t]["stderr"], "n": before[t]["n"],
            }
            for t in before
        },
        "speedup": {**{t: {"question": 1.31, "token": 1.27} for t in before}, "prefill": 1.42, "decode": 1.21},
        "latency": {n: {"prefill_ms": p, "prefill_iqr_ms": 0.1, "decode_ms_per_token": d, "decode_iqr_ms": 0.05, "prompt_tokens": 128, "new_tokens": 32} for n, p, d in (("original", 4.2, 1.6), ("final", 2.96, 1.32))},
        "recovery_tokens": sum(s["tokens"] for s in stages),
        "seconds": {k: sum(s["seconds"].get(k, 0) for s in [original, *stages]) for k in ("score", "plan", "apply", "tune", "evaluate")},
        "environment": {"prunetune": "0.1.0", "python": "3.11.7", "torch": "2.13.0", "transformers": "5.23.0", "device": "cpu", "threads": 2},
        "recipe": recipe,
        "leaks": {"demo": {"exact": 0, "normalised": 0, "digits": 3, "questions": 240, "examples": ["Ann has 1 apple & <2> pears."]}, "gsm_symbolic": {"exact": 0, "normalised": 0, "digits": 0, "questions": 120, "examples": []}},
        "truncated": sum(t["truncated"] for s in stages for t in s["tune"]),
    }  # fmt: skip


def fake_run(path: Path, *, tasks: dict[str, int] | None = None, control: bool = True, finished: bool = True) -> Path:
    """Write the run folder and return it. Unfinished: two rounds, no summary, no control."""
    tasks = TASKS if tasks is None else tasks
    recipe = {
        "model": "demo",
        "target": 0.6,
        "seed": 7,
        "tune": [{"type": "cpt", "tokens": 81920, "learning_rate": 0.001}],
        "tasks": list(tasks),
    }
    path.mkdir(parents=True, exist_ok=True)
    (path / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    original = _stage(path / "original", 0, DEPTH, WIDTH, (0.99, 0.7), tasks)
    stages, old = [], (DEPTH, WIDTH)
    for index, (name, width, depth, chances) in enumerate(ROUNDS if finished else ROUNDS[:2], 1):
        stages.append(_prune(path, index, name, old, (depth, width), chances, tasks, share=1))
        old = (depth, width)
    if finished:
        _write(path / "summary.json", _summary(original, stages, recipe))
        _write(path / "final" / "config.json", config(stages[-1]["depth"], stages[-1]["width"]))
    if control and finished:
        at = path / "control"
        first = _stage(at / "original", 0, DEPTH, WIDTH, (0.99, 0.7), tasks)
        once = [_prune(at, 1, "01-together-48", (DEPTH, WIDTH), old, (0.86, 0.47), tasks, share=4)]
        _write(at / "summary.json", _summary(first, once, recipe))
        _write(at / "final" / "config.json", config(once[0]["depth"], once[0]["width"]))
        summary = json.loads((path / "summary.json").read_text())
        summary["control"] = {
            "name": "pruned once",
            "params_ratio": summary["params_ratio"],
            "accuracy": {e["task"]: e["value"] for e in once[0]["evals"]},
            "recovery_tokens": once[0]["tokens"],
        }
        _write(path / "summary.json", summary)
    return path


def summed(run: RunRecord, *, bare: bool = False, **changes: Any) -> RunRecord:
    """The run with other values in its summary; `bare`: with those alone."""
    before = {} if bare else run.summary.to_json()
    return replace(run, summary=Summary.model_validate({**before, **changes}))


def add_perplexity(path: Path, start: float = 1234.0) -> Path:
    """As if the run (and its control) had also been measured on a text: the perplexity rises by 10 % a round."""
    files = [*path.glob("*/stage.json"), *path.glob("control/*/stage.json")]
    for file in [*files, path / "summary.json"]:
        value = json.loads(file.read_text())
        stages = [value] if file.name == "stage.json" else [value["original"], *value["stages"], value["final"]]
        for stage in stages:
            found = {
                "task": "perplexity", "version": "1", "metric": "perplexity", "value": start * 1.1 ** stage["index"], "stderr": 12.0,
                "n": 5000, "seed": 0, "prompt_tokens": 1024.0, "new_tokens": 0.0, "seconds": 3.0, "correct": 0,
            }  # fmt: skip
            stage["evals"] = [*stage["evals"], found]
        file.write_text(json.dumps(value, indent=1), encoding="utf-8")
    return path
