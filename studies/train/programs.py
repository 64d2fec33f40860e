r"""Program writing in small: terse words to a short Python function, judged by running it (issue 6, Table 4's analogue).

    f(k,m): k, add 7, if odd double, at most m           def f(k,m):\n x=k\n x+=7\n if x%2:x*=2\n x=min(x,m)\n return x
    f(k,m) backwards: at most m, if odd double, add 7, k           the same: the steps are told from the last to the first

A solution is right if it passes its assertions, which the model never sees, in the package's sandbox (`09-code/judge.py`).
They tell the function from its neighbours, those that lack a line or have a number one higher, wherever one of 40 points
does. Fresh problems never run out (more than 10^9), and a pure function of (seed, index) makes them, as in `traces.py`.

    python studies/train/programs.py --out DIR          # train.jsonl and test.jsonl, for `data: file` and the task's `path`
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

from traces import Draws, Split, split_of

STEPS = (2, 4)  # fewest and most steps after the first value
NAMES = "abcdeghkmnpqrstuvw"  # of arguments: neither f, x nor i
WITH_VALUE = {
    "add": "x+={}", "less": "x-={}", "times": "x*={}", "from": "x={}-x",
    "at most": "x=min(x,{})", "at least": "x=max(x,{})", "off": "x=abs(x-{})",
}  # fmt: skip
ALONE = {"double": "x*=2", "negate": "x=-x", "halve": "x//=2", "square": "x*=x"}
REPEATED = ("add", "less", "times", "from", "off", "double", "halve")  # to repeat another changes nothing, or explodes
POINTS, FIRST, LOWEST, HIGHEST = 40, 3, -40, 80  # where functions are compared; how many of them are always asserted

Point = tuple[int, ...]


def programs(n: int, seed: int, split: Split, steps: tuple[int, int] = STEPS) -> list[tuple[str, str]]:
    """`n` distinct pairs (specification, function) of one split, which the specification alone decides."""
    found: dict[str, str] = {}
    for index in count():
        if len(found) == n:
            break
        question, solution = _problem(Draws(f"program {seed} {index}"), steps)
        if split_of(question) == split:
            found[question] = solution
    return list(found.items())


def checks(question: str, solution: str) -> list[str]:
    """The assertions that a function must pass: a function of the pair alone."""
    draw = Draws(f"points {question}")
    arguments = solution[: solution.index(")")].count(",") + 1
    points = [tuple(LOWEST + draw.below(HIGHEST - LOWEST + 1) for _ in range(arguments)) for _ in range(POINTS)]
    right = values(solution, points)
    chosen = list(range(FIRST))
    for other in neighbours(solution):
        found = values(other, points)
        differ = [i for i in range(POINTS) if found[i] != right[i]]
        if differ and not set(differ) & set(chosen):
            chosen.append(differ[0])
    return [f"assert f({','.join(map(str, points[i]))}) == {right[i]}" for i in chosen]


def neighbours(solution: str) -> Iterator[str]:
    """The function without one of its lines, and with one of its numbers one higher."""
    lines = solution.split("\n")
    for i in range(2, len(lines) - 1):
        yield "\n".join([*lines[:i], *lines[i + 1 :]])
    for number in re.finditer(r"\d+", solution):
        yield solution[: number.start()] + str(int(number[0]) + 1) + solution[number.end() :]


def values(solution: str, points: Sequence[Point]) -> list[int]:
    """What a function of ours (never a model's) gives at some points."""
    held: dict[str, object] = {}
    exec(solution, held)  # noqa: S102
    return [held["f"](*point) for point in points]  # type: ignore[operator]


def test_row(question: str, solution: str) -> dict[str, str]:
    """A row of the task: its answer is what `prunetune.tasks.mbpp.verify` reads."""
    needs = {"setup": "", "tests": checks(question, solution)}
    return {"question": question, "answer": json.dumps(needs), "solution": solution}


def _problem(draw: Draws, steps: tuple[int, int]) -> tuple[str, str]:
    left, names = list(NAMES), []
    for _ in range(2 + draw.below(2)):
        names.append(left.pop(draw.below(len(left))))
    told, lines = [(start := names[draw.below(len(names))])], [f"x={start}"]
    for _ in range(steps[0] + draw.below(steps[1] - steps[0] + 1)):
        words, line = _step(draw, names)
        told.append(words)
        lines.append(line)
    head = f"f({','.join(names)})"
    backwards = draw.below(2) == 1
    question = f"{head} backwards: {', '.join(told[::-1])}" if backwards else f"{head}: {', '.join(told)}"
    return question, "\n ".join([f"def {head}:", *lines, "return x"])


def _step(draw: Draws, names: list[str]) -> tuple[str, str]:
    """One step in words, and its line."""
    kind = draw.below(6)
    if kind == 0:
        times, (words, line) = 2 + draw.below(4), _change(draw, names, REPEATED)
        return f"repeat {times} {words}", f"for i in range({times}):{line}"
    if kind > 2:
        return _change(draw, names)
    (said, test), (words, line) = _condition(draw, names), _change(draw, names)
    return f"if {said} {words}", f"if {test}:{line}"


def _change(draw: Draws, names: list[str], words: Sequence[str] = (*WITH_VALUE, *ALONE)) -> tuple[str, str]:
    word = words[draw.below(len(words))]
    if word in ALONE:
        return word, ALONE[word]
    value = _value(draw, names)
    return f"{word} {value}", WITH_VALUE[word].format(value)


def _condition(draw: Draws, names: list[str]) -> tuple[str, str]:
    kind = draw.below(4)
    if kind < 2:
        return (("odd", "x%2"), ("even", "x%2==0"))[kind]
    value = _value(draw, names)
    return ((f"over {value}", f"x>{value}"), (f"below {value}", f"x<{value}"))[kind - 2]


def _value(draw: Draws, names: list[str]) -> str:
    return str(2 + draw.below(98)) if draw.below(2) else names[draw.below(len(names))]


def main() -> None:
    """Write JSONL files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--train", type=int, default=60_000)
    parser.add_argument("--test", type=int, default=4_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    write(args.out, args.train, args.test, args.seed)


def write(out: Path, train: int, test: int, seed: int) -> None:
    """train.jsonl and test.jsonl."""
    rows = {
        "train": [{"question": q, "answer": a} for q, a in programs(train, seed, "train")],
        "test": [test_row(q, a) for q, a in programs(test, seed, "test")],
    }
    for split, found in rows.items():
        text = "".join(json.dumps(row) + "\n" for row in found)
        (out / f"{split}.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
