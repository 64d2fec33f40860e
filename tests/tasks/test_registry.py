"""Tasks: problems, how they are drawn, and what their verifiers say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from prunetune.data.stream import DemoData, GeneratedData, load_stream, overlap
from prunetune.errors import DataError, MissingPath, TaskError, UnknownName
from prunetune.tasks.registry import EXECUTING, Harness, TaskConfig, build_task, check_task, has_verifier
from prunetune.tasks.sandbox.program import why_not


@pytest.fixture
def gsm8k(tmp_path: Path) -> Path:
    rows = [{"question": f"What is {i} + 1?", "answer": f"<<{i}+1={i + 1}>>\n#### {i + 1}"} for i in range(20)]
    (tmp_path / "test.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    return tmp_path


def test_gsm8k_from_a_local_folder_or_file(gsm8k: Path) -> None:
    task = build_task(TaskConfig(name="gsm8k", path=str(gsm8k)))
    assert [p.id for p in task.problems[:2]] == ["gsm8k/0", "gsm8k/1"]
    assert len(task.problems) == 20
    assert task.problems == build_task(TaskConfig(name="gsm8k", path=str(gsm8k / "test.jsonl"))).problems
    assert task.verify(task.problems[3], "3 + 1 = 4\n#### 4").correct
    assert not task.verify(task.problems[3], "#### 5").correct


def test_n_draws_by_seed_and_keeps_ids(gsm8k: Path) -> None:
    def drawn(seed: int) -> list[str]:
        return [p.id for p in build_task(TaskConfig(name="gsm8k", path=str(gsm8k), n=5, seed=seed)).problems]

    assert drawn(0) == drawn(0) != drawn(1)
    assert len(drawn(0)) == 5
    with pytest.raises(TaskError, match="has 20 problems"):
        build_task(TaskConfig(name="gsm8k", path=str(gsm8k), n=21))


def test_settings_override_the_tasks_own(gsm8k: Path) -> None:
    plain = build_task(TaskConfig(name="gsm8k", path=str(gsm8k)))
    assert (plain.stop, plain.version, plain.metric) == (("Question:",), "2", "accuracy")
    changed = build_task(TaskConfig(name="gsm8k", path=str(gsm8k), stop=["\n\n"], max_new_tokens=7))
    assert (changed.stop, changed.max_new_tokens) == (("\n\n",), 7)


def test_own_rows_under_any_name(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text(json.dumps({"q": "2/4?", "a": "\\frac12"}))
    config = TaskConfig(
        name="mine", path=str(tmp_path / "mine.jsonl"), columns={"question": "q", "answer": "a"}, verifier="boxed"
    )
    task = build_task(config)
    assert task.name == "mine" and task.problems[0].id == "mine/0"
    assert task.verify(task.problems[0], "\\boxed{0.5}").correct
    with pytest.raises(TaskError, match="need `path` and `verifier`"):
        build_task(config.model_copy(update={"verifier": None}))
    with pytest.raises(DataError, match="no column of a well-known name"):
        build_task(config.model_copy(update={"columns": None}))


def test_math_by_the_boxed_verifier(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text(json.dumps({"problem": "p", "answer": "(1, 2)"}))
    task = build_task(TaskConfig(name="math", path=str(tmp_path)))
    assert task.verify(task.problems[0], "so $(1,2)$").correct
    assert not task.verify(task.problems[0], "so $(2,1)$").correct


@pytest.mark.parametrize(
    ("name", "source"),
    [("gsm_symbolic", GeneratedData(name="gsm_symbolic", size=2000, seed=7)), ("demo", DemoData(size=2000, seed=7))],
)
def test_evaluation_never_meets_training_even_with_the_same_seed(name: str, source: GeneratedData | DemoData) -> None:
    task = build_task(TaskConfig(name=name, n=200, seed=7))
    assert len(task.problems) == len({p.id for p in task.problems}) == 200
    found = overlap(load_stream([source], 0).take(0, 2000), [p.question for p in task.problems])
    assert found.exact == 0
    assert all(task.verify(p, f"because … #### {p.reference.rpartition(' ')[2]}").correct for p in task.problems)


def test_reasoning_gym_uses_its_own_scorer() -> None:
    task = build_task(TaskConfig(name="reasoning-gym:leg_counting", n=5, seed=1))
    problem = task.problems[0]
    good = task.verify(problem, f"I count.\n#### {problem.reference}")
    assert (good.correct, good.scores) == (True, {"score": 1.0})
    bad = task.verify(problem, "#### 1")
    assert not bad.correct and bad.extracted == "1" and bad.reason.startswith("score")


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_reasoning_gym_accepts_another_solution_than_its_own() -> None:
    task = build_task(TaskConfig(name="reasoning-gym:countdown", n=1, allow_code_execution=True))
    problem = task.problems[0]
    assert task.verify(problem, f"<answer>({problem.reference}) + 0 * 0</answer>").correct is False  # 0 is not given
    assert task.verify(problem, f"<answer>(({problem.reference}))</answer>").correct


def test_scorers_that_evaluate_the_answer_need_permission() -> None:
    for name in EXECUTING:
        with pytest.raises(TaskError, match="allow_code_execution"):
            build_task(TaskConfig(name=f"reasoning-gym:{name}", n=1))
    assert build_task(TaskConfig(name="reasoning-gym:countdown", n=1, allow_code_execution=True)).problems


def test_errors_name_the_choices() -> None:
    with pytest.raises(UnknownName, match="did you mean 'gsm8k'"):
        build_task(TaskConfig(name="gsm8"))
    with pytest.raises(UnknownName, match="reasoning-gym:NAME"):
        build_task(TaskConfig(name="reasoning-gym"))
    with pytest.raises(UnknownName, match="leg_counting"):
        build_task(TaskConfig(name="reasoning-gym:leg_countin"))
    with pytest.raises(MissingPath, match="no such data file"):
        build_task(TaskConfig(name="gsm8k", path="/nowhere"))
    with pytest.raises(DataError, match=r"hub (cannot be reached|data set cannot be loaded)"):
        build_task(TaskConfig(name="gsm8k"))
    with pytest.raises(ValidationError, match="nn"):
        TaskConfig.model_validate({"name": "gsm8k", "nn": 3})


def test_a_task_of_lm_eval(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text('{"question": "1+1?", "answer": "#### 2"}\n')
    config = TaskConfig(name="lm-eval:gsm8k", path=str(tmp_path), n=50, options={"shots": 2})
    task = build_task(config)
    assert task.harness == Harness("gsm8k", str(tmp_path), limit=50, shots=2)
    assert task.version.startswith("lm-eval 0.")
    assert task.first(20).harness == Harness("gsm8k", str(tmp_path), limit=20, shots=2)
    assert task.first(90).harness == task.first(None).harness == task.harness
    assert build_task(config.model_copy(update={"seed": 7})).harness.seed == 7
    for key, value in {"verifier": "number", "stop": ["x"], "max_new_tokens": 9, "options": {"shot": 2}}.items():
        with pytest.raises(TaskError, match="no effect"):
            build_task(config.model_copy(update={key: value}))
    for name in ("lm-eval", "lm-eval:", "reasoning-gym"):
        with pytest.raises(UnknownName, match="lm-eval:NAME"):
            check_task(TaskConfig(name=name, path=str(tmp_path)))
    with pytest.raises(TaskError, match="only if you allow it"):
        build_task(TaskConfig(name="lm-eval:mbpp"))


def test_only_tasks_with_verifiers_can_reward() -> None:
    names = ("gsm8k", "mine", "reasoning-gym:x", "perplexity", "perplexity:wiki", "lm-eval:gsm8k")
    assert [has_verifier(TaskConfig(name=n)) for n in names] == [True, True, True, False, False, False]
