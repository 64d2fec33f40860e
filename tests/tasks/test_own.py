"""A verifier of one's own: what can be known to fail is told when the task is built; and judges without problems."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prunetune.errors import DataError, MissingPath, TaskError, UnknownName
from prunetune.tasks.own import fingerprint
from prunetune.tasks.registry import TaskConfig, build_judge, build_task

CODE = """
def right(output, reference):
    return output.strip() == reference
def one(output): return True
def three(output, reference, more): return True
def raises(output, reference): raise KeyError("x")
def exits(output, reference): raise SystemExit(3)
def says_yes(output, reference): return "yes"
number = 5
"""


@pytest.fixture
def judge(tmp_path: Path) -> Path:
    (tmp_path / "judge.py").write_text(CODE)
    (tmp_path / "broken.py").write_text("import nothing_of_this_name")
    (tmp_path / "rows.jsonl").write_text('{"question": "a?", "answer": "b"}\n')
    return tmp_path


def config(folder: Path, verifier: str, **more: object) -> TaskConfig:
    value = {"name": "mine", "path": str(folder / "rows.jsonl"), "allow_custom_code": True, **more}
    return TaskConfig.model_validate({**value, "verifier": f"{folder}/{verifier}"})


def test_two_lines_are_a_verifier(judge: Path) -> None:
    task = build_task(config(judge, "judge.py:right"))
    assert task.verify(task.problems[0], " b").correct and not task.verify(task.problems[0], "c").correct


@pytest.mark.parametrize(
    ("verifier", "error", "told"),
    [
        ("none.py:right", MissingPath, "no such file of code"),
        ("judge.py:wrong", TaskError, "no function 'wrong'"),
        ("judge.py:number", TaskError, "no function 'number'"),
        ("judge.py", TaskError, "not named"),
        ("broken.py:right", TaskError, "nothing_of_this_name"),
        ("judge.py:one", TaskError, "too many positional arguments"),
        ("judge.py:three", TaskError, "missing a required argument"),
        ("judge.py:raises", TaskError, "raised KeyError"),
        ("judge.py:exits", TaskError, "raised SystemExit: 3"),
        ("judge.py:says_yes", TaskError, "True or False"),
    ],
)
def test_a_verifier_that_cannot_be_used_is_told_before_any_work(
    judge: Path, verifier: str, error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        build_task(config(judge, verifier))


def test_figures_of_two_verifiers_do_not_mix(judge: Path) -> None:
    before = build_task(config(judge, "judge.py:right")).version
    (judge / "judge.py").write_text(CODE + "\n# changed\n")
    assert before != build_task(config(judge, "judge.py:right")).version
    assert fingerprint("number") == "number"


def test_a_judge_needs_no_problems(judge: Path) -> None:
    """Offline: the hub's rows are not asked for."""
    for name, output in (("gsm8k", "#### 1/2"), ("math", r"\boxed{\frac12}"), ("demo", "0.5"), ("gsm_symbolic", ".5")):
        task = build_judge(TaskConfig(name=name))
        problem = build_task(TaskConfig(name="demo", n=1)).problems[0]
        problem = type(problem)("x", "?", "0.5")
        assert task.problems == () and task.verify(problem, output).correct
    own = build_judge(TaskConfig(name="rows", verifier=f"{judge}/judge.py:right", allow_custom_code=True))
    assert own.verify(problem, "0.5").correct
    other = build_judge(TaskConfig(name="gsm8k", verifier="exact"))
    assert not other.verify(problem, "1/2").correct and other.max_new_tokens == 400
    with pytest.raises(TaskError, match="need `path` and `verifier`"):
        build_judge(TaskConfig(name="rows"))
    with pytest.raises(UnknownName):
        build_judge(TaskConfig(name="gsm8"))
    with pytest.raises(TaskError, match="verifier of its own"):
        build_task(TaskConfig(name="squad", path=str(judge), verifier="exact"))


def rows(folder: Path, *values: object, key: str = "answer") -> Path:
    path = folder / "some.jsonl"
    good = {"question": "1 + 1?", "answer": "2"}
    path.write_text("".join(json.dumps({**good, key: v}) + "\n" for v in ["2", *values]))
    return path


