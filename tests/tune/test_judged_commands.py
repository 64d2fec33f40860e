"""`tune` by hand: who judges and who teaches is known before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.tiny import tiny_folder
from tests.tiny_run import rows

from prunetune.cli.commands import judge_of, method_of, tune_model
from prunetune.cli.options import judged_by, parse_task
from prunetune.common.progress import Watch
from prunetune.errors import MissingPath, RecipeError, TaskError, UnknownName


def tune(tmp_path: Path, name: str, **more: Any) -> None:
    data = [{"type": "file", "path": str(rows(tmp_path / "rows.jsonl", 20))}]
    given = {"task": None, "teacher": None, "launcher": None, "seed": 0, "device": "cpu", "watch": Watch(quiet=True)}
    tune_model(method_of(name, None, samples=8), str(tmp_path / "m"), tmp_path / "out", data, **{**given, **more})


def test_distillation_needs_another_model_as_teacher(tmp_path: Path) -> None:
    tiny_folder(tmp_path / "m")
    with pytest.raises(RecipeError, match=r"needs a teacher[^$]*--teacher MODEL"):
        tune(tmp_path, "distill")
    with pytest.raises(RecipeError, match="the model itself"):
        tune(tmp_path, "distill", teacher=str(tmp_path / "m"))
    with pytest.raises(RecipeError, match="only distill and local have a teacher"):
        tune(tmp_path, "cpt", teacher=str(tmp_path / "m"))
    with pytest.raises(RecipeError, match=r"local needs a teacher[^$]*--original MODEL"):
        tune(tmp_path, "local")
    with pytest.raises(RecipeError, match="only local needs the plan"):
        tune(tmp_path, "cpt", plan=tmp_path / "plan.json")
    assert not (tmp_path / "out").exists()


def test_a_task_and_a_verifier_mean_the_same_in_every_command(tmp_path: Path) -> None:
    judge = tmp_path / "judge.py"
    judge.write_text("def right(output, reference): return output == reference\n")
    assert judge_of("gsm8k", None, ["x.jsonl"]).name == "gsm8k"  # offline: its problems are not asked for
    assert judge_of(f"gsm8k={tmp_path}", None, ["x.jsonl"]).path == str(tmp_path)
    own = judge_of(None, f"{judge}:right", ["x.jsonl"])
    assert (own.name, own.path, own.allow_custom_code) == ("rows", None, True)
    assert judge_of(None, None, ["demo"]).name == "demo"
    with pytest.raises(RecipeError, match="nobody judges"):
        judge_of(None, None, ["x.jsonl"])
    with pytest.raises(RecipeError, match="cannot judge answers to other questions"):
        judge_of("squad", None, ["x.jsonl"])
    with pytest.raises(UnknownName, match="gsm8k"):
        judge_of("gsm9k", None, ["x.jsonl"])
    with pytest.raises(MissingPath, match="no such file of code"):
        judge_of(None, "none.py:right", ["x.jsonl"])
    with pytest.raises(TaskError, match="no function 'wrong'"):
        judge_of(None, f"{judge}:wrong", ["x.jsonl"])


def test_a_verifier_goes_to_rows_of_ones_own_first() -> None:
    tasks = [parse_task(t) for t in ("gsm8k", "mine=rows.jsonl", "squad=dev.json")]
    assert tasks[1] == {"name": "mine", "path": "rows.jsonl"}
    assert [t.get("verifier") for t in judged_by(tasks, "exact")] == [None, "exact", None]
    assert [t.get("verifier") for t in judged_by(tasks[::2], "exact")] == ["exact", None]
    with pytest.raises(RecipeError, match="none of these tasks"):
        judged_by(tasks[2:], "exact")
    for text in ("", "=x", "mine="):
        with pytest.raises(RecipeError, match="NAME=PATH"):
            parse_task(text)
