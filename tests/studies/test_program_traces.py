"""The study models' programs: traced rightly, splits apart, values within bounds."""

from __future__ import annotations

import operator
import re

from traces import LARGEST, LINES, traces

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
