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
    asked = list(questions)
    kinds: tuple[Callable[[str], str], ...] = (str, _normal, _masked)
    forms = [[form(q) for q in asked] for form in kinds]
    open_ = [set(texts) for texts in forms]
    for example in train:
        before = [text for role, text in example.before if role == "user"]
        for text in [example.question or example.answer, *before]:
            for left, form in zip(open_, kinds, strict=True):
                if left:
                    left.discard(form(text))
    hits = [[q for q, text in zip(asked, texts, strict=True) if text not in left]
            for texts, left in zip(forms, open_, strict=True)]  # fmt: skip
    shown = list(dict.fromkeys(q for found in hits for q in found))[:5]
    return Overlap(len(hits[0]), len(hits[1]), len(hits[2]), tuple(shown), len(asked))


def _normal(text: str) -> str:
    # An operator behind a number is no punctuation: 12+3 and 12-3 are two questions.
    return " ".join(re.findall(r"\w+|(?:(?<=[\d)])|(?<=[\d)] ))[-+*/^%=<>]", text.casefold()))


def _masked(text: str) -> str:
    return re.sub(r"\d+(?: \d+)*", "0", _normal(text))
