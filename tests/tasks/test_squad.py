"""SQuAD: the official normalisation, exact match and F1, worked out by hand."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from prunetune.errors import DataError, MissingPath
from prunetune.tasks import squad
from prunetune.tasks.registry import TaskConfig, build_task

DATA = Path(os.environ.get("PRUNETUNE_DATA", "unset")) / "squad_xquad_en"


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Denver Broncos!", "denver broncos"),
        ("an apple, a day", "apple day"),
        ("Theatre of Anna", "theatre of anna"),  # articles only as whole words
        ("U.S.-born", "usborn"),
        ("the", ""),
        ("24–10", "24–10"),  # only ASCII punctuation goes
    ],
)
def test_normalisation(text: str, normal: str) -> None:
    assert squad.normalise(text) == normal


@pytest.mark.parametrize(
    ("found", "answers", "exact", "f1"),
    [
        ("Denver Broncos", ["the Denver Broncos."], 1.0, 1.0),
        ("Broncos", ["Denver Broncos"], 0.0, 2 / 3),  # precision 1, recall 1/2
        ("the team Denver Broncos of Denver", ["Denver Broncos"], 0.0, 4 / 7),  # 2 of 5, 2 of 2: Denver counts once
        ("Carolina", ["Denver Broncos"], 0.0, 0.0),
        ("308 points", ["308", "308 points exactly"], 0.0, 0.8),  # best of 2/3 and 4/5
        ("", ["x"], 0.0, 0.0),
        ("a", ["the"], 1.0, 0.0),  # both empty: the official script gives EM 1 and F1 0
        ("x", [], 0.0, 0.0),
    ],
)
def test_scores(found: str, answers: list[str], exact: float, f1: float) -> None:
    verdict = squad.verify(f" {found}", json.dumps(answers))
    assert verdict.correct is bool(exact)
    assert verdict.scores["f1"] == pytest.approx(f1)


def test_reading_a_file(tmp_path: Path) -> None:
    qa = {"id": "q1", "question": "Who?", "answers": [{"text": "Ann", "answer_start": 0}, {"text": "Ann B."}]}
    (tmp_path / "dev.json").write_text(json.dumps({"data": [{"paragraphs": [{"context": "Ann was.", "qas": [qa]}]}]}))
    for path in (tmp_path, tmp_path / "dev.json"):
        task = build_task(TaskConfig(name="squad", path=str(path)))
        assert (task.metric, task.stop, task.problems[0].id) == ("exact_match", ("\n",), "squad/q1")
        assert task.prompt is not None
        asked = task.prompt.question.replace("{question}", task.problems[0].question)
        assert asked == "Context: Ann was.\nQuestion: Who?\nAnswer:"
        assert task.verify(task.problems[0], " ann b").correct


def test_rows_of_the_hub_give_the_same() -> None:
    row = {"id": "q1", "context": "Ann was.", "question": "Who?", "answers": {"text": ["Ann"], "answer_start": [0]}}
    assert squad.from_rows([row]) == [("q1", "Context: Ann was.\nQuestion: Who?", '["Ann"]')]


@pytest.mark.parametrize("content", ["{}", "[]", "{bad", '{"data": [{"paragraphs": [{"qas": []}]}]}', '{"data": 3}'])
def test_another_file_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "dev.json").write_text(content)
    with pytest.raises(DataError, match="not a SQuAD file"):
        squad.read(tmp_path / "dev.json")
    with pytest.raises(MissingPath):
        squad.read(tmp_path / "none.json")


@pytest.mark.skipif(not DATA.is_dir(), reason="PRUNETUNE_DATA names no folder with the public files")
def test_the_public_file() -> None:
    task = build_task(TaskConfig(name="squad", path=str(DATA)))
    assert len(task.problems) == 1190
    assert all(task.verify(p, json.loads(p.reference)[0]).correct for p in task.problems)
