"""Samples of all sources in one shuffled stream that rounds share out, so that nothing is seen twice.

stream = load_stream([FileData(path="$DATA/train.jsonl")], seed=0)
stream.take(0, 1000)     # the first stage's part; the next stage takes [1000, 2000): no sample is seen twice
stream.notes             # what was taken of each file: columns, marks, blank rows

The order: sources one after another, of equal samples the first in the last one's place, then one shuffle by the seed.
Few samples are held; more than `MOST_HELD` lie on disk in this order, in the cache of `datasets`, and are read as they
are needed (`store`).
"""

from __future__ import annotations

import hashlib
import os
import random
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from prunetune.common.files import is_made, once
from prunetune.common.progress import Progress, bar
from prunetune.data.example import Example, Turn
from prunetune.data.fields import Row
from prunetune.data.files import expand_path, hub_rows, open_rows
from prunetune.data.forms import Columns
from prunetune.data.generators import gym_entries, solution_of
from prunetune.data.leaks import Overlap, overlap
from prunetune.data.parts import Made, Part, strip_marks
from prunetune.data.sources import (
    PRESETS,
    DataSource,
    DemoData,
    FileData,
    GeneratedData,
    HubData,
    PresetData,
    TracesData,
)
from prunetune.data.store import Store, building, folder_of, hash_sample, write
from prunetune.errors import DataError, MissingPath, UnknownName

__all__ = [
    "PRESETS", "DataSource", "DemoData", "Example", "FileData", "GeneratedData", "HubData", "Overlap", "PresetData",
    "Stream", "TracesData", "Turn", "examples_of", "load_stream", "overlap", "read_source", "strip_marks",
]  # fmt: skip

MOST_HELD = 50_000
"""Samples that are held in memory; more are kept on disk."""


@dataclass(frozen=True)
class Stream:
    """All samples in their final order.

    Attributes:
        examples: The samples; a slice of many is a view on the disk.
        sha: Hash of the samples and their order.
        repeated: Samples left out because an equal one is there already.
        notes: A line a file or hub data set: what was taken of it.
    """

    examples: Sequence[Example] = field(repr=False)
    sha: str
    repeated: int = 0
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.examples)

    def take(self, start: int, end: int) -> Sequence[Example]:
        """Samples `[start, end)`. Raises DataError if there are not so many."""
        if not 0 <= start <= end <= len(self):
            raise DataError(
                f"the data hold {len(self)} samples, and this part goes past their end",
                value=f"[{start}, {end})",
                fix="add data, or take fewer samples a round",
            )
        part = self.examples[start:end]
        return list(part) if isinstance(part, tuple) else part


def load_stream(sources: Sequence[DataSource], seed: int) -> Stream:
    """Read all sources, merge them (a repeated sample counts once), and shuffle once by the seed.

    Many samples are read once and opened from then on, by all processes; the second waits for the first.
    """
    if not sources:
        raise DataError("no data source is given", fix="add {type: generator, name: gsm_symbolic, size: 1000}")
    kept = folder_of(sources, seed)
    if kept and is_made(*kept):
        return _opened(kept[0])
    parts = [part for source in sources for part in _parts(source)]
    with bar("read data", len(parts)) as progress:
        fetched = any(isinstance(s, HubData | PresetData) and s.limit for s in sources)  # anew by every start
        return _read(parts, _samples(parts, progress), seed, kept, most=0 if fetched and kept else MOST_HELD)


def _samples(parts: Sequence[Part], progress: Progress) -> Iterator[tuple[int, int, Example]]:
    """(index of the data set, row, sample as it is read) of all data sets."""
    for i, part in enumerate(parts):
        for number, example in part:
            yield i, number, example
        progress(i + 1, len(parts))


def _read(
    parts: Sequence[Part],
    samples: Iterator[tuple[int, int, Example]],
    seed: int,
    kept: tuple[Path, object] | None,
    *,
    most: int,
) -> Stream:
    """The stream of what is read: held if there are at most so many samples, else on disk."""
    some = list(islice(samples, most + 1))
    if len(some) <= most:
        return _held(parts, some, seed)
    place, key = kept or (Path(_temporary().name) / "stream", "of this process")
    with building(place):
        once(place, key, partial(write, parts=parts, samples=_emptied(some, samples), seed=seed))
    return _opened(place)


def _emptied(some: list[Any], rest: Iterator[Any]) -> Iterator[Any]:
    """A list's entries, which is given back, and then the rest."""
    some.reverse()
    while some:
        yield some.pop()
    yield from rest


