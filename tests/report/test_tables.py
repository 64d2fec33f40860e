from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.fake_run import fake_run, summed

from prunetune.report.tables import leaks, rounds, spent, truncation
from prunetune.runs.reading import RunRecord, read_run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunRecord:
    return read_run(fake_run(tmp_path_factory.mktemp("run")))


def test_rounds(run) -> None:
    table = rounds(run)
    head = ("stage", "parameters", "share", "layers", "width", "demo", "gsm_symbolic")
    assert table.header == (*head, "loss, pruned", "loss, tuned", "tokens", "time")
    assert [r[0] for r in table.rows] == ["original", *(s.name for s in run.stages)]
    last = dict(zip(table.header, table.rows[-1], strict=True))
    assert (last["layers"], last["width"], last["loss, pruned"], last["tokens"]) == ("6", "48", "0.540", "20.5 k")
    assert table.rows[0][table.header.index("loss, pruned")] == "–"


def _rejected(folder: Path) -> RunRecord:
    path = folder / "02-neurons-16/stage.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"attempt": 2, "verdict": {"accepted": False, "why": "fell by 3 points"}}))
    return read_run(folder)


def test_a_rejected_attempt_is_shown_with_its_reason(tmp_path) -> None:
    table = rounds(_rejected(fake_run(tmp_path / "run", finished=False)))
    assert table.header[-1] == "verdict"
    assert [r[-1] for r in table.rows] == ["accepted", "accepted", "rejected: fell by 3 points"]
    assert table.rows[-1][0] == "02-neurons-16 (attempt 2)"


def test_spent_adds_up(run) -> None:
    table = spent(run)
    assert table.total
    last = dict(zip(table.header, table.rows[-1], strict=True))
    assert last["tune"] == "2 min 56 s"
    assert last["tokens"] == "81.9 k"
    assert last["truncated"] == "12"
    assert last["all"] == "5 min 26 s"
    first = dict(zip(table.header, table.rows[1], strict=True))
    assert (first["samples"], first["tokens/s"]) == ("0–1,000", "465")


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (None, "No leak check was recorded"),
        ({}, "had nothing to compare"),
        ({"a": {"exact": 0, "normalised": 0, "digits": 9}}, "No evaluation question occurs"),
        ({"a": {"exact": 0, "normalised": 1, "digits": 9}, "b": {"exact": 0}}, "hold questions of a;"),
    ],
)
def test_leaks(run, found, said) -> None:
    table, note = leaks(summed(run, leaks=found))
    assert said in note
    assert len(table.rows) == len(found or {})


def test_truncation(run) -> None:
    assert truncation(run) == "12 of 4,000 (0.30 %) recovery examples were cut by the length limit."
    bare = RunRecord(run.path, run.original, ())
    assert "was not recorded" in truncation(bare)
    assert run.original is not None
    evals = tuple(e.model_copy(update={"truncated": 7}) for e in run.original.evals)
    cut = RunRecord(run.path, run.original.model_copy(update={"evals": evals}), ())
    assert "Answers of the original cut by the limit on new tokens: 7 of 240 on demo, 7 of 120 on" in truncation(cut)
