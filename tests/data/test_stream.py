"""The data stream: merged, shuffled once, shared out without overlap; the leak check."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from prunetune.data.stream import (
    PRESETS,
    DataSource,
    DemoData,
    Example,
    FileData,
    GeneratedData,
    HubData,
    PresetData,
    load_stream,
    overlap,
    read_source,
    strip_marks,
)
from prunetune.errors import DataError, UnknownName


def write(path: Path, rows: list[dict[str, object]]) -> FileData:
    path.write_text("\n".join(json.dumps(r) for r in rows))
    return FileData(path=str(path))


def numbered(path: Path, n: int, mark: str) -> FileData:
    return write(path, [{"question": f"{mark}{i}", "answer": str(i)} for i in range(n)])


def test_sources_merge_into_one_shuffled_stream(tmp_path: Path) -> None:
    sources = [numbered(tmp_path / "a.jsonl", 60, "a"), numbered(tmp_path / "b.jsonl", 40, "b")]
    stream = load_stream(sources, seed=1)
    assert len(stream) == 100
    assert {e.source for e in stream.take(0, 100)} == {"a.jsonl", "b.jsonl"}
    firsts = [e.source for e in stream.take(0, 50)]
    assert 10 < firsts.count("b.jsonl") < 30  # mixed, not one after the other


def test_parts_are_disjoint_and_together_whole(tmp_path: Path) -> None:
    stream = load_stream([numbered(tmp_path / "a.jsonl", 30, "a")], seed=0)
    parts = stream.take(0, 10) + stream.take(10, 20) + stream.take(20, 30)
    assert len({e.question for e in parts}) == 30


def test_seed_decides_order_and_hash(tmp_path: Path) -> None:
    source = numbered(tmp_path / "a.jsonl", 30, "a")
    first, again, other = (load_stream([source], seed=s) for s in (1, 1, 2))
    assert first.sha == again.sha != other.sha
    assert first.examples == again.examples
    assert set(first.examples) == set(other.examples)
    # pinned: a stage's share of the data must not move between versions
    assert [e.question for e in first.take(0, 4)] == ["a26", "a16", "a11", "a10"]


def test_changed_content_changes_the_hash(tmp_path: Path) -> None:
    before = load_stream([numbered(tmp_path / "a.jsonl", 30, "a")], seed=0).sha
    assert load_stream([numbered(tmp_path / "a.jsonl", 31, "a")], seed=0).sha != before


def test_a_repeated_sample_counts_once_and_is_counted(tmp_path: Path) -> None:
    sources = [numbered(tmp_path / "a.jsonl", 5, "a"), numbered(tmp_path / "b.jsonl", 7, "a")]
    stream = load_stream(sources, seed=0)
    assert (len(stream), stream.repeated) == (7, 5)


def test_past_the_end_says_how_many_there_are(tmp_path: Path) -> None:
    stream = load_stream([numbered(tmp_path / "a.jsonl", 30, "a")], seed=0)
    assert stream.take(30, 30) == []
    for start, end in [(25, 31), (-1, 3), (5, 4)]:
        with pytest.raises(DataError, match="30 samples"):
            stream.take(start, end)


def test_columns_text_and_calculator_marks(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{"p": "q", "s": "2*3 = <<2*3=6>>6\n#### 6", "t": "text"}])
    columns = {"question": "p", "answer": "s"}
    mapped = FileData(path=str(tmp_path / "a.jsonl"), columns=columns, strip_marks=True)
    assert read_source(mapped) == [Example("q", "2*3 = 6\n#### 6", "a.jsonl")]
    text = FileData(path=str(tmp_path / "a.jsonl"), columns={"text": "t"})
    assert read_source(text) == [Example("", "text", "a.jsonl")]
    with pytest.raises(DataError, match="must name a column"):
        read_source(FileData(path=str(tmp_path / "a.jsonl"), columns={"question": "p"}))


def test_plain_text_needs_no_columns(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("one\n\ntwo\n")
    assert [e.answer for e in read_source(FileData(path=str(tmp_path / "t.txt")))] == ["one", "two"]


@pytest.mark.parametrize("row", [{"question": " ", "answer": "a"}, {"question": "q", "answer": None}])
def test_an_empty_question_or_answer_is_an_error_not_a_skip(tmp_path: Path, row: dict[str, object]) -> None:
    with pytest.raises(DataError, match="row 2"):
        read_source(write(tmp_path / "a.jsonl", [{"question": "q", "answer": "a"}, row]))


def test_generator_and_demo_sources() -> None:
    made = read_source(GeneratedData(name="gsm_symbolic", size=20, seed=1))
    assert len(made) == 20 and all("#### " in e.answer for e in made)
    demo = read_source(DemoData(size=20))
    assert len(demo) == 20 and all("#### " in e.answer for e in demo)


def test_presets_read_their_hub_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int | None]] = []

    def fake(
        name: str, config: str | None, split: str, *, columns: dict[str, str], limit: int, data_dir: str
    ) -> object:
        asked.append((name, limit))
        return [dict.fromkeys(columns or (), name)]

    monkeypatch.setattr("prunetune.data.stream.hub_rows", fake)
    assert len(read_source(PresetData(name="math-cot", limit=9))) == 2
    assert asked == [("AI-MO/NuminaMath-CoT", 9), ("meta-math/MetaMathQA", 9)]
    for name in PRESETS:
        assert read_source(PresetData(name=name))
    with pytest.raises(UnknownName, match="math-cot"):
        read_source(PresetData(name="math_cot"))


def test_gsm8k_is_the_same_from_a_file_as_from_the_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"question": f"{i}?", "answer": f"{i} x 2 = <<{i}*2={2 * i}>>{2 * i}; y = <<y={i}>>{i}\n#### {i}"}
        for i in range(9)
    ]
    rows.append({"question": "no marks?", "answer": "none\n#### 0"})
    monkeypatch.setattr("prunetune.data.stream.hub_rows", lambda *where, **more: rows)
    notes: list[str] = []
    hub = read_source(PresetData(name="gsm8k"), notes)
    file = read_source(write(tmp_path / "gsm8k.jsonl", rows), notes)
    assert [(e.question, e.answer) for e in hub] == [(e.question, e.answer) for e in file]
    assert not any("<<" in e.answer for e in file) and all("removed from 9 answers" in note for note in notes)


def test_the_type_field_chooses_the_source() -> None:
    adapter: TypeAdapter[DataSource] = TypeAdapter(DataSource)
    assert adapter.validate_python({"type": "hub", "name": "x"}) == HubData(name="x")
    with pytest.raises(ValidationError, match="pathh"):
        adapter.validate_python({"type": "file", "pathh": "x"})


def test_no_source_is_an_error() -> None:
    with pytest.raises(DataError, match="no data source"):
        load_stream([], seed=0)


def test_marks_go_and_comparisons_stay() -> None:
    assert strip_marks("a < b, 4/2=<<4/2=2>>2 >> 1") == "a < b, 4/2=2 >> 1"


def test_overlap_counts_each_kind() -> None:
    train = [Example("Tom has 3 apples.", "", "t"), Example("What is 2+2?", "", "t")]
    asked = ["Tom has 3 apples.", "tom HAS 3   apples", "Tom has 1,250 apples.", "Ann has 3 apples.", "What is 2+2?"]
    found = overlap(train, asked)
    assert (found.exact, found.normalised, found.digits, found.questions) == (2, 3, 4, 5)
    assert "Tom has 3 apples." in found.examples and "Ann has 3 apples." not in found.examples
    assert overlap(train, ["nothing"]).examples == ()


def test_overlap_keeps_operators_apart_but_not_punctuation():
    """12+3 and 12-3 are two questions; a comma or a capital makes no new one."""
    train = [Example("12+3", "15", "s"), Example("How many, then, are 4?", "4", "s")]
    assert overlap(train, ["12-3"]).normalised == 0
    assert overlap(train, ["12 + 3", "how many then are 4"]).normalised == 2
    assert overlap(train, ["99+1"]).digits == 1
