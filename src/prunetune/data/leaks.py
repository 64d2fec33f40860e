"""Which evaluation questions stand in the training data too."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from prunetune.data.example import Example


@dataclass(frozen=True)
class Overlap:
    """How many evaluation questions also occur in the training data.

    Attributes:
        exact: As they stand.
        normalised: Case, spacing and punctuation aside.
        digits: Every number aside as well: the same problem with other figures.
        examples: A few of the questions found, the closest kind first.
        questions: How many questions were checked.
    """

    exact: int
    normalised: int
    digits: int
    examples: tuple[str, ...]
    questions: int


def overlap(train: Iterable[Example], questions: Iterable[str]) -> Overlap:
    """Leak check between training samples and evaluation questions."""
    kinds: tuple[Callable[[str], str], ...] = (str, _normal, _masked)
    seen: tuple[set[str], ...] = (set(), set(), set())
    for example in train:
        asked_before = [text for role, text in example.before if role == "user"]
        for text in [example.question or example.answer, *asked_before]:
            for known, form in zip(seen, kinds, strict=True):
                known.add(form(text))
    asked = list(questions)
    found = [[q for q in asked if form(q) in known] for known, form in zip(seen, kinds, strict=True)]
    shown = list(dict.fromkeys(q for hits in found for q in hits))[:5]
    return Overlap(len(found[0]), len(found[1]), len(found[2]), tuple(shown), len(asked))


def _normal(text: str) -> str:
    # An operator behind a number is no punctuation: 12+3 and 12-3 are two questions.
    return " ".join(re.findall(r"\w+|(?:(?<=[\d)])|(?<=[\d)] ))[-+*/^%=<>]", text.casefold()))


def _masked(text: str) -> str:
    return re.sub(r"\d+(?: \d+)*", "0", _normal(text))
