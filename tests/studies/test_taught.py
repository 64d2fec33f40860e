"""What the study models are taught: every line of a solution is right, values are within bounds, the sides share no question."""

from __future__ import annotations

import operator
import re

import pytest
from traces import LARGEST, LINES, traces
from word_problems import MOST, problems

from prunetune.data.generators import side_of

LINE = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")
COUNT = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
}


@pytest.mark.parametrize("side", ["train", "test"])
def test_every_step_of_a_solution_is_right(side):
    for question, answer in problems(500, 3, side):
        steps = [(int(a), op, int(b), int(c)) for a, op, b, c in LINE.findall(answer)]
        assert all(COUNT[op](a, b) == c for a, op, b, c in steps), answer
        have = int(re.match(r"\w+ has (\d+) ", question)[1])
        for line in answer.splitlines()[:-1]:
            *_, last = LINE.findall(line)
            assert int(last[0]) == have, (question, answer)
            have = int(last[3])
        assert answer.splitlines()[-1] == f"#### {have}" and 0 < have <= MOST
        assert 2 <= len(answer.splitlines()) - 1 <= 4


def test_the_sides_share_no_question_and_a_seed_gives_the_same_ones():
    train, test = (problems(400, 0, side) for side in ("train", "test"))
    assert {side_of(q) for q, _ in train} == {"train"} and {side_of(q) for q, _ in test} == {"test"}
    assert len(dict(train)) == 400 and train == problems(400, 0, "train") != problems(400, 1, "train")


SIGNS = {"+": operator.add, "-": operator.sub, "*": operator.mul}


def run(question: str) -> dict[str, int]:
    """An independent interpreter of the question's program."""
    *lines, asked = question.split(";")
    values: dict[str, int] = {}
    for line in lines:
        name, left, sign, right = re.fullmatch(r"([a-h])=(\w+)([+*-])(\w+)", line).groups()  # type: ignore[union-attr]
        x, y = (values[t] if t in values else int(t) for t in (left, right))
        values[name] = SIGNS[sign](x, y)
    assert asked == f"{list(values)[-1]}=?"
    return values


def test_every_line_and_answer_is_right() -> None:
    lengths = set()
    for question, solution in traces(1500, 0, "train"):
        values = run(question)
        *lines, last = solution.split("\n")
        assert [line.split("=")[0] for line in lines] == list(values)
        assert [int(line.split("=")[-1]) for line in lines] == list(values.values())
        for line in lines[1:]:
            x, sign, y, result = re.fullmatch(r"[a-h]=(\d+)([+*-])(\d+)=(\d+)", line).groups()  # type: ignore[union-attr]
            assert SIGNS[sign](int(x), int(y)) == int(result)
        assert last == f"#### {list(values.values())[-1]}"
        assert all(0 <= v <= LARGEST for v in values.values())
        lengths.add(len(values))
    assert lengths == set(range(LINES[0], LINES[1] + 1))


def test_splits_are_disjoint_and_seeded() -> None:
    train, test = ({q for q, _ in traces(2000, 0, split)} for split in ("train", "test"))
    assert len(train) == len(test) == 2000
    assert not train & test
    assert traces(20, 3, "test") == traces(40, 3, "test")[:20]
    assert traces(20, 3, "test") != traces(20, 4, "test")
