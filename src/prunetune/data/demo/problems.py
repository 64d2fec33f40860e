r"""Arithmetic problems with written-out steps: the data of the embedded demo (the paper's CoT data, in miniature).

    7*8-9+5+3                                  a number of two digits or a product, then single digits: four steps
    7*8=56\n56-9=47\n47+5=52\n52+3=55\n#### 55    one line a step, then the answer, as in GSM8K

A problem is a pure function of (seed, index), through SHA-256: the same on every machine and every version of Python.
The split is a pure function of the question, so that no test question can ever turn up in training, whatever the seeds.
"""

from __future__ import annotations

from hashlib import sha256
from itertools import count
from typing import Literal, get_args

from prunetune.errors import DataError, UnknownName

Split = Literal["train", "test"]

STEPS = 4
TEST_PART = 4
"""One question in four belongs to the test split."""


def problems(n: int, seed: int, split: Split) -> list[tuple[str, str]]:
    """`n` distinct problems of one split.

    Args:
        n: How many.
        seed: Another seed draws others (a few may recur by chance, never across the splits).
        split: "train" or "test"; disjoint by construction.

    Returns:
        Pairs (question, solution); the solution ends in `#### <number>`. The first k of n are those of `n = k`.

    Raises:
        UnknownName: `split` is neither.
        DataError: `n` is negative, or more than a quarter of what the split holds.
    """
    if split not in get_args(Split):
        raise UnknownName("split of the demo's problems", split, get_args(Split))
    share = 1 if split == "test" else TEST_PART - 1
    most = distinct() * share // TEST_PART // 4
    if not 0 <= n <= most:
        raise DataError("cannot draw this many distinct demo problems", value=n, valid=f"0 to {most}")
    found: dict[str, str] = {}
    for index in count():
        if len(found) == n:
            break
        question, solution = _problem(sha256(f"demo {seed} {index}".encode()).digest())
        if split_of(question) == split:
            found[question] = solution
    return list(found.items())


def split_of(question: str) -> Split:
    """The split that a question belongs to."""
    return "test" if sha256(f"split {question}".encode()).digest()[0] % TEST_PART == 0 else "train"


def distinct() -> int:
    """How many different questions there are: all chains whose running value never falls below zero."""
    ways = {v: 1 for v in range(10, 100)}
    total = 0
    for step in range(STEPS):
        reached: dict[int, int] = {}
        for value, n in ways.items():
            for digit in range(1, 10):
                for result in (value + digit, value - digit):
                    if result >= 0:
                        reached[result] = reached.get(result, 0) + n
        ways = reached
        if step == 0:  # a product is a first step of its own, and as many questions as it has pairs of factors
            for a in range(2, 10):
                for b in range(2, 10):
                    ways[a * b] = ways.get(a * b, 0) + 1
        total = sum(ways.values())
    return total


def _problem(draw: bytes) -> tuple[str, str]:
    """The problem that 32 random bytes stand for. The solution's steps are those of a person with a pencil."""
    if draw[0] % 2:
        a, b = 2 + draw[1] % 8, 2 + draw[2] % 8
        question, value = f"{a}*{b}", a * b
        lines = [f"{question}={value}"]
    else:
        value = 10 + int.from_bytes(draw[1:4], "big") % 90
        question, lines = str(value), []
    for i in range(STEPS - len(lines)):
        digit = 1 + int.from_bytes(draw[8 + 2 * i : 10 + 2 * i], "big") % 9
        minus = draw[4 + i] % 2 == 1 and digit <= value
        sign, result = ("-", value - digit) if minus else ("+", value + digit)
        question += f"{sign}{digit}"
        lines.append(f"{value}{sign}{digit}={result}")
        value = result
    return question, "\n".join([*lines, f"#### {value}"])
