"""Programs to write: references pass their own assertions, others fail them, splits are apart, the sandbox judges."""

from __future__ import annotations

import json
import re
from pathlib import Path

import programs as study
import pytest
from programs import STEPS, checks, neighbours, programs, values

from prunetune.tasks.registry import TaskConfig, build_task
from prunetune.tasks.sandbox import program as sandbox

JUDGE = Path(__file__).parents[2] / "studies" / "09-code" / "judge.py"
needs_sandbox = pytest.mark.skipif(sandbox.why_not() is not None, reason="no namespaces on this machine")


def interpret(question: str, arguments: tuple[int, ...]) -> int:
    """What the words mean, read independently of the code that is generated with them."""
    head, said = question.split(": ")
    names, backwards = re.fullmatch(r"f\((.*)\)( backwards)?", head).groups()  # type: ignore[union-attr]
    known = dict(zip(names.split(","), arguments, strict=True))
    first, *steps = said.split(", ")[:: -1 if backwards else 1]

    def value(word: str) -> int:
        return known[word] if word in known else int(word)

    def change(x: int, words: list[str]) -> int:
        if words[0] in ("double", "negate", "halve", "square"):
            return {"double": x + x, "negate": -x, "halve": x // 2, "square": x**2}[words[0]]
        y, word = value(words[-1]), " ".join(words[:-1])
        return {
            "add": x + y, "less": x - y, "times": x * y, "from": y - x,
            "at most": y if x > y else x, "at least": y if x < y else x, "off": x - y if x > y else y - x,
        }[word]  # fmt: skip

    x = value(first)
    for step in steps:
        words = step.split()
        if words[0] == "repeat":
            for _ in range(int(words[1])):
                x = change(x, words[2:])
        elif words[0] != "if":
            x = change(x, words)
        elif words[1] in ("odd", "even"):
            x = change(x, words[2:]) if (x % 2 == 1) == (words[1] == "odd") else x
        else:
            y = value(words[2])
            x = change(x, words[3:]) if (x > y if words[1] == "over" else x < y) else x
    return x


def passes(solution: str, asserted: list[str]) -> bool:
    try:
        exec("\n".join([solution, *asserted]), {})
    except AssertionError:
        return False
    return True


def test_every_reference_does_what_its_words_say_and_passes_its_own_assertions():
    lengths, orders = set(), set()
    for question, solution in programs(1000, 0, "train"):
        arguments = solution.split(")")[0].count(",") + 1
        points = [(17, 4, -3)[:arguments], (-6, 30, 9)[:arguments], (40, 55, 71)[:arguments]]
        assert values(solution, points) == [interpret(question, p) for p in points], question
        assert passes(solution, checks(question, solution)), question
        lengths.add(solution.count("\n") - 2)
        orders.add(" backwards: " in question)
    assert lengths == set(range(STEPS[0], STEPS[1] + 1)) and orders == {True, False}


def test_a_wrong_program_fails():
    """A neighbour that passes is one that none of the 40 points tells apart."""
    killed = left = 0
    for question, solution in programs(200, 0, "test"):
        asserted = checks(question, solution)
        assert len(asserted) >= study.FIRST
        for other in neighbours(solution):
            killed += not passes(other, asserted)
            left += passes(other, asserted)
    assert killed > 0.85 * (killed + left), (killed, left)
    question, solution = programs(1, 5, "test")[0]
    assert not passes("def f(*a):\n return 0", checks(question, solution))


def test_splits_are_disjoint_and_seeded():
    train, test = ({q for q, _ in programs(2000, 0, split)} for split in ("train", "test"))
    assert len(train) == len(test) == 2000
    assert not train & test
    assert not train & {q for q, _ in programs(2000, 1, "test")}, "another seed's test is apart too"
    assert programs(20, 3, "test") == programs(40, 3, "test")[:20]
    assert programs(20, 3, "test") != programs(20, 4, "test")


@needs_sandbox
def test_the_sandbox_is_the_judge(tmp_path):
    study.write(tmp_path, 3, 4, 1)
    train, test = (
        [json.loads(line) for line in (tmp_path / f"{split}.jsonl").read_text().splitlines()]
        for split in ("train", "test")
    )
    assert [set(row) for row in train] == [{"question", "answer"}] * 3
    task = build_task(
        TaskConfig(
            name="programs", path=str(tmp_path / "test.jsonl"), verifier=f"{JUDGE}:judge", allow_custom_code=True
        )
    )
    assert [p.question for p in task.problems] == [row["question"] for row in test]
    for problem, row in zip(task.problems, test, strict=True):
        assert "assert" not in problem.question
        verdict = task.verify(problem, " " + row["solution"])  # an answer begins with the prompt format's space
        assert (verdict.correct, verdict.extracted) == (True, row["solution"])
    problem, solution = task.problems[0], test[0]["solution"]
    lines = solution.split("\n")
    for wrong in (
        "",
        "x=1",
        solution[:-1],
        "\n".join(lines[:-1]),
        solution.replace("return x", "return x+1"),
        "raise SystemExit(0)",
    ):
        assert not task.verify(problem, wrong).correct, wrong
