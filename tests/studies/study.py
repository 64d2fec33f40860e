"""A study of two cells on a tiny model, and one of invented records."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import yaml
from cells import Grid, sha_of
from tests.tiny import tiny_folder
from tests.tiny_run import rows

JUDGE = """
from zlib import crc32
def judge(output, reference):  # a tiny random model is never right: any function of what it says will do
    return crc32((output + reference).encode()) % 3 == 0
"""


def tiny_study(at: Path, **changes: Any) -> Grid:
    """Two methods, one size, one budget, one seed."""
    tiny_folder(at / "model")
    rows(at / "rows.jsonl")
    (at / "judge.py").write_text(JUDGE)
    task = {
        "name": "sums",
        "path": str(at / "rows.jsonl"),
        "verifier": f"{at}/judge.py:judge",
        "allow_custom_code": True,
    }
    base = {
        "model": str(at / "model"),
        "data": [{"type": "file", "path": str(at / "rows.jsonl")}],
        "seed": "$seed",
        "prune": {"target": "$size", "align": 4},
        "score": {"samples": 8, "held_out": 4, "max_length": 64},
        "recover": [{"type": "cpt", "tokens": "$tokens", "batch_size": 4, "learning_rate": 1e-3, "max_length": 64}],
        "evaluate": {
            "tasks": [{**task, "n": 20, "seed": "$seed", "max_new_tokens": 4}],
            "round_n": 3,
            "latency_repeats": 0,
        },
        "device": "cpu",
    }
    grid = {
        "base": base,
        "methods": {
            "default": {"compensate": "least-squares", "prune": {"step": 0.15}},
            "once": {"prune": {"step": 1.0}},
        },
        "sizes": [0.8],
        "tokens": [600],
        "seeds": [0],
        "claims": [{"of": "default", "over": "once", "bound": 0.0, "scope": "mean"}],
        **changes,
    }
    folder = at / "09-tiny"
    folder.mkdir()
    (folder / "grid.yaml").write_text(yaml.safe_dump(grid, sort_keys=False))
    return Grid.read(folder)


def invented_study(
    folder: Path, rate: dict[str, float], questions: int = 60, leave_out: str = "", **changes: Any
) -> Grid:
    """Records of methods that are right at a given rate, on questions that half overlap between the seeds."""
    folder.mkdir()
    base = {
        "evaluate": {"tasks": [{"name": "sums"}]},
        "recover": [{"tokens": "$tokens"}],
        "prune": {"target": "$size"},
        "seed": "$seed",
    }
    grid: dict[str, Any] = {
        "base": base,
        "methods": {m: {} for m in rate},
        "sizes": [0.6, 0.4],
        "tokens": [100, 400],
        "seeds": [0, 1, 2],
    }
    (folder / "grid.yaml").write_text(yaml.safe_dump({**grid, **changes}, sort_keys=False))
    found = Grid.read(folder)
    for cell in found.cells():
        if cell.name == leave_out:
            continue
        draw = random.Random(cell.name)
        ids = [f"q{30 * cell.seed + i}" for i in range(questions)]
        found.records.put(f"questions/{sha_of(ids)}", ids)

        def measured(
            p: float, loss: float, ids: list[str] = ids, draw: random.Random = draw, params: int = 1000
        ) -> dict[str, Any]:
            right = "".join(str(int(draw.random() < p)) for _ in ids)
            verdicts = {"sums": {"questions": sha_of(ids), "right": right}}
            evals = [{"task": "sums", "n": len(ids), "value": right.count("1") / len(ids)}]
            return {"verdicts": verdicts, "evals": evals, "held_out_loss": loss, "params": params}

        record = {
            "cell": cell.name, "method": cell.method, "size": cell.size, "tokens": cell.tokens, "seed": cell.seed,
            "recipe_sha": cell.sha, "commit": "abc", "recovery_tokens": cell.tokens, "seconds": {"tune": 2.0}, "wall_seconds": 3.0,
            "pruned_loss": 0.2 + 2 * (1 - rate[cell.method]), "held_out_loss": 0.3,
            "original": measured(0.9, 0.2), "final": measured(rate[cell.method], 0.3),
            "rounds": [measured(0.9, 0.2, params=800) | {"verdict": {"accepted": True}}], "decisions": {},
            "params_ratio": cell.size - 0.004,
        }  # fmt: skip
        found.records.put(cell.name, record)
    return found
