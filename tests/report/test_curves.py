from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tests.fake_run import fake_run

from prunetune.common.stats import stderr
from prunetune.report.curves import Point, curve_of
from prunetune.report.figures.plots import by_round, by_size
from prunetune.runs.reading import RunRecord, read_run
from prunetune.runs.records import StageRecord


@pytest.fixture(scope="module")
def fewer(tmp_path_factory) -> Path:
    """A run whose rounds, but for the last, were asked the first 50 questions only."""
    at = fake_run(tmp_path_factory.mktemp("run"), tasks={"demo": 200}, control=False)
    for name in ("01-neurons-16", "02-neurons-16", "03-neurons-16"):
        samples = at / name / "eval/demo.jsonl"
        lines = samples.read_text().splitlines(keepends=True)[:50]
        samples.write_text("".join(lines))
        record = json.loads((at / name / "stage.json").read_text())
        right = sum(json.loads(line)["correct"] for line in lines)
        record["evals"][0] |= {"n": 50, "correct": right, "value": right / 50, "stderr": stderr(right, 50)}
        (at / name / "stage.json").write_text(json.dumps(record))
    return at


def _right(folder: Path, n: int) -> int:
    return sum(json.loads(line)["correct"] for line in (folder / "eval/demo.jsonl").read_text().splitlines()[:n])


def test_the_line_is_on_the_same_questions(fewer) -> None:
    curve = curve_of(read_run(fewer), "demo")
    assert curve.n == 50
    for point in curve.line:
        right = _right(fewer / point.stage.name, 50)
        assert (point.value, point.error, point.n) == (right / 50, stderr(right, 50), 50)
    assert [(p.stage.name, p.n) for p in curve.full] == [("original", 200), ("04-layers-2", 200)]
    assert curve.full[1].value == _right(fewer / "04-layers-2", 200) / 200


def test_both_figures_say_so(fewer) -> None:
    for plot in (by_size(read_run(fewer)), by_round(read_run(fewer))):
        assert plot is not None
        assert "the same 50" in plot.svg
        assert "all 200" in plot.svg
        assert "questions that every stage was asked" in plot.caption


def test_equal_numbers_are_taken_as_recorded(tmp_path) -> None:
    run = read_run(fake_run(tmp_path / "run", control=False))
    curve = curve_of(run, "demo")
    assert curve.full == ()
    assert [p.value for p in curve.line] == [s.evals[0].value for s in run.measured]
    plot = by_size(run)
    assert plot is not None
    assert "the same" not in plot.caption.replace("the same size", "")


def test_without_samples_the_records_must_do(fewer) -> None:
    run = read_run(fewer)
    elsewhere = RunRecord(fewer / "nowhere", run.original, run.stages)
    curve = curve_of(elsewhere, "demo")
    assert curve.n is None
    assert [p.value for p in curve.line] == [s.evals[0].value for s in run.measured]
    assert curve_of(replace(run), "unknown").line == ()


def test_a_point_at_the_edge_has_a_bar_to_one_side() -> None:
    stage = StageRecord(index=0, name="original")
    assert Point(stage, 1.0, 0.0, 20).bar == pytest.approx((0.1611, 0.0), abs=1e-4)
    assert Point(stage, 0.0, 0.0, 20).bar == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert Point(stage, 0.5, 0.1, 20).bar == (0.1, 0.1) and Point(stage, 1.0, 0.0, None).bar == (0.0, 0.0)
