"""One sample of the training data, wherever it came from."""

from __future__ import annotations

from dataclasses import dataclass, field

Turn = tuple[str, str]
"""(role, text) of a conversation; a role is `system`, `user` or `assistant`."""


@dataclass(frozen=True)
class Example:
    """One training sample: a question with its worked answer. Running text has an empty question.

    Attributes:
        question: The question, without any template; of a conversation the last one.
        answer: The answer with its reasoning, or the whole text.
        source: Where it came from, for counts and reports.
        before: The turns of a conversation before the question.
        where: File and row, for messages.
    """

    question: str
    answer: str
    source: str
    before: tuple[Turn, ...] = ()
    where: str = field(default="", compare=False)
