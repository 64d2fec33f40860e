"""Verifiers: what they extract, what they accept, what they refuse."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from prunetune.errors import MissingPath, TaskError, UnknownName
from prunetune.tasks.own import find_verifier
from prunetune.tasks.verifiers import (
    Verdict,
    extract_answer,
    extract_number,
    verify_boxed,
    verify_exact,
    verify_number,
)


@pytest.mark.parametrize(
    ("output", "number"),
    [
        ("She has 3 + 4 = 7 left.\n#### 7", "7"),
        ("#### 7\nQuestion: what is 9?\n#### 18", "7"),
        ("so 12, then 13.", "13."),
        ("#### $1,250.50", "$1,250.50"),
        ("the answer is ...", None),
        ("5 and then ...", "5"),
        ("", None),
        ("minus -4", "-4"),
    ],
)
def test_number_extraction(output: str, number: str | None) -> None:
    assert extract_number(output) == number


@pytest.mark.parametrize(
    ("output", "reference", "correct"),
    [
        ("#### 1250", "steps\n#### 1,250", True),
        ("#### 1,250.00", "1250", True),
        ("$1250.", "1250", True),
        ("#### -3", "3", False),
        ("#### 12", "#### 12.5", False),
        ("no idea", "4", False),
        ("1.2.3", "1.2", False),
    ],
)
def test_numbers_compare_by_value(output: str, reference: str, correct: bool) -> None:
    verdict = verify_number(output, reference)
    assert verdict.correct is correct
    assert bool(verdict.reason) is not correct


def test_a_reference_without_a_number_is_an_error() -> None:
    with pytest.raises(TaskError, match="holds no number"):
        verify_number("4", "four")


def test_boxed_answers_by_value() -> None:
    assert verify_boxed(r"thus \boxed{\frac{2}{4}}", r"\frac12").correct
    assert verify_boxed(r"thus \boxed{0.5}", r"long solution \boxed{\frac12}").correct
    wrong = verify_boxed(r"thus \boxed{2}", r"\frac12")
    assert (wrong.correct, wrong.extracted) == (False, "2")
    assert verify_boxed("no answer here", "7") == Verdict(False, None, "no answer in the output")


def test_an_endless_computation_is_a_verdict_and_the_next_answer_is_graded() -> None:
    verdict = verify_boxed("$9^{9^{9^9}}$", "3")
    assert (verdict.correct, verdict.reason) == (False, "not graded: timed out")
    assert verify_boxed("$3$", "3").correct


def test_boxed_works_outside_the_main_thread() -> None:
    found: list[bool] = []
    threads = [threading.Thread(target=lambda: found.append(verify_boxed("$3$", "3").correct)) for _ in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert found == [True] * 3


def test_free_answers() -> None:
    assert extract_answer("x <answer> a\nb </answer> y") == "a\nb"
    assert extract_answer(r"\boxed{1} then \boxed{\frac{1}{2}} end") == r"\frac{1}{2}"
    assert extract_answer("steps\n#### Blue ") == "Blue"
    assert extract_answer(" all of it ") == "all of it"
    assert extract_answer(r"\boxed{never closed") == r"\boxed{never closed"
    assert verify_exact("#### light  BLUE", "Light blue").correct
    assert not verify_exact("#### green", "Light blue").correct


def test_a_users_own_verifier_runs_only_if_allowed(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from prunetune.tasks.verifiers import Verdict\n"
        "def ends(output, reference): return output.endswith(reference)\n"
        "def full(output, reference): return Verdict(True, 'x', '')\n"
        "def odd(output, reference): return 1\n"
    )
    with pytest.raises(TaskError, match="only if you allow it"):
        find_verifier(f"{file}:ends", allow_custom_code=False)
    ends = find_verifier(f"{file}:ends", allow_custom_code=True)
    assert ends("abc", "c").correct and not ends("abc", "b").correct
    assert find_verifier(f"{file}:full", allow_custom_code=True)("", "").extracted == "x"
    with pytest.raises(TaskError, match="True or False"):
        find_verifier(f"{file}:odd", allow_custom_code=True)("", "")
    with pytest.raises(TaskError, match="no function 'none'"):
        find_verifier(f"{file}:none", allow_custom_code=True)
    with pytest.raises(MissingPath):
        find_verifier(f"{tmp_path}/other.py:ends", allow_custom_code=True)
    with pytest.raises(UnknownName, match="did you mean 'number'"):
        find_verifier("numbr", allow_custom_code=True)
