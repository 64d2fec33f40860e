"""A recipe that a tiny model goes through in seconds, on rows that the test writes itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.tiny import tiny_folder

from prunetune.common.progress import Watch
from prunetune.recipe.schema import Recipe


def rows(path: Path, n: int = 200) -> Path:
    """Sums as question and worked answer."""
    lines = [{"question": f"{i}+{i % 7}", "answer": f"{i}+{i % 7}={i + i % 7} #### {i + i % 7}"} for i in range(n)]
    path.write_text("".join(json.dumps(r) + "\n" for r in lines))
    return path


def tiny_recipe(at: Path, family: str = "llama", **changes: Any) -> Recipe:
    """Two rounds on neurons and one on a layer, eight training rows each; three questions a round."""
    if not (at / "model").is_dir():
        tiny_folder(at / "model", family)
        rows(at / "rows.jsonl")
    task = {"name": "sums", "path": str(at / "rows.jsonl"), "verifier": "number", "n": 4, "max_new_tokens": 4}
    value = {
        "extends": "paper",
        "model": str(at / "model"),
        "data": [{"type": "file", "path": str(at / "rows.jsonl")}],
        "prune": {"target": 0.75, "step": 0.1, "align": 4, "layers": 1},
        "score": {"samples": 8, "held_out": 4, "max_length": 64},
        "recover": [{"type": "cpt", "samples": 48, "batch_size": 8, "learning_rate": 1e-3, "max_length": 64}],
        "evaluate": {"tasks": [task], "round_n": 3, "latency_repeats": 1},
        **changes,
    }
    return Recipe.parse(value)


class Lines(Watch):
    """Keeps what would be printed, by listeners too."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)

    def telling(self, listener: Any) -> Watch:
        return self
