"""Samples of all sources in one shuffled stream that rounds share out, so that nothing is seen twice.

stream = load_stream([FileData(path="$DATA/train.jsonl")], seed=0)
stream.take(0, 1000)     # the first stage's part; the next stage takes [1000, 2000): no sample is seen twice
stream.notes             # what was taken of each file: columns, marks, blank rows
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from prunetune.common.progress import bar
from prunetune.data.example import Example, Turn
from prunetune.data.files import Row, expand_path, hub_rows, open_rows
from prunetune.data.forms import Columns, find_columns, sample_of
from prunetune.data.generators import gym_entries, solution_of
from prunetune.data.leaks import Overlap, overlap
from prunetune.data.sources import (
    PRESETS,
    DataSource,
    DemoData,
    FileData,
    GeneratedData,
    HubData,
    PresetData,
)
from prunetune.errors import DataError, UnknownName

__all__ = [
    "PRESETS", "DataSource", "DemoData", "Example", "FileData", "GeneratedData", "HubData", "Overlap", "PresetData",
    "Stream", "Turn", "examples_of", "load_stream", "overlap", "read_source", "strip_marks",
]  # fmt: skip


@dataclass(frozen=True)
class Stream:
    """All samples in their final order.

    Attributes:
        sha: Hash of the samples and their order.
        repeated: Samples left out because an equal one is there already.
        notes: A line a file or hub data set: what was taken of it.
    """

    examples: tuple[Example, ...] = field(repr=False)
    sha: str
    repeated: int = 0
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.examples)

    def take(self, start: int, end: int) -> list[Example]:
        """Samples `[start, end)`. Raises DataError if there are not so many."""
        if not 0 <= start <= end <= len(self):
            raise DataError(
                f"the data hold {len(self)} samples, and this part goes past their end",
                value=f"[{start}, {end})",
                fix="add data, or take fewer samples a round",
            )
        return list(self.examples[start:end])


def load_stream(sources: Sequence[DataSource], seed: int) -> Stream:
    """Read all sources, merge them (a repeated sample counts once), and shuffle once by the seed."""
    if not sources:
        raise DataError("no data source is given", fix="add {type: generator, name: gsm_symbolic, size: 1000}")
    notes: list[str] = []
    read: list[Example] = []
    with bar("read data", len(sources)) as progress:
        for done, source in enumerate(sources, start=1):
            read += read_source(source, notes)
            progress(done, len(sources))
    merged = list({(e.before, e.question, e.answer): e for e in reversed(read)}.values())[::-1]  # the first copy stays
    random.Random(seed).shuffle(merged)
    digest = hashlib.sha256()
    for e in merged:
        for role, text in e.before:
            digest.update(f"{role} {len(text)} {text}".encode())
        digest.update(f"{len(e.question)} {len(e.answer)} {e.question}{e.answer}".encode(errors="surrogatepass"))
    return Stream(tuple(merged), digest.hexdigest()[:16], repeated=len(read) - len(merged), notes=tuple(notes))


def read_source(source: DataSource, notes: list[str] | None = None) -> list[Example]:
    """All samples of one source, in its own order; what was taken is added to `notes`, a line a data set."""
    readers: dict[str, Callable[[Any, list[str]], list[Example]]] = {
        "hub": _hub, "file": _file, "generator": _generated, "preset": _preset, "demo": _demo,
    }  # fmt: skip
    return readers.get(source.type, _plugged)(source, [] if notes is None else notes)


def _plugged(source: Any, notes: list[str]) -> list[Example]:
    """A plugin's rows of `question` and `answer`."""
    examples, columns, number = examples_of(map(dict, source.examples()), None, name=source.type, path=source.type)
    notes.append(f"{source.type}: {number:,} rows of a plugin; taken: {columns.said()}")
    return examples


def _hub(source: HubData, notes: list[str]) -> list[Example]:
    where = (source.name, source.config, source.split)
    # Nothing else is read where the columns are known: data sets often hold every answer twice.
    known = set(source.columns or ()) in ({"question", "answer"}, {"text"}, {"messages"})
    columns = {c: c for c in (source.columns or {}).values()} if known else None
    rows = hub_rows(*where, columns=columns, limit=source.limit, data_dir=source.data_dir)
    return _examples(rows, source, source.name, source.name, "rows of the hub", notes)


