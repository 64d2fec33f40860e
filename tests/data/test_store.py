"""Many samples, on disk: the same order, hash and words as in memory; made once, by one process, and again if damaged."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest

from prunetune.common import plugins
from prunetune.data import store, stream
from prunetune.data.sources import DataSource, DemoData, FileData
from prunetune.data.stream import Stream, load_stream
from prunetune.errors import DataError


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twenty samples are many, and files on disk are small."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(stream, "MOST_HELD", 20)
    monkeypatch.setattr(store, "BATCH", 7)
    monkeypatch.setattr(store, "BUCKET", 11)
    return tmp_path / "cache" / "prunetune"


def write(path: Path, rows: list[Any]) -> FileData:
    path.write_text("\n".join(json.dumps(r) for r in rows))
    return FileData(path=str(path))


def mixed(at: Path) -> list[DataSource]:
    """Answers with marks in most rows, in few rows, conversations, text with blank rows, generated; with repetitions."""
    marked = [{"question": f"q{i % 23}", "answer": f"<<{i % 23}*2={i % 23 * 2}>> n <<x>>"} for i in range(40)]
    few = [{"question": f"c{i}", "answer": "x << 3 >> y" if i else "it is <<1+1=2>>2"} for i in range(30)]
    talk = [
        {"messages": [
            {"role": "system", "content": "Ü – 日本"}, {"role": "user", "content": f"hi {i // 2}"},
            {"role": "assistant", "content": "a"}, {"role": "user", "content": "b"},
            {"role": "assistant", "content": f"c{i // 2}"},
        ]} for i in range(20)
    ]  # fmt: skip
    text = [{"text": "" if i % 3 == 0 else f"some text {i % 17}"} for i in range(40)]
    files = [write(at / f"{n}.jsonl", rows) for n, rows in enumerate((marked, few, talk, text))]
    return [*files, files[0].model_copy(update={"strip_marks": False}), DemoData(size=30, seed=3)]


def held(sources: list[DataSource], seed: int, monkeypatch: pytest.MonkeyPatch) -> Stream:
    """The same in memory."""
    with monkeypatch.context() as m:
        m.setattr(stream, "MOST_HELD", 10**9)
        m.setattr(stream, "folder_of", lambda *_: None)
        return load_stream(sources, seed)


@pytest.mark.parametrize("seed", [0, 7])
def test_what_lies_on_disk_is_what_would_be_held(tmp_path, monkeypatch, small, seed):
    sources = mixed(tmp_path)
    expected = held(sources, seed, monkeypatch)
    for found in (load_stream(sources, seed), load_stream(sources, seed)):  # made, and opened
        assert isinstance(found.examples, store.Rows)
        assert list(found.examples) == list(expected.examples)
        assert [e.where for e in found.examples] == [e.where for e in expected.examples]
        assert (found.sha, found.repeated, found.notes) == (expected.sha, expected.repeated, expected.notes)
    assert expected.repeated > 50
    assert any("removed from" in note for note in expected.notes)
    (folder,) = [p for p in small.iterdir() if p.name[0] != "."]
    assert sorted(p.name for p in folder.iterdir()) == ["about.json", "rows.arrow"]  # no pass leaves a file


def test_parts_are_views_that_read_the_same(tmp_path, monkeypatch):
    sources = mixed(tmp_path)
    expected, found = held(sources, 1, monkeypatch).examples, load_stream(sources, 1)
    assert len(found) == len(expected)
    draw = random.Random(0)
    for _ in range(20):
        start = draw.randrange(len(expected))
        end = draw.randrange(start, len(expected) + 1)
        part = found.take(start, end)
        assert (len(part), list(part)) == (end - start, list(expected[start:end]))
        if part:
            assert (part[0], part[-1]) == (expected[start], expected[end - 1])
    assert list(found.examples[10:60:7]) == list(expected[10:60:7])
    with pytest.raises(IndexError):
        found.examples[len(expected)]
    with pytest.raises(DataError, match="past their end"):
        found.take(0, len(expected) + 1)


def test_it_is_read_once_until_a_source_changes(tmp_path, monkeypatch):
    sources = mixed(tmp_path)
    first = load_stream(sources, 0)
    with monkeypatch.context() as m:
        m.setattr(stream, "open_rows", lambda path: pytest.fail("read again"))
        assert load_stream(sources, 0).sha == first.sha
    file = tmp_path / "0.jsonl"
    file.write_text(file.read_text() + '\n{"question": "new", "answer": "row"}')
    assert load_stream(sources, 0).sha != first.sha
    assert len(load_stream(sources, 0)) == len(first) + 1


def test_a_damaged_file_is_made_anew(tmp_path, small, capsys):
    sources = mixed(tmp_path)
    first = load_stream(sources, 0)
    rows = list(first.examples)
    (file,) = small.glob("*/rows.arrow")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
    assert list(load_stream(sources, 0).examples) == rows
    assert "is not what was written" in capsys.readouterr().err


def test_several_processes_make_it_once_and_read_one_order(tmp_path):
    sources = mixed(tmp_path)
    children: list[int] = []
    for number in range(3):
        if not (child := os.fork()):
            found = load_stream(sources, 5)
            (tmp_path / f"order-{number}").write_text(repr([(e.question, e.answer) for e in found.examples]))
            os._exit(0)
        children.append(child)
    assert all(os.waitpid(child, 0)[1] == 0 for child in children)
    orders = {(tmp_path / f"order-{number}").read_text() for number in range(3)}
    assert len(orders) == 1


def test_a_row_that_is_none_is_told_and_leaves_nothing(tmp_path, small):
    rows = [{"question": f"q{i}", "answer": "a"} for i in range(60)]
    source = write(tmp_path / "a.jsonl", [*rows, {"question": "q", "answer": None}])
    with pytest.raises(DataError, match=r"a\.jsonl, row 61"):
        load_stream([source], 0)
    assert not list(small.rglob("*.arrow"))


def test_a_plugins_rows_are_read_each_time(small, monkeypatch):
    from tests.plugin.toy_plugin import ToyRows

    monkeypatch.setitem(plugins._REGISTERED, ("source", "toy-rows"), ToyRows)
    found = load_stream([ToyRows(n=60)], 0)
    assert len(found) == 60
    assert isinstance(found.examples, store.Rows)
    assert not small.exists()


class Rows:
    """What `datasets` gives of a hub data set."""

    column_names = ("q", "a", "rest")

    def __init__(self, rows: list[dict[str, str]]) -> None:
        self.rows = rows

    def take(self, n: int) -> Rows:
        return Rows(self.rows[:n])

    def select_columns(self, names: list[str]) -> Rows:
        return Rows([{n: row[n] for n in names} for row in self.rows])

    def __iter__(self) -> Iterator[dict[str, str]]:
        return iter(self.rows)


def test_a_hub_source_with_a_limit_is_streamed_and_kept(monkeypatch, small):
    from prunetune.data import files
    from prunetune.data.sources import HubData

    asked: list[bool] = []

    def load(name: str, config: str | None, *, streaming: bool, **more: Any) -> Rows:
        asked.append(streaming)
        return Rows([{"q": f"q{i}", "a": "a", "rest": "r"} for i in range(30)])

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(files, "is_offline", lambda: False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(store, "hub_version", lambda *_: "commit")
    source = HubData(name="x", columns={"question": "q", "answer": "a"})
    assert files.hub_rows is stream.hub_rows
    limited = source.model_copy(update={"limit": 9})
    assert len(load_stream([limited], 0)) == len(load_stream([limited], 0)) == 9
    assert asked == [True]  # the second time from disk, few as they are: streaming fetches them anew
    assert len(load_stream([source], 0)) == 30
    assert asked == [True, False]