@pytest.mark.parametrize("verifier", ["number", "exact", "boxed"])
@pytest.mark.parametrize(
    ("value", "told"),
    [
        (None, "row 2: answer is null"),
        ("", "row 2: answer is empty"),
        (" \n", "row 2: answer is empty"),
        (["a", "b"], "row 2: answer is a list, not text"),
        ({"a": 1}, "row 2: answer is an object, not text"),
        (True, "row 2: answer is true or false, not text"),
    ],
)
def test_a_reference_that_is_no_text_is_told_with_its_row(
    tmp_path: Path, verifier: str, value: object, told: str
) -> None:
    for key in ("answer", "question"):
        path = rows(tmp_path, value, key=key)
        with pytest.raises(DataError) as e:
            build_task(TaskConfig(name="mine", path=str(path), verifier=verifier))
        assert told.replace("answer", key) in str(e.value) and str(path) in str(e.value)


def test_a_reference_that_is_no_number_is_told_with_its_row_and_the_fix(tmp_path: Path) -> None:
    path = rows(tmp_path, "3", "3:30")
    with pytest.raises(TaskError, match=r"row 3: this reference is no single number[^$]*verifier: boxed"):
        build_task(TaskConfig(name="mine", path=str(path), verifier="number", n=1))
    with pytest.raises(TaskError, match="its result in a last line: #### 9"):
        build_task(TaskConfig(name="mine", path=str(path), verifier="number", n=1))
    with pytest.raises(TaskError, match="row 3: this reference is no single number"):
        build_task(TaskConfig(name="gsm8k", path=str(path)))
    with pytest.raises(TaskError, match=r"row 2: this reference holds no answer"):
        build_task(TaskConfig(name="mine", path=str(rows(tmp_path, "so\n#### ")), verifier="exact"))


def test_numbers_are_references(tmp_path: Path) -> None:
    task = build_task(TaskConfig(name="mine", path=str(rows(tmp_path, 2, 0.5, 1e21)), verifier="number"))
    assert [p.reference for p in task.problems] == ["2", "2", "0.5", "1e+21"]


def test_one_column_of_the_two_may_be_named(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text('{"q": "1?", "answer": "2"}\n')
    named = TaskConfig(name="mine", path=str(tmp_path), verifier="number", columns={"question": "q"})
    assert build_task(named).problems[0].question == "1?"
    with pytest.raises(DataError, match="`columns` must name"):
        build_task(named.model_copy(update={"columns": {"prompt": "q"}}))


def test_rows_of_every_form_are_problems(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("problem,solution\n1 + 1?,2\n")
    turns = [
        {"role": "system", "content": "Short."},
        {"role": "user", "content": "1?"},
        {"role": "assistant", "content": "1"},
    ]
    (tmp_path / "b.jsonl").write_text(json.dumps({"messages": turns}))
    made = [
        build_task(TaskConfig(name="mine", path=str(tmp_path / n), verifier="number")) for n in ("a.csv", "b.jsonl")
    ]
    assert [(t.problems[0].question, t.problems[0].reference) for t in made] == [("1 + 1?", "2"), ("Short.\n\n1?", "1")]
    (tmp_path / "b.jsonl").write_text(json.dumps({"messages": turns + turns[1:]}))
    with pytest.raises(DataError, match="row 1: this row is a conversation of several turns"):
        build_task(TaskConfig(name="mine", path=str(tmp_path / "b.jsonl"), verifier="number"))


def test_a_list_of_one_reference_is_that_reference(tmp_path: Path) -> None:
    task = build_task(TaskConfig(name="mine", path=str(rows(tmp_path, ["917"])), verifier="exact"))
    assert task.verify(task.problems[1], "917").correct


def test_who_judges_is_said_and_what_of_a_reference_counts(tmp_path: Path) -> None:
    judge = tmp_path / "judge.py"
    judge.write_text("def right(output, reference): return True\n")
    path = rows(tmp_path, "1+5=6\n6+1=7")
    own = TaskConfig(name="mine", path=str(path), verifier=f"{judge}:right", allow_custom_code=True, n=1)
    assert build_task(own).note == f"mine: 1 of 2 rows are asked, judged by {judge}:right"
    plain = build_task(own.model_copy(update={"verifier": "number", "n": None})).note
    assert plain == (
        "mine: 2 of 2 rows are asked, judged by number; a row's answer without #### counts by the number behind its "
        "last = (7 of '6+1=7')"
    )
    assert build_task(TaskConfig(name="demo", n=2)).note == ""
