"""Samples on disk, in their final order: an Arrow file that is mapped into memory, made once from its sources.

    place = folder_of(sources, seed)                     # in the cache of `datasets`; None: the sources cannot be named
    with building(place): ...                            # one process at a time
    store = Store.open(place)                            # its rows, hash and notes

The order is the one that `stream` defines: sources one after another, the first of equal samples in the last one's
place, one shuffle by the seed. It is made in three passes, each with little in memory: rows as they are read; spread
over files of `BUCKET` places each, by where they belong; each of these sorted and written. A digest of each is held.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, overload

import numpy as np
from filelock import FileLock

from prunetune.common.files import check_space, json_sha, mark, read_json, remove
from prunetune.data.example import Example
from prunetune.data.files import expand_path, hub_version
from prunetune.data.parts import Part, has_marks, strip_marks
from prunetune.data.sources import PRESETS, DataSource, HubData, PresetData

VERSION = 1
"""Of the files and of how rows become samples: a change makes them anew."""
BATCH = 4_096
"""Rows of one record batch."""
BUCKET = 65_536
"""Places of the final order in one file of the second pass."""
ROWS, ABOUT = "rows.arrow", "about.json"


def folder_of(sources: Sequence[DataSource], seed: int) -> tuple[Path, object] | None:
    """Where the samples of these sources are kept, and from what they are made; None if that cannot be told.

    A file is told by its path, size and time, a hub data set by its commit, a generator by its settings and version.
    """
    found = [_identity(source) for source in sources]
    if any(each is None for each in found):
        return None
    import datasets

    key = {"sources": found, "seed": seed, "v": VERSION}
    return Path(datasets.config.HF_DATASETS_CACHE) / "prunetune" / json_sha(key), key


def _identity(source: DataSource) -> object:
    said = source.model_dump(mode="json")
    if isinstance(source, PresetData):
        parts = PRESETS.get(source.name, ())
        found = [_identity(part.model_copy(update={"limit": source.limit})) for part in parts]
        return None if None in found else found
    if isinstance(source, HubData):
        version = hub_version(source.name, source.config, source.data_dir)
        return version and [said, version]
    if source.type == "file":
        path = expand_path(said["path"])
        inner = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        stats = [(str(p.resolve()), p.stat()) for p in inner if p.exists()]
        return [said, [(name, s.st_size, s.st_mtime_ns) for name, s in stats]]
    if source.type in ("generator", "demo"):
        from importlib.metadata import version as version_of

        return [said, version_of("prunetune"), version_of("reasoning-gym")]
    return None  # a plugin's rows may change from call to call


@contextmanager
def building(place: Path) -> Iterator[None]:
    """Hold a place while it is made; other processes of the same job wait for it."""
    place.parent.mkdir(parents=True, exist_ok=True)
    mark(place.parent, "cache")
    with FileLock(place.with_name(f".{place.name}.lock")):
        yield


class Rows(Sequence[Example]):
    """Samples `[start, end)` of a file, read as they are asked for; a slice is a view."""

    def __init__(self, data: Any, parts: Sequence[tuple[str, str]], places: range) -> None:
        self._data, self._parts, self._places = data, parts, places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Rows: ...
    def __getitem__(self, index: int | slice) -> Example | Rows:
        if isinstance(index, slice):
            return Rows(self._data, self._parts, self._places[index])
        row = self._data[self._places[index]]
        return self._example(*(row[name] for name in COLUMNS))

    def __iter__(self) -> Iterator[Example]:
        for start in range(0, len(self), BATCH):
            places = self._places[start : start + BATCH]
            some = self._data[places.start : places.stop] if places.step == 1 else self._data[list(places)]
            for row in zip(*(some[name] for name in COLUMNS), strict=True):
                yield self._example(*row)

    def _example(self, question: str, answer: str, before: str, part: int, number: int) -> Example:
        name, path = self._parts[part]
        turns = tuple((role, text) for role, text in json.loads(before)) if before else ()
        return Example(question, answer, name, turns, f"{path}, row {number}" if path else "")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(_same, self, other))

    __hash__ = None  # type: ignore[assignment]  # a view on what is on disk


def _same(one: Example, other: Example) -> bool:
    return one == other and one.where == other.where


COLUMNS = ("question", "answer", "before", "part", "number")


class Store:
    """What lies in a folder that `write` made.

    Attributes:
        rows: All samples in their order.
        sha: See `stream.Stream`, as are `repeated` and `notes`.
    """

    def __init__(self, folder: Path) -> None:
        from datasets import Dataset

        about: dict[str, Any] = read_json(folder / ABOUT, "data on disk")
        data = Dataset.from_file(str(folder / ROWS))
        self.rows = Rows(data, [(str(name), str(path)) for name, path in about["parts"]], range(len(data)))
        self.sha, self.repeated, self.notes = str(about["sha"]), int(about["repeated"]), tuple(about["notes"])


def write(folder: Path, parts: Sequence[Part], samples: Iterator[tuple[int, int, Example]], seed: int) -> None:
    """Make the folder of a Store.

    Args:
        folder: To be made.
        parts: The data sets; each is read to its end through `samples`.
        samples: (index of the data set, row, sample as it is read), data set after data set.
        seed: Of the shuffle.
    """
    folder.mkdir(parents=True)
    spool = folder / "spool.arrow"
    digests = _spool(spool, samples)
    place_of, kept = _places(digests, parts, seed)
    check_space(folder, 2 * spool.stat().st_size, "data on disk")
    buckets = _spread(spool, folder, parts, place_of)
    remove(spool)
    digest = hashlib.sha256()
    with _writer(folder / ROWS) as out:
        for bucket in buckets:
            table = _read(bucket)
            table = table.take(np.argsort(table["place"].to_numpy())).drop_columns(["place"])
            for batch in table.to_batches(max_chunksize=BATCH):
                out.write_batch(batch)
                for question, answer, before in zip(*(batch[c].to_pylist() for c in COLUMNS[:3]), strict=True):
                    hash_sample(digest, json.loads(before) if before else (), question, answer)
            remove(bucket)
    about = {
        "sha": digest.hexdigest()[:16],
        "repeated": len(place_of) - kept,
        "parts": [(p.name, p.path) for p in parts],
        "notes": [note for p in parts if (note := p.note())],
    }
    (folder / ABOUT).write_text(json.dumps(about), encoding="utf-8")


def hash_sample(digest: Any, before: Sequence[Sequence[str]], question: str, answer: str) -> None:
    """Add one sample to the hash of a stream."""
    for role, text in before:
        digest.update(f"{role} {len(text)} {text}".encode())
    digest.update(f"{len(question)} {len(answer)} {question}{answer}".encode(errors="surrogatepass"))


def _schema(*, placed: bool = False) -> Any:
    import pyarrow as pa

    texts = [(name, pa.large_string()) for name in COLUMNS[:3]]
    return pa.schema([*texts, ("part", pa.int16()), ("number", pa.int64()), *([("place", pa.int64())] * placed)])


@contextmanager
def _writer(path: Path, *, placed: bool = False) -> Iterator[Any]:
    import pyarrow as pa

    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, _schema(placed=placed)) as writer:
        yield writer


def _read(path: Path) -> Any:
    import pyarrow as pa

    with pa.OSFile(str(path), "r") as file, pa.ipc.open_stream(file) as batches:  # read, not mapped: nothing stays
        return batches.read_all()


def _spool(path: Path, samples: Iterator[tuple[int, int, Example]]) -> tuple[Any, Any, Any]:
    """First pass: the rows as they are read. Digests [rows, 2] of each, raw and without marks; [rows] marked, part."""
    import pyarrow as pa

    raw, bare, about = bytearray(), bytearray(), bytearray()

    def rows() -> Iterator[tuple[str, str, str, int, int]]:
        for part, number, e in samples:
            before = json.dumps(e.before) if e.before else ""
            own = _digest(before, e.question, e.answer)
            raw.extend(own)
            bare.extend(_digest(before, e.question, strip_marks(e.answer)) if "<<" in e.answer else own)
            about.extend(((part << 1) | has_marks(e.answer)).to_bytes(4, "little"))
            yield e.question, e.answer, before, part, number

    with _writer(path) as out:
        for _, some in groupby(enumerate(rows()), key=lambda pair: pair[0] // BATCH):
            columns = zip(*(row for _, row in some), strict=True)
            out.write_batch(
                pa.record_batch(
                    [pa.array(c, f.type) for c, f in zip(columns, _schema(), strict=True)], schema=_schema()
                )
            )
    whole, cleaned = (np.frombuffer(b, dtype="<u8").reshape(-1, 2) for b in (raw, bare))
    return whole, cleaned, np.frombuffer(about, dtype="<u4")


def _digest(before: str, question: str, answer: str) -> bytes:
    """16 bytes: no two of a billion different samples are alike, but for one chance in 10^20."""
    head = f"{len(before)} {len(question)} "
    return hashlib.blake2b((head + before + question + answer).encode(errors="surrogatepass"), digest_size=16).digest()


def _places(digests: tuple[Any, Any, Any], parts: Sequence[Part], seed: int) -> tuple[Any, int]:
    """[rows] place of each row as it was read in the final order, -1 for a repeated sample; and how many are kept."""
    raw, bare, about = digests
    strips = np.array([[p.strips(False), p.strips(True)] for p in parts])
    key = np.where(strips[about >> 1, about & 1][:, None], bare, raw)
    by_key = np.lexsort((key[:, 1], key[:, 0]))  # stable: the first of equal ones comes first
    ordered = key[by_key]
    first = np.ones(len(key), dtype=bool)
    first[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    starts = np.flatnonzero(first)
    lasts = by_key[np.append(starts[1:], len(key)) - 1]
    kept = by_key[starts][np.argsort(lasts)]  # the first of equal samples, in the last one's place
    order = list(range(len(kept)))
    random.Random(seed).shuffle(order)
    places = np.full(len(key), -1, dtype=np.int64)
    places[kept[np.array(order, dtype=np.int64)]] = np.arange(len(kept))
    return places, len(kept)


def _spread(spool: Path, folder: Path, parts: Sequence[Part], places: Any) -> list[Path]:
    """Second pass: every kept row, its answer cleaned, into the file of its bucket."""
    import pyarrow as pa

    count = int(places.max()) // BUCKET + 1
    files = [folder / f"bucket-{i:05d}.arrow" for i in range(count)]
    at = 0
    with ExitStack() as stack:
        writers = [stack.enter_context(_writer(file, placed=True)) for file in files]
        file = stack.enter_context(pa.OSFile(str(spool), "r"))
        for batch in stack.enter_context(pa.ipc.open_stream(file)):
            place = places[at : at + len(batch)]
            at += len(batch)
            answers = zip(batch["part"].to_pylist(), batch["answer"].to_pylist(), strict=True)
            clean = pa.array([parts[p].clean(a) for p, a in answers], pa.large_string())
            columns = [batch["question"], clean, *(batch[c] for c in COLUMNS[2:]), pa.array(place)]
            whole = pa.record_batch(columns, schema=_schema(placed=True))
            for bucket in np.unique(place[place >= 0] // BUCKET):
                writers[bucket].write_batch(whole.filter(pa.array(place // BUCKET == bucket)))
    return files
