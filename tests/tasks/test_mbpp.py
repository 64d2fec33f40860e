"""MBPP: prompt, split, and execution of candidates in the sandbox."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from prunetune.errors import DataError, MissingPath, TaskError
from prunetune.models.prompt import PromptFormat
from prunetune.tasks import mbpp
from prunetune.tasks.registry import TaskConfig, build_task
from prunetune.tasks.sandbox.program import Limits, why_not

needs_sandbox = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

DATA = Path(os.environ.get("PRUNETUNE_DATA", "unset")) / "mbpp"


def row(task_id: int, name: str = "f", **more: object) -> dict[str, object]:
    return {
        "task_id": task_id,
        "text": f"Write a function {name}.",
        "code": f"def {name}(x):\r\n    return x + {{'a': 1}}['a']",
        "test_list": [f"assert {name}(1) == 2", f"assert {name}(2) == 3", f"assert {name}(-1) == 0"],
        "test_setup_code": "",
        **more,
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [row(i, f"f{i}") for i in (1, 2, 3, 4, 11, 12, 510, 511, 700)]
    (tmp_path / "mbpp.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    return tmp_path


def test_split_prompt_and_question(folder: Path) -> None:
    task = build_task(TaskConfig(name="mbpp", path=str(folder), allow_code_execution=True))
    assert [p.id for p in task.problems] == ["mbpp/11", "mbpp/12", "mbpp/510"]
    assert task.prompt is not None and task.stop == ("[DONE]",)
    text = task.prompt.question.replace("{question}", task.problems[0].question)
    parts = text.split("You are an expert Python programmer, and here is your task: ")
    assert len(parts) == 5  # three shots and the question
    assert [p.split()[3] for p in parts[1:]] == ["f2.", "f3.", "f4.", "f11."]
    assert parts[1].endswith("[BEGIN]\n" + str(row(2, "f2")["code"]) + "\n[DONE]\n\n")
    assert parts[4].endswith(
        "pass these tests:\n\nassert f11(1) == 2\nassert f11(2) == 3\nassert f11(-1) == 0\n[BEGIN]\n"
    )


def test_shots_and_own_prompt(folder: Path) -> None:
    config = TaskConfig(name="mbpp", path=str(folder), allow_code_execution=True, options={"shots": 0})
    none = build_task(config).prompt
    assert none is not None and none.question == mbpp.PROMPT
    with pytest.raises(TaskError, match="holds 4 of the worked examples"):
        build_task(config.model_copy(update={"options": {"shots": 5}}))
    own = PromptFormat(question="do {question}")
    assert build_task(config.model_copy(update={"prompt": own})).prompt == own


def test_nothing_runs_without_the_flag(folder: Path) -> None:
    with pytest.raises(TaskError, match="allow-code-execution"):
        build_task(TaskConfig(name="mbpp", path=str(folder)))
    with pytest.raises(TaskError, match="explicit permission"):
        mbpp.verify("x", mbpp.reference(row(11)), allowed=False)


@needs_sandbox
def test_candidates_are_run_and_judged(folder: Path) -> None:
    task = build_task(TaskConfig(name="mbpp", path=str(folder), allow_code_execution=True, n=1))
    problem = task.problems[0]
    name = problem.id.replace("mbpp/", "f")
    good = task.verify(problem, f"def {name}(x):\r\n    return x + 1\r\n")
    assert (good.correct, good.reason) == (True, "")
    assert task.verify(problem, f"Sure:\n```python\ndef {name}(x): return x + 1\n```\nDone").correct
    assert task.verify(problem, f"def {name}(x): return x").reason == "AssertionError"
    assert "NameError" in task.verify(problem, "def g(x): return x + 1").reason
    assert task.verify(problem, "import sys; sys.exit(0)").reason == "ended before its last line"


@needs_sandbox
def test_an_endless_candidate_is_a_failed_sample() -> None:
    verdict = mbpp.verify("while True: pass", mbpp.reference(row(11)), allowed=True, limits=Limits(wall_seconds=1))
    assert not verdict.correct and verdict.reason


@pytest.mark.parametrize(
    ("output", "code"),
    [
        ("def f(): pass\n[DONE]\nmore", "def f(): pass\n"),
        ("```python\na = 1\n```", "a = 1"),
        ("```\na = 1\n```\nand ```\nb\n```", "a = 1"),
        ("```py\na = 1", "a = 1"),
        ("", ""),
    ],
)
def test_code_extraction(output: str, code: str) -> None:
    assert mbpp.extract_code(output) == code


@needs_sandbox
def test_setup_code_and_imports_run_before_the_assertions() -> None:
    setup = row(11, test_setup_code="y = f(1)", test_list=["assert y == 2"])
    assert mbpp.verify("def f(x): return x + 1", mbpp.reference(setup), allowed=True).correct
    clean = {
        "task_id": 11,
        "prompt": "p",
        "code": "",
        "test_list": ["assert math.pi > x"],
        "test_imports": ["import math"],
    }
    assert mbpp.verify("x = 3", mbpp.reference(clean), allowed=True).correct


def test_errors_of_files(tmp_path: Path) -> None:
    with pytest.raises(MissingPath):
        build_task(TaskConfig(name="mbpp", path=str(tmp_path), allow_code_execution=True))
    (tmp_path / "mbpp.jsonl").write_text('{"task_id": 1}')
    with pytest.raises(DataError, match="no column 'text'"):
        build_task(TaskConfig(name="mbpp", path=str(tmp_path), allow_code_execution=True))


@needs_sandbox
@pytest.mark.skipif(not DATA.is_dir(), reason="PRUNETUNE_DATA names no folder with the public files")
@pytest.mark.parametrize(("file", "size"), [("mbpp.jsonl", 500), ("sanitized-mbpp.json", 257)])
def test_the_sources_own_solutions_pass(file: str, size: int) -> None:
    task = build_task(TaskConfig(name="mbpp", path=str(DATA / file), allow_code_execution=True, options={"shots": 3}))
    assert len(task.problems) == size
    rows = {f"mbpp/{r['task_id']}": r for r in _raw(DATA / file)}
    slowest = [p for p in task.problems if p.id == "mbpp/123"]  # five CPU seconds: it must not lie at the limit
    for problem in [*task.problems[:: size // 6], *slowest[: size // 500]]:
        assert task.verify(problem, str(rows[problem.id]["code"])).correct, problem.id


def _raw(path: Path) -> list[dict[str, object]]:
    text = path.read_text()
    return list(json.loads(text)) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]