def _file(source: FileData, notes: list[str]) -> list[Example]:
    path = expand_path(source.path)
    kind, rows = open_rows(path)
    return _examples(islice(rows, source.limit), source, path.name, str(path), f"rows of {kind}", notes)


def _generated(source: GeneratedData, notes: list[str]) -> list[Example]:
    entries = gym_entries(source.name, source.size, source.seed, "train", source.options)
    return [Example(str(e["question"]), solution_of(e), source.name) for e in entries]


def _preset(source: PresetData, notes: list[str]) -> list[Example]:
    if source.name not in PRESETS:
        raise UnknownName("data preset", source.name, PRESETS)
    parts = PRESETS[source.name]
    limit = {"limit": source.limit}
    return [example for part in parts for example in _hub(part.model_copy(update=limit), notes)]


def _demo(source: DemoData, notes: list[str]) -> list[Example]:
    from prunetune.data.demo.problems import problems

    return [Example(q, a, "demo") for q, a in problems(source.size, source.seed, "train")]


def examples_of(
    rows: Iterable[Row], given: Mapping[str, str] | None = None, *, name: str = "rows", path: str = "rows"
) -> tuple[list[Example], Columns, int]:
    """Rows of any form as samples.

    Args:
        rows: Column -> value.
        given: `columns` as the user maps them; the rest is found by name.
        name: The source of the samples.
        path: What a message calls the rows.

    Returns:
        The samples, the columns they were made of, and how many rows there were (blank ones of running text too).

    Raises:
        DataError: No rows, no columns that make a sample, or a row that is none; with its place.
    """
    columns: Columns | None = None
    examples: list[Example] = []
    number = 0
    for number, row in enumerate(rows, start=1):
        where = f"{path}, row {number}"
        if columns is None:
            columns = find_columns(row, given, where)
        if (sample := sample_of(row, columns, where)) is not None:
            examples.append(Example(sample.question, sample.answer, name, sample.before, where))
    if columns is None or not examples:
        raise DataError("this data file holds no rows", value=path, fix="check the file")
    return examples, columns, number


def _examples(
    rows: Iterable[Row], source: HubData | FileData, name: str, path: str, kind: str, notes: list[str]
) -> list[Example]:
    examples, columns, number = examples_of(rows, source.columns, name=name, path=path)
    examples, stripped = (examples, 0) if columns.text else _without_marks(examples, source.strip_marks)
    said = [f"{name}: {number:,} {kind}", f"taken: {columns.said()}"]
    if number > len(examples):
        said.append(f"{number - len(examples):,} blank rows left out")
    if stripped:
        said.append(f"calculator marks <<…>> removed from {stripped:,} answers (strip_marks: false keeps them)")
    notes.append("; ".join(said))
    return examples


# ------------------------------------------------------------------------------------------------------ GSM8K's marks

_MARK = re.compile(r"<<[^<>]*>>")
_SUM = re.compile(r"<<[\d\s.,+\-*/()%$]+=[\d\s.,+\-/%$]+>>")  # what C++ and shells write is none


def strip_marks(answer: str) -> str:
    """A GSM8K answer without its calculator marks: `48/2 = <<48/2=24>>24` -> `48/2 = 24`."""
    return _MARK.sub("", answer)


def _without_marks(examples: list[Example], wanted: bool | None) -> tuple[list[Example], int]:
    """The examples without marks, and how many had some.

    Where nobody said what is wanted, data of which most answers have marks are GSM8K's, and lose all of them, as the
    preset does; elsewhere the answers with a sum between the marks do.
    """
    if wanted is False:
        return examples, 0
    marked = [bool(_SUM.search(e.answer)) for e in examples]
    everywhere = wanted or sum(marked) * 2 > len(marked)
    stripped = [
        replace(e, answer=strip_marks(e.answer)) if everywhere or has else e
        for e, has in zip(examples, marked, strict=True)
    ]
    return stripped, sum(a is not b and a.answer != b.answer for a, b in zip(examples, stripped, strict=True))
