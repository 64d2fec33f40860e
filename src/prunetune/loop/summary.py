"""RUN/summary.json: original against final, from the records alone. Pure, but for reading the samples' lengths."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prunetune.common.files import read_json
from prunetune.common.units import is_share
from prunetune.data.stream import Example, overlap
from prunetune.models.cost import Cost
from prunetune.recipe.schema import Recipe
from prunetune.report.pairs import read_samples
from prunetune.runs.folder import Record, RunFolder
from prunetune.tasks.registry import Task

Summary = dict[str, Any]
ACTIONS = ("score", "plan", "compensate", "apply", "tune", "evaluate")


def per_question(cost: Cost, samples: Path) -> float | None:
    """Mean FLOPs a question, from each question's own prompt and generated lengths (Table 1's average)."""
    if not samples.is_file():
        return None
    totals = []
    for line in samples.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        totals.append(cost.flops(row["prompt_tokens"], max(1, row["new_tokens"])).total)
    return sum(totals) / len(totals) if totals else None


def leaks(used: Iterable[Example], tasks: Sequence[Task], measured: Path | None = None) -> dict[str, Any]:
    """Evaluation questions that also occur in the recovery data, by task.

    Args:
        used: What was trained on.
        tasks: What is measured. A perplexity asks nothing, so it has no entry.
        measured: Folder of a stage that was measured: the questions of lm-eval's tasks are read from its samples.
    """
    examples, found = list(used), {}
    for task in tasks:
        questions = [p.question for p in task.problems]
        if task.harness is not None and measured is not None:
            questions = [s.question for s in read_samples(measured, task.name).values()]
        if questions:
            found[task.name] = asdict(overlap(examples, questions))
    return found


def summarise(
    run: RunFolder, recipe: Recipe, final: Record, latency: dict[str, Any] | None, found_leaks: dict[str, Any]
) -> Summary:
    """Everything that summary.json holds (the contract is in the README)."""
    original, stages = run.original, run.stages
    everyone = [original, *stages]
    seconds = {a: round(sum(s["seconds"].get(a, 0.0) for s in everyone), 3) for a in ACTIONS}
    seconds["plan"] += seconds.pop("compensate")  # the contract knows five actions; stage.json has it apart
    return {
        "original": original,
        "stages": stages,
        "final": final,
        "params_ratio": final["cost"]["params"] / original["cost"]["params"],
        "flops_ratio": _flops_ratio(original, final),
        "accuracy": accuracy(original, final),
        "speedup": _speedup(original, final, latency),
        "latency": latency,
        "recovery_tokens": sum(s["tokens"] for s in stages),
        "seconds": seconds,
        "control": _control(run, original),
        "promise": promise(recipe, stages, final),
        "leaks": found_leaks,
        "truncated": sum(t["truncated"] for s in stages for t in s["tune"]),
        "environment": environment(),
        "recipe": recipe.model_dump(mode="json"),
    }


def promise(recipe: Recipe, stages: Sequence[Record], final: Record) -> dict[str, Any] | None:
    """What `stop_at` asked for, whether the final model keeps it, and on what evidence; None if nothing was asked."""
    if recipe.stop_at is None:
        return None
    if final["index"] == 0:
        last = f" ({stages[-1]['verdict']['why']})" if stages else ""
        return {"wanted": recipe.stop_at.accuracy, "kept": False, "why": f"no smaller model keeps it{last}"}
    return {"wanted": recipe.stop_at.accuracy, "kept": True, "why": final["verdict"]["why"]}


def accuracy(original: Record, final: Record) -> dict[str, Any]:
    """{task: original, final, their standard errors, n}; n is the smaller where they differ."""
    after = {e["task"]: e for e in final["evals"]}
    return {
        e["task"]: {
            "original": e["value"],
            "final": after[e["task"]]["value"],
            "original_stderr": e["stderr"],
            "final_stderr": after[e["task"]]["stderr"],
            "n": min(e["n"], after[e["task"]]["n"]),
        }
        for e in original["evals"]
        if e["task"] in after
    }


def _flops_ratio(original: Record, final: Record) -> dict[str, float]:
    old, new = original["cost"]["flops"], final["cost"]["flops"]
    return {t: new[t] / old[t] for t in old if old[t] and new.get(t)}


def _speedup(original: Record, final: Record, latency: dict[str, Any] | None) -> dict[str, Any]:
    """How much faster, from prefill and decode times measured in turns at batch 1, on each model's own lengths.

    `question` counts that a model may answer shorter or longer; `token` does not.
    """
    if latency is None:
        return {}
    old, new = latency["original"], latency["final"]
    out: dict[str, Any] = {
        "prefill": old["prefill_ms"] / new["prefill_ms"],
        "decode": old["decode_ms_per_token"] / new["decode_ms_per_token"],
    }
    if many := latency.get("batched"):
        out["throughput"] = many["final"]["tokens_per_s"] / many["original"]["tokens_per_s"]
    after = {e["task"]: e for e in final["evals"]}
    for e in original["evals"]:
        if e["task"] in after and is_share(e.get("metric", "accuracy")):
            a, b = _question_ms(old, e), _question_ms(new, after[e["task"]])
            lengths = max(1.0, e["new_tokens"]), max(1.0, after[e["task"]]["new_tokens"])
            out[e["task"]] = {"question": a / b, "token": (a / lengths[0]) / (b / lengths[1])}
    return out


def _question_ms(latency: dict[str, Any], result: Record) -> float:
    """Prefill (scaled to the question's own prompt) and then one step a further token, in milliseconds."""
    prefill = latency["prefill_ms"] * result["prompt_tokens"] / latency["prompt_tokens"]
    return float(prefill + latency["decode_ms_per_token"] * max(0.0, result["new_tokens"] - 1))


def _control(run: RunFolder, original: Record) -> dict[str, Any] | None:
    """The pruned-once control's figures, if it was asked for and is finished."""
    path = run.path / "control" / "summary.json"
    if not path.is_file():
        return None
    theirs = read_json(path)
    return {
        "name": "pruned once",
        "params_ratio": theirs["params_ratio"],
        "accuracy": accuracy(original, theirs["final"]),
        "recovery_tokens": theirs["recovery_tokens"],
        "seconds": theirs["seconds"],
    }


def environment() -> dict[str, Any]:
    """What the figures were measured on."""
    import torch

    packages = ("prunetune", "torch", "transformers", "trl", "accelerate", "datasets")
    versions = {}
    for p in packages:
        try:
            versions[p] = importlib.metadata.version(p)
        except importlib.metadata.PackageNotFoundError:
            versions[p] = "not installed"
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        **versions,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