_KEPT: list[tempfile.TemporaryDirectory[str]] = []


def _temporary() -> tempfile.TemporaryDirectory[str]:
    """A folder for as long as this process lives: for data of which nobody can say whether they have changed."""
    _KEPT.append(tempfile.TemporaryDirectory(prefix="prunetune-data-"))
    return _KEPT[-1]


def _opened(place: Path) -> Stream:
    store = Store(place)
    return Stream(store.rows, store.sha, repeated=store.repeated, notes=store.notes)


def _held(parts: Sequence[Part], samples: Sequence[tuple[int, int, Example]], seed: int) -> Stream:
    read = [_cleaned(parts[i], example) for i, _, example in samples]
    merged = list({(e.before, e.question, e.answer): e for e in reversed(read)}.values())[::-1]  # the first copy stays
    random.Random(seed).shuffle(merged)
    digest = hashlib.sha256()
    for e in merged:
        hash_sample(digest, e.before, e.question, e.answer)
    notes = tuple(note for part in parts if (note := part.note()))
    return Stream(tuple(merged), digest.hexdigest()[:16], repeated=len(read) - len(merged), notes=notes)


def _cleaned(part: Part, example: Example) -> Example:
    clean = part.clean(example.answer)
    return example if clean is example.answer else replace(example, answer=clean)


def read_source(source: DataSource, notes: list[str] | None = None) -> list[Example]:
    """All samples of one source, in its own order; what was taken is added to `notes`, a line a data set."""
    found: list[Example] = []
    for part in _parts(source):
        read = [example for _, example in part]
        found += [_cleaned(part, example) for example in read]
        if notes is not None and (note := part.note()):
            notes.append(note)
    return found


def _parts(source: DataSource) -> list[Part]:
    """The data sets of a source, none read yet."""
    readers: dict[str, Callable[[Any], list[Part]]] = {
        "hub": _hub, "file": _file, "generator": _generated, "preset": _preset, "demo": _demo,
        "traces": _traces,
    }  # fmt: skip
    return readers.get(source.type, _plugged)(source)


def _plugged(source: Any) -> list[Part]:
    """A plugin's rows of `question` and `answer`."""
    rows = map(dict, source.examples())
    return [Part(rows, None, name=source.type, path=source.type, kind="rows of a plugin")]


def _hub(source: HubData) -> list[Part]:
    where = (source.name, source.config, source.split)
    # Nothing else is read where the columns are known: data sets often hold every answer twice.
    known = set(source.columns or ()) in ({"question", "answer"}, {"text"}, {"messages"})
    columns = {c: c for c in (source.columns or {}).values()} if known else None
    rows = hub_rows(*where, columns=columns, limit=source.limit, data_dir=source.data_dir)
    return [_of_rows(rows, source, source.name, source.name, "rows of the hub")]


def _file(source: FileData) -> list[Part]:
    path = expand_path(source.path)
    if not os.path.lexists(path):
        raise MissingPath(
            "no such data file to score and to train with", value=str(path), fix="check --data, or the recipe's data"
        )
    kind, rows = open_rows(path)
    return [_of_rows(islice(rows, source.limit), source, path.name, str(path), f"rows of {kind}")]


def _of_rows(rows: Iterable[Row], source: HubData | FileData, name: str, path: str, kind: str) -> Part:
    return Part(rows, source.columns, name=name, path=path, kind=kind, strip=source.strip_marks)


def _generated(source: GeneratedData) -> list[Part]:
    entries = gym_entries(source.name, source.size, source.seed, "train", source.options)
    return [Made(source.name, ((str(e["question"]), solution_of(e)) for e in entries))]


def _preset(source: PresetData) -> list[Part]:
    if source.name not in PRESETS:
        raise UnknownName("data preset", source.name, PRESETS)
    limit = {"limit": source.limit}
    return [part for each in PRESETS[source.name] for part in _hub(each.model_copy(update=limit))]


def _traces(source: TracesData) -> list[Part]:
    raise DataError(
        "own traces are sampled by a run, and cannot be read here",
        value=f"{source.per_question} answers to each question of {source.source.type}",
        fix="in a recipe they go under data, score.data or a method's data; by hand: prunetune generate",
    )


def _demo(source: DemoData) -> list[Part]:
    from prunetune.data.demo.problems import problems

    return [Made("demo", problems(source.size, source.seed, "train"))]


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
    part = Part(rows, given, name=name, path=path)
    examples = [example for _, example in part]
    return examples, part.columns or Columns(), part.number
