"""`score.samples: auto`: counted from model and data, told, kept for the whole run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.tiny_run import rows, tiny_recipe

from prunetune.common.progress import Watch
from prunetune.errors import RecipeError
from prunetune.loop.loop import prune_tune_loop
from prunetune.recipe.schema import Recipe


class Said(Watch):
    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)


def recipe(at: Path, target: float = 0.9, **score: Any) -> Recipe:
    return tiny_recipe(
        at,
        prune={"target": target, "rounds": 1, "align": 4, "layers": 0},
        score={"samples": "auto", "held_out": 4, "max_length": 64, **score},
        compensate="least-squares",
        evaluate={"tasks": [], "latency_repeats": 0},
    )


def test_a_fourth_of_little_data_and_no_other_number_later(tmp_path: Path) -> None:
    watch, given = Said(), recipe(tmp_path)
    summary = prune_tune_loop(given, tmp_path / "out", watch)
    assert json.loads((tmp_path / "out" / ".samples.json").read_text()) == 49  # (200 rows - 4 held out) / 4
    assert summary.stages[0].samples == (53, 101)
    (told,) = (line for line in watch.lines if line.startswith("calibration: "))
    assert "49 sequences" in told and "all that the data spare" in told and "in host memory" in told
    assert Recipe.read(tmp_path / "out" / "recipe.yaml") == given and summary.recipe["score"]["samples"] == "auto"
    deeper = prune_tune_loop(recipe(tmp_path, target=0.85), tmp_path / "out", Watch(quiet=True))
    assert len(deeper.stages) == 2 and (deeper.stages[1].samples or (0, 0))[0] == 101


def test_the_number_that_a_run_began_with_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a later start would count: rows that were held out or trained on are not scored."""
    prune_tune_loop(recipe(tmp_path), tmp_path / "out", Watch(quiet=True))
    monkeypatch.setattr("prunetune.models.calibration.ENOUGH", 1)  # as a smaller width would have it
    deeper = prune_tune_loop(recipe(tmp_path, target=0.85), tmp_path / "out", Watch(quiet=True))
    other = prune_tune_loop(recipe(tmp_path, target=0.85), tmp_path / "other", Watch(quiet=True))
    assert (deeper.stages[1].samples or (0, 0))[0] == 101
    assert (other.stages[0].samples or (0, 0))[0] < 53


def test_data_of_its_own_are_scored_whole(tmp_path: Path) -> None:
    own = {"type": "file", "path": str(rows(tmp_path / "own.jsonl", 30))}
    summary = prune_tune_loop(recipe(tmp_path, data=[own]), tmp_path / "out", Watch(quiet=True))
    assert json.loads((tmp_path / "out" / ".samples.json").read_text()) == 30
    assert summary.stages[0].samples == (4, 52)


def test_memory_is_bytes(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="must be bytes, such as 8GB"):
        recipe(tmp_path, memory="8")
    with pytest.raises(RecipeError, match="auto"):
        recipe(tmp_path, samples="some")
