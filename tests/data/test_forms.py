"""Rows of every form that people have give the same samples; odd fields are refused with file, row and kind."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunetune.data.forms import REFERENCES, find_columns, sample_of
from prunetune.data.stream import Example, FileData, load_stream, read_source
from prunetune.errors import DataError, PrunetuneError

Q, A = "What is 2 + 3?", "<think>\n2, 3\n</think>\n\n5"
USER, BOT = {"role": "user", "content": Q}, {"role": "assistant", "content": A}

ONE_TURN: dict[str, dict[str, Any]] = {
    "question answer": {"question": Q, "answer": A},
    "problem solution": {"problem": Q, "solution": A},
    "capitals": {"Question": Q, " ANSWER": A},
    "prompt completion": {"prompt": Q, "completion": A},
    "alpaca": {"instruction": "What is", "input": "2 + 3?", "output": A},
    "alpaca without input": {"instruction": Q, "input": "", "output": A},
    "openai": {"messages": [USER, BOT]},
    "sharegpt": {"conversations": [{"from": "human", "value": Q}, {"from": "gpt", "value": A}]},
    "trl prompt": {"prompt": [USER], "completion": [BOT]},
    "trl prompt, solution": {"prompt": [USER], "solution": A},
    "content in parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": Q}]}, BOT]},
    "reasoning apart": {"messages": [USER, {"role": "assistant", "content": "5", "reasoning_content": "2, 3"}]},
    "conversation as text": {"messages": json.dumps([USER, BOT])},
    "pair beside messages": {"problem": Q, "solution": A, "messages": [USER, {**BOT, "content": "other"}]},
}


def source(path: Path, rows: list[dict[str, Any]], **more: Any) -> FileData:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return FileData(path=str(path), **more)


@pytest.mark.parametrize("name", ONE_TURN)
def test_one_turn_in_any_form_is_the_same_sample(tmp_path: Path, name: str) -> None:
    (found,) = read_source(source(tmp_path / "r.jsonl", [ONE_TURN[name]]))
    assert (found.question.replace("\n", " "), found.answer, found.before) == (Q, A, ())


def test_several_turns_and_a_system_turn_come_before_the_question(tmp_path: Path) -> None:
    system, more = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "And 4?"}
    turns = [system, USER, BOT, more, {"role": "assistant", "content": "9"}]
    rows = [
        {"messages": turns},
        {"system": "Be brief.", "conversations": [{"from": t["role"], "value": t["content"]} for t in turns[1:]]},
        {"system": "Be brief.", "instruction": "And 4?", "input": "", "output": "9", "history": [[Q, A]]},
    ]
    for i, row in enumerate(rows):
        (found,) = read_source(source(tmp_path / f"{i}.jsonl", [row]))
        assert found == Example("And 4?", "9", f"{i}.jsonl", (("system", "Be brief."), ("user", Q), ("assistant", A)))


def test_what_was_taken_is_said(tmp_path: Path) -> None:
    rows = [{"problem": f"{i}?", "solution": f"{i} = <<{i}+0={i}>>{i}"} for i in range(3)]
    stream = load_stream([source(tmp_path / "r.jsonl", rows)], 0)
    (note,) = stream.notes
    assert "3 rows of JSON" in note and "question = problem, answer = solution" in note
    assert "removed from 3 answers" in note and {e.answer for e in stream.examples} == {f"{i} = {i}" for i in range(3)}


@pytest.mark.parametrize(
    ("wanted", "answers", "left"),
    [
        (
            None,
            ["1 = <<1=1>>1", "x <<y>> z", "2 = <<a=2>>2 <<1+1=2>>2"],
            ["1 = 1", "x  z", "2 = 2 2"],
        ),  # most have some
        (None, ["cout << x << 1;", "a <<b>> c", "<<1+1=2>>2"], ["cout << x << 1;", "a <<b>> c", "2"]),
        (False, ["1 = <<1=1>>1"], ["1 = <<1=1>>1"]),
        (True, ["a <<b>> c"], ["a  c"]),
    ],
)
def test_calculator_marks(tmp_path: Path, wanted: bool | None, answers: list[str], left: list[str]) -> None:
    rows = [{"question": str(i), "answer": a} for i, a in enumerate(answers)]
    assert [e.answer for e in read_source(source(tmp_path / "r.jsonl", rows, strip_marks=wanted))] == left


@pytest.mark.parametrize(
    ("columns", "row"),
    [
        ({"question": "p"}, {"p": Q, "solution": A}),
        ({"answer": "s"}, {"problem": Q, "s": A, "solution": "no"}),
        ({"question": "p", "answer": "s"}, {"p": [USER], "s": A}),
        ({"question": "chat"}, {"chat": [USER, BOT]}),
        ({"messages": "chat"}, {"chat": [USER, BOT], "question": "no", "answer": "no"}),
        ({"question": "p", "answer": "s", "input": "more"}, {"p": "What is", "more": "2 + 3?", "s": A}),
    ],
)
def test_columns_whole_or_in_part(tmp_path: Path, columns: dict[str, str], row: dict[str, Any]) -> None:
    (found,) = read_source(source(tmp_path / "r.jsonl", [row], columns=columns))
    assert (found.question.replace("\n", " "), found.answer) == (Q, A)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"question": "gone"}, "no column 'gone'"),
        ({"qestion": "question"}, "must name a column"),
        ({"text": "question", "answer": "answer"}, "must name a column"),
    ],
)
def test_columns_that_are_not_there(tmp_path: Path, columns: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_source(source(tmp_path / "r.jsonl", [{"question": Q, "answer": A}], columns=columns))


ODD = [
    (None, "null"), (math.nan, "NaN"), (math.inf, "Infinity"), (True, "true or false"), (["a", "b"], "a list"),
    ([], "a list"), ({"a": 1}, "an object"), ("", "empty"), (" \n\t", "empty"), ("a\x00b", "NUL"), ("a\ud83d", "lone surrogate"),
]  # fmt: skip


@pytest.mark.parametrize("field", ["question", "answer"])
@pytest.mark.parametrize(("value", "kind"), ODD)
def test_odd_fields_are_told_with_file_and_row(tmp_path: Path, field: str, value: Any, kind: str) -> None:
    rows = [{"question": Q, "answer": A}, {"question": Q, "answer": A, field: value}]
    with pytest.raises(DataError, match=rf"r\.jsonl, row 2: {field} .*{kind}"):
        read_source(source(tmp_path / "r.jsonl", rows))


def test_odd_running_text(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"text": "one"}, {"text": " "}, {"text": "two"}]
    stream = load_stream([source(tmp_path / "r.jsonl", rows)], 0)
    assert sorted(e.answer for e in stream.examples) == ["one", "two"] and "1 blank row" in stream.notes[0]
    for value in (None, ["x"], math.nan):
        with pytest.raises(DataError, match="row 4: text is"):
            read_source(source(tmp_path / "r.jsonl", [*rows, {"text": value}]))


def test_numbers_are_read_as_they_are_written(tmp_path: Path) -> None:
    rows = [{"question": 12, "answer": 917}, {"question": "x", "answer": 0.5}, {"question": "y", "answer": 0}]
    assert [(e.question, e.answer) for e in read_source(source(tmp_path / "r.jsonl", rows))] == [
        ("12", "917"), ("x", "0.5"), ("y", "0")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([], "an empty list"),
        ("[{'role': 'user', 'content': 'x'}]", "no JSON"),
        (None, "null"),
        ([USER], "nobody answers"),
        ([BOT], "no question"),
        ([BOT, USER, BOT], "begins with an answer"),
        ([USER, BOT, BOT], "two answers"),
        ([USER, {"role": "tool", "content": "x"}, BOT], "the role 'tool'"),
        ([USER, {**BOT, "tool_calls": [1]}], "calls a tool"),
        ([USER, {"role": "assistant", "content": None}], "turn 2 is null"),
        ([{"role": "user", "content": [{"type": "image_url"}]}, BOT], "no text"),
        ([USER, "text"], "no {role, content}"),
    ],
)
def test_conversations_that_are_none(tmp_path: Path, turns: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_source(source(tmp_path / "r.jsonl", [{"messages": [USER, BOT]}, {"messages": turns}]))


def test_tools_of_a_conversation_are_told(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"messages": [USER, BOT], "tools": []},
        {"messages": [USER, BOT], "tools": [{"name": "f"}]},
    ]
    with pytest.raises(DataError, match="row 2: tools"):
        read_source(source(tmp_path / "r.jsonl", rows))


def test_a_list_of_python_in_a_text_column_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("question,answer\n\"[{'role': 'user', 'content': 'x'}]\",5\n")
    with pytest.raises(DataError, match="looks like a list of turns"):
        read_source(FileData(path=str(tmp_path / "r.csv")))


def test_rows_of_parquet_keep_their_types(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"messages": [USER, BOT]}] * 2), tmp_path / "r.parquet")
    assert [e.answer for e in read_source(FileData(path=str(tmp_path / "r.parquet")))] == [A, A]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"question": Q, "answer": b"x"}]), tmp_path / "b.parquet")
    with pytest.raises(DataError, match="answer is bytes"):
        read_source(FileData(path=str(tmp_path / "b.parquet")))


def test_unknown_names_say_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"frage[\s\S]*--columns"):
        read_source(source(tmp_path / "r.jsonl", [{"frage": Q, "antwort": A}]))


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "from", "value"]), inner),
    max_leaves=6,
)  # fmt: skip
_ROWS = st.dictionaries(st.sampled_from(["question", "answer", "messages", "text", "prompt", "input"]), _VALUES)


@settings(max_examples=80, deadline=None)
@given(rows=st.lists(_ROWS, min_size=1, max_size=3))
def test_any_row_gives_whole_text_or_a_message(tmp_path_factory: pytest.TempPathFactory, rows: list[Any]) -> None:
    """Never Python's words for a value: what comes out was text or a number in the file."""
    path = tmp_path_factory.mktemp("rows") / "r.jsonl"
    try:
        found = read_source(source(path, rows))
    except PrunetuneError:
        return
    for example in found:
        texts = [t for t in (example.question, example.answer, *(x for _, x in example.before)) if t]
        written = path.read_text()
        for text in texts:
            assert text not in ("None", "nan", "inf", "True", "False") or json.dumps(text) in written


def test_a_reference_may_be_a_list_of_one() -> None:
    columns = find_columns({"question": Q, "answer": ["917"]}, None, "f", answers=REFERENCES)
    found = sample_of({"question": Q, "answer": ["917"]}, columns, "f, row 1", reference=True)
    assert found is not None and found.answer == "917"
    for answer in (["917", "918"], [], [None], [["917"]], [math.nan]):
        with pytest.raises(DataError, match="row 1: answer is"):
            sample_of({"question": Q, "answer": answer}, columns, "f, row 1", reference=True)
