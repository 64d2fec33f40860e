"""The word problems: every line of a solution is right, the last one is the answer, and no test question is among the training's."""

from __future__ import annotations

import re

import pytest
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
