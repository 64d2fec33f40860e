r"""Straight-line programs traced line by line: the harder problems of the study models (issue 5).

    a=37+5;b=a*3;c=b-a;d=c+68;d=?
    a=42\nb=42*3=126\nc=126-42=84\nd=84+68=152\n#### 152

Each line needs two lookups (values of earlier variables) and one sum, difference or product by a digit. Fresh problems
never run out (more than 10^9), and a pure function of (seed, index) makes them, through SHA-256, as in the demo.

    python studies/train/traces.py --out $DIR          # train.jsonl and test.jsonl, for `data: file` and `task: rows`
"""

from __future__ import annotations

import argparse
import json
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Literal

Split = Literal["train", "test"]
LINES = (3, 5)  # shortest and longest program
LARGEST = 999
TEST_PART = 4


def traces(n: int, seed: int, split: Split, lines: tuple[int, int] = LINES) -> list[tuple[str, str]]:
    """`n` distinct pairs (question, solution) of one split, which the question alone decides."""
    found: dict[str, str] = {}
    for index in count():
        if len(found) == n:
            break
        question, solution = _program(Draws(f"trace {seed} {index}"), lines)
        if split_of(question) == split:
            found[question] = solution
    return list(found.items())


def split_of(question: str) -> Split:
    """The split that a question belongs to, whatever seed drew it."""
    return "test" if sha256(question.encode()).digest()[0] % TEST_PART == 0 else "train"


class Draws:
    """Whole numbers from a text, the same on every machine."""

    def __init__(self, text: str) -> None:
        self.text, self.pool = text, b""

    def below(self, n: int) -> int:
        """The next number, 0 to n - 1."""
        if len(self.pool) < 2:
            self.text = sha256(self.text.encode()).hexdigest()
            self.pool = bytes.fromhex(self.text)
        value, self.pool = int.from_bytes(self.pool[:2], "big"), self.pool[2:]
        return value % n


def _program(draw: Draws, lines: tuple[int, int]) -> tuple[str, str]:
    names = "abcdefgh"[: lines[0] + draw.below(lines[1] - lines[0] + 1)]
    values: list[int] = []
    source, trace = [], []
    for i, name in enumerate(names):
        if i == 0:
            left, x = str(v := 10 + draw.below(90)), v
        else:  # mostly the line before, so that a chain has to be followed to its end
            j = i - 1 if draw.below(3) else draw.below(i)
            left, x = names[j], values[j]
        right, y, sign = _operand(draw, names, values, x)
        result = x * y if sign == "*" else x + y if sign == "+" else x - y
        source.append(f"{name}={left}{sign}{right}")
        trace.append(f"{name}={x}{sign}{y}={result}" if i else f"{name}={result}")
        values.append(result)
    return ";".join(source) + f";{names[-1]}=?", "\n".join([*trace, f"#### {values[-1]}"])


def _operand(draw: Draws, names: str, values: list[int], x: int) -> tuple[str, int, str]:
    """Right operand as text and number, and a sign that keeps the result within 0 and LARGEST."""
    kind = draw.below(4)
    if kind == 0 and x * 2 <= LARGEST:
        y = 2 + draw.below(min(8, LARGEST // max(x, 1) - 1))
        return str(y), y, "*"
    if kind == 1 and values:
        j = draw.below(len(values))
        right, y = names[j], values[j]
    else:
        y = 1 + draw.below(99)
        right = str(y)
    fits = [s for s, r in (("+", x + y), ("-", x - y)) if 0 <= r <= LARGEST]
    if not fits:
        return "1", 1, "-"
    return right, y, fits[draw.below(len(fits))]


def main() -> None:
    """Write JSONL files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--train", type=int, default=60_000)
    parser.add_argument("--test", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    sides: tuple[tuple[Literal["train", "test"], int], ...] = (("train", args.train), ("test", args.test))
    for split, n in sides:
        rows = [json.dumps({"question": q, "answer": a}) for q, a in traces(n, args.seed, split)]
        (args.out / f"{split}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
