"""Problems from rows: which file, which rows of it, and that each has a question and a reference that can be used."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunetune.data.example import Example
from prunetune.data.files import Row, expand_path, read_rows
from prunetune.data.forms import REFERENCES, find_columns, sample_of
from prunetune.errors import DataError, MissingPath, TaskError
from prunetune.tasks.verifiers import OTHER_VERIFIERS

if TYPE_CHECKING:
    from prunetune.tasks.task import Task

Refuses = Callable[[str], str | None]
"""Why a reference cannot be judged against; None where it can."""

COSTLY = 500
"""Right answers of training data that are read before any work, where reading one is slow."""


@dataclass(frozen=True)
class Problem:
    """One question.

    Attributes:
        id: Stable name; results of two models are paired by it.
        question: As it goes into the prompt.
        reference: The right answer, in the form that the verifier reads.
        extra: What the verifier needs beyond the reference.
    """

    id: str
    question: str
    reference: str
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)


def problems_of(prefix: str, rows: Sequence[Row], columns: Mapping[str, str] | None, where: str) -> list[Problem]:
    """One problem a row, named by its place.

    Args:
        prefix: Of the ids.
        rows: As the file has them.
        columns: Of question and answer, where they have no well-known names.
        where: File or data set, for messages.

    Raises:
        DataError: No such columns, or a question or a reference that is no text, empty, or several turns.
    """
    chosen = find_columns(rows[0], columns, where, answers=REFERENCES)
    found = []
    for i, row in enumerate(rows):
        place = place_of(where, i)
        sample = sample_of(row, chosen, place, reference=True)
        if sample is None or not sample.question:
            raise DataError(f"{place}: this row has no question with an answer", fix="set `columns` to the right names")
        if any(role != "system" for role, _ in sample.before):
            raise DataError(
                f"{place}: this row is a conversation of several turns", valid="one user turn and its answer",
                fix="write question and answer as text",
            )  # fmt: skip
        question = "\n\n".join([*(text for _, text in sample.before), sample.question])
        found.append(Problem(f"{prefix}/{i}", question, sample.answer))
    return found


def place_of(where: str, index: int) -> str:
    """How a message names a row."""
    return f"{where}, row {index + 1}"


def check_reference(reference: str, refuses: Refuses, place: str) -> None:
    """Raise TaskError for a reference that a verifier cannot use."""
    if why := refuses(reference):
        raise TaskError(f"{place}: this reference {why}", value=reference[-200:], fix=OTHER_VERIFIERS)


def local_file(path: str, file: str) -> Path:
    """The rows of a built-in task: the file itself, or `file` in a folder."""
    found = expand_path(path)
    if found.is_dir():
        found /= file
    if not found.is_file():
        raise MissingPath("no such data file", value=str(found), fix="check `path` of the task")
    return found


def rows_of(path: str, file: str) -> tuple[str, list[Row]]:
    """Where rows are, and all of them: of a file, of `file` in a folder, or of the folder's test split."""
    found = expand_path(path)
    if found.is_dir() and (found / file).is_file():
        found /= file
    return str(found), read_rows(found, None, split="test")


def draw(problems: Sequence[Problem], n: int | None, seed: int, name: str) -> tuple[Problem, ...]:
    """`n` of the problems, chosen by the seed, in their own order. All of them without `n`."""
    if n is None:
        return tuple(problems)
    if n > len(problems):
        raise TaskError(f"{name} has {len(problems)} problems", value=n, fix="ask for at most so many")
    chosen = random.Random(seed).sample(range(len(problems)), n)
    return tuple(problems[i] for i in sorted(chosen))


def check_examples(examples: Iterable[Example], task: Task) -> None:
    """The right answers of training questions, against which a reward or a choice of traces will be judged.

    Raises:
        TaskError: The first that the task's verifier cannot use; of a slow one among the first `COSTLY`.
    """
    asked = (e for e in examples if e.question)
    for e in islice(asked, COSTLY if task.slow else None):
        check_reference(e.answer, task.refuses, e.where or f"an answer of {e.source}")
