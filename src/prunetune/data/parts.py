"""One data set as it is read: raw samples one by one, and once all are read, what was taken and which marks go.

    part = Part(rows, source.columns, name="train.jsonl", path="data/train.jsonl", kind="rows of JSON")
    for number, example in part: ...          # nothing is held
    part.clean(example.answer), part.note()   # after the last one

GSM8K's calculator marks (`48/2 = <<48/2=24>>24`): data of which most answers have some lose all of them, which is known
at the end alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from prunetune.data.example import Example
from prunetune.data.fields import Row
from prunetune.data.forms import Columns, find_columns, sample_of
from prunetune.errors import DataError

_MARK = re.compile(r"<<[^<>]*>>")
_SUM = re.compile(r"<<[\d\s.,+\-*/()%$]+=[\d\s.,+\-/%$]+>>")  # what C++ and shells write is none


def strip_marks(answer: str) -> str:
    """A GSM8K answer without its calculator marks: `48/2 = <<48/2=24>>24` -> `48/2 = 24`."""
    return _MARK.sub("", answer)


def has_marks(answer: str) -> bool:
    """Whether an answer has a sum between such marks."""
    return "<<" in answer and _SUM.search(answer) is not None


class Part:
    """A data set of rows of any form.

    Args:
        rows: Column -> value.
        given: `columns` as the user maps them; the rest is found by name.
        name: The source of the samples.
        path: What a message calls the rows.
        kind: What a note calls them; empty: there is no note.
        strip: Whether marks go; None: where the answers have them.

    Iterating raises DataError for no rows, no columns that make a sample, or a row that is none; with its place.
    """

    def __init__(
        self,
        rows: Iterable[Row],
        given: Mapping[str, str] | None = None,
        *,
        name: str = "rows",
        path: str = "rows",
        kind: str = "",
        strip: bool | None = False,
    ) -> None:
        self.rows, self.given, self.name, self.path, self.kind, self.strip = rows, given, name, path, kind, strip
        self.columns: Columns | None = None
        self.number = self.kept = self.marked = self.stripped = 0

    def where(self, number: int) -> str:
        """The place of a row; empty where rows have none."""
        return f"{self.path}, row {number}" if self.path else ""

    def __iter__(self) -> Iterator[tuple[int, Example]]:
        for row in self.rows:
            self.number += 1
            where = self.where(self.number)
            if self.columns is None:
                self.columns = find_columns(row, self.given, where)
            if (sample := sample_of(row, self.columns, where)) is not None:
                self.kept += 1
                self.marked += has_marks(sample.answer)
                yield self.number, Example(sample.question, sample.answer, self.name, sample.before, where)
        if self.columns is None or not self.kept:
            raise DataError("this data file holds no rows", value=self.path, fix="check the file")

    def strips(self, marked: bool) -> bool:
        """Whether an answer, with a sum between marks or without, loses its marks; known once all are read."""
        if self.strip is False or (self.columns is not None and self.columns.text):
            return False
        return bool(self.strip) or self.marked * 2 > self.kept or marked

    def clean(self, answer: str) -> str:
        """An answer as it is trained on."""
        if "<<" not in answer or not self.strips(has_marks(answer)):
            return answer
        clean = strip_marks(answer)
        self.stripped += clean != answer
        return clean

    def note(self) -> str:
        """A line on what was taken; empty if there is nothing to say. After all answers were cleaned."""
        if not self.kind or self.columns is None:
            return ""
        said = [f"{self.name}: {self.number:,} {self.kind}", f"taken: {self.columns.said()}"]
        if self.number > self.kept:
            said.append(f"{self.number - self.kept:,} blank rows left out")
        if self.stripped:
            marks = "calculator marks <<…>> removed from"
            said.append(f"{marks} {self.stripped:,} answers (strip_marks: false keeps them)")
        return "; ".join(said)


class Made(Part):
    """Samples that a generator writes: no rows, no columns, no marks."""

    def __init__(self, name: str, pairs: Iterable[tuple[str, str]]) -> None:
        super().__init__((), name=name, path="")
        self.pairs = pairs

    def __iter__(self) -> Iterator[tuple[int, Example]]:
        for question, answer in self.pairs:
            self.number += 1
            yield self.number, Example(question, answer, self.name)
