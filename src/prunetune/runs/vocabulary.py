"""What a run's vocabulary cut has kept: RUN/vocabulary/vocabulary.json, written by the loop, read by the report."""

from __future__ import annotations

from prunetune.runs.records import Record

VOCABULARY = "vocabulary"
"""Folder in a run, and the name of its stage."""


class LengthRecord(Record):
    """How long a text is in tokens of the original, and of the model with fewer.

    Attributes:
        before, after, ratio: Tokens, and those of the new vocabulary for one of the old.
        alike, texts: Of so many texts, so many are cut as before.
        fitted: Whether it decided which tokens stay.
    """

    before: int
    after: int
    ratio: float
    alike: int
    texts: int
    fitted: bool


class VocabularyRecord(Record):
    """Which tokens stay.

    Attributes:
        tokens, original_tokens: How many there are and were.
        rows, original_rows: The same of the embedding.
        used, lost: Of those that the texts use, how many stay and how many go.
        lengths: Name of a text -> how long it becomes.
        left_out: Files of the original that held the old ids.
    """

    tokens: int
    original_tokens: int
    rows: int
    original_rows: int
    used: int
    lost: int
    lengths: dict[str, LengthRecord]
    left_out: tuple[str, ...] = ()
