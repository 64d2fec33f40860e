"""Word problems in plain English with written-out solutions: a task that a small pre-trained model can learn from few tokens.

    .venv/bin/python studies/train/word_problems.py OUT [--train 20000] [--test 2000] [--seed 0]     # OUT/train.jsonl, OUT/test.jsonl

A story of somebody's things in two to four steps; numbers stay below 400. Which side a problem is on is decided by the hash of its question.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path

from prunetune.data.generators import side_of

NAMES = (
    "Amy",
    "Ben",
    "Carla",
    "David",
    "Ella",
    "Frank",
    "Grace",
    "Henry",
    "Ivy",
    "Jack",
    "Kate",
    "Leo",
    "Maria",
    "Nick",
    "Olga",
    "Paul",
)
THINGS = (
    "apples",
    "books",
    "cards",
    "coins",
    "eggs",
    "flowers",
    "marbles",
    "pencils",
    "shells",
    "stamps",
    "stickers",
    "stones",
)
PLACES = {"bag": "bags", "basket": "baskets", "box": "boxes", "jar": "jars", "packet": "packets"}
MOST = 400

Step = Callable[[random.Random, int, str, str], tuple[str, str, int] | None]
"""(draws, how many there are, whose, what) -> the sentence, the line of the solution, how many there are then; None: it does not fit."""


def _given(draw: random.Random, have: int, who: str, what: str) -> tuple[str, str, int]:
    giver, more = draw.choice([n for n in NAMES if n != who]), draw.randint(2, 40)
    return (
        f"{giver} gives {who} {more} more.",
        f"With the {more} from {giver}: {have} + {more} = {have + more}.",
        have + more,
    )


def _lost(draw: random.Random, have: int, who: str, what: str) -> tuple[str, str, int] | None:
    if have < 4:
        return None
    gone = draw.randint(2, min(40, have - 1))
    verb = draw.choice(("loses", "gives away", "sells"))
    return f"Then {who} {verb} {gone} of them.", f"{who} {verb} {gone}: {have} - {gone} = {have - gone}.", have - gone


def _bought(draw: random.Random, have: int, who: str, what: str) -> tuple[str, str, int]:
    (one, many), count, each = draw.choice(list(PLACES.items())), draw.randint(2, 6), draw.randint(2, 12)
    more = count * each
    line = f"{count} {many} hold {count} * {each} = {more} {what}, so {have} + {more} = {have + more}."
    return f"{who} buys {count} {many} with {each} {what} in each {one}.", line, have + more


def _shared(draw: random.Random, have: int, who: str, what: str) -> tuple[str, str, int] | None:
    parts = [n for n in range(2, 9) if have % n == 0 and have // n > 1]
    if not parts:
        return None
    n = draw.choice(parts)
    left = have // n
    return (
        f"{who} shares them equally among {n} people and keeps one share.",
        f"One of {n} shares: {have} / {n} = {left}.",
        left,
    )


def _grown(draw: random.Random, have: int, who: str, what: str) -> tuple[str, str, int] | None:
    times, word = draw.choice(((2, "twice"), (3, "three times")))
    if have * times > MOST:
        return None
    return (
        f"A week later {who} has {word} as many.",
        f"{word.capitalize()} as many: {have} * {times} = {have * times}.",
        have * times,
    )


STEPS: tuple[Step, ...] = (_given, _lost, _bought, _shared, _grown)


def problem(draw: random.Random) -> tuple[str, str]:
    """One question and its worked answer, which ends in `#### NUMBER`."""
    who, what, have = draw.choice(NAMES), draw.choice(THINGS), draw.randint(3, 60)
    story, lines, last = [f"{who} has {have} {what}."], [], None
    for _ in range(draw.randint(2, 4)):
        step = draw.choice([s for s in STEPS if s is not last])
        done = step(draw, have, who, what)
        if done is not None and done[2] <= MOST:
            sentence, line, have = done
            story.append(sentence)
            lines.append(line)
            last = step
    if len(lines) < 2:
        return problem(draw)
    return f"{' '.join(story)} How many {what} does {who} have now?", "\n".join((*lines, f"#### {have}"))


def problems(count: int, seed: int, side: str) -> list[tuple[str, str]]:
    """So many different problems of one side, `train` or `test`."""
    draw, found = random.Random(f"{side} {seed}"), dict[str, str]()
    while len(found) < count:
        question, answer = problem(draw)
        if side_of(question) == side:
            found[question] = answer
    return list(found.items())


def main() -> None:
    """Both files."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--train", type=int, default=20_000)
    parser.add_argument("--test", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for side, count in (("train", args.train), ("test", args.test)):
        rows = (json.dumps({"question": q, "answer": a}) for q, a in problems(count, args.seed, side))
        (args.out / f"{side}.jsonl").write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
