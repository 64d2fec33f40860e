"""A reward that cannot read the data's answers is told before anything runs, not at the round that needs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.tiny_run import rows, tiny_recipe

from prunetune.common.progress import Watch
from prunetune.errors import TaskError
from prunetune.loop.loop import prune_tune_loop


def test_an_answer_that_is_no_number_stops_a_run_with_grpo_before_any_work(tmp_path: Path) -> None:
    bad = rows(tmp_path / "bad.jsonl", 60)
    bad.write_text(bad.read_text() + json.dumps({"question": "when?", "answer": "3:30"}) + "\n")
    recover = [{"type": "cpt", "samples": 16}, {"type": "grpo", "samples": 8, "group": 2}]
    recipe = tiny_recipe(tmp_path, recover=recover, data=[{"type": "file", "path": str(bad)}])
    with pytest.raises(TaskError, match=r"bad.jsonl, row 61: this reference is no single number"):
        prune_tune_loop(recipe, tmp_path / "out", Watch(quiet=True))
    assert not list((tmp_path / "out").glob("original/stage.json"))
