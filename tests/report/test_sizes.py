"""Which rung is recommended, for accuracy, bytes and speed; who stands at equal bytes. Against rules worked out by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from tests.fake_run import fake_run

from prunetune.report.figures.bytes import by_bytes
from prunetune.report.sizes import against_it, equal_bytes, models, recommended, sentences
from prunetune.runs.reading import read_run
from prunetune.runs.summary import KeptRecord, RivalRecord, RungRecord


def rung(share: float, *lows: float, stored: int = 0) -> RungRecord:
    kept = {f"t{i}": KeptRecord(value=low + 0.03, low=low, high=low + 0.06) for i, low in enumerate(lows)}
    return RungRecord(share=share, folder=f"final-{share}", stage="", kept=kept, weight_bytes=stored or None)


def test_the_smallest_rung_that_surely_keeps_it_is_recommended():
    found = recommended([rung(0.8, 0.97), rung(0.7, 0.92), rung(0.6, 0.85)], 0.9)
    assert found.folder == "final-0.7"
    assert (
        "To keep 90 % of the accuracy take the rung 0.7 (final-0.7): it keeps 95.0 %, 92.0 to 98.0 on t0" in found.why
    )
    assert "0.6 does not (88.0 %, 85.0 to 91.0 on t0)" in found.why


def test_the_way_down_ends_at_the_first_rung_that_does_not():
    """A later rung that happens to pass is not taken: that would be the best of many tries."""
    assert recommended([rung(0.8, 0.97), rung(0.7, 0.85), rung(0.6, 0.93)], 0.9).folder == "final-0.8"
    assert recommended([rung(0.8, 0.85), rung(0.7, 0.95)], 0.9).folder is None


def test_every_task_counts():
    assert recommended([rung(0.8, 0.97, 0.95), rung(0.7, 0.97, 0.8)], 0.9).folder == "final-0.8"
    assert recommended([rung(0.8)], 0.9).folder is None


@pytest.fixture
def run(tmp_path):
    """The rounds of a run as rungs; a rival with the first round's answers, of the third round's bytes."""
    at = fake_run(tmp_path / "run", control=False)
    read = read_run(at)
    rungs = tuple(
        RungRecord(
            share=share, folder=f"final-{share}", stage=s.name, params=s.params, weight_bytes=s.cost.weight_bytes
        )
        for share, s in zip((0.9, 0.8, 0.7, 0.6), read.stages, strict=True)
    )
    rival = RivalRecord(
        name="sibling",
        folder="sibling",
        params=1,
        weight_bytes=read.stages[2].cost.weight_bytes,
        evals=read.stages[0].evals,
    )
    theirs = at / "rivals/sibling/eval"
    theirs.mkdir(parents=True)
    for file in (at / read.stages[0].name / "eval").glob("*.jsonl"):
        (theirs / file.name).write_text(file.read_text())
    return replace(read, summary=read.summary.model_copy(update={"ladder": rungs, "rivals": (rival,)}))


def difference(run, first, second, task) -> float:
    sides = [
        {r["id"]: r["correct"] for r in map(json.loads, (run.path / f / f"eval/{task}.jsonl").read_text().splitlines())}
        for f in (first, second)
    ]
    return sum(sides[1][i] - sides[0][i] for i in sides[0]) / len(sides[0])


def test_the_table_has_a_row_a_model_and_differences_on_the_same_questions(run):
    table = models(run)
    assert [r[0] for r in table.rows] == [
        "original", *(f"rung {s} (final-{s})" for s in (0.9, 0.8, 0.7, 0.6)), "sibling",
    ]  # fmt: skip
    assert all(len(r) == len(table.header) for r in table.rows)
    rival = run.summary.rivals[0]
    wanted = 100 * difference(run, "rivals/sibling", run.stages[2].name, "demo")
    assert against_it(run, rival, "demo").startswith(f"rung 0.7: {wanted:+.1f}".replace("-", "−"))


def test_who_stands_at_equal_bytes_is_said_whoever_wins(run):
    said = equal_bytes(run)
    assert said.startswith("At equal bytes (rung 0.7 ") and " on demo" in said and " on gsm_symbolic" in said
    d = difference(run, "rivals/sibling", run.stages[2].name, "gsm_symbolic")
    told = "sibling is ahead" if "sibling is ahead" in said.split("; ")[1] else "cannot be told apart"
    assert d < 0 and told in said
    far = run.summary.rivals[0].model_copy(update={"weight_bytes": 1})
    other = replace(run, summary=run.summary.model_copy(update={"rivals": (far,)}))
    assert equal_bytes(other).startswith("No rival has the bytes of a model of ours within 10%")


def test_the_figure_has_a_point_a_model(run):
    drawn = by_bytes(run)
    assert drawn is not None and drawn.name == "accuracy-bytes"
    for name in ("original", "0.9", "0.6", "sibling"):
        assert f">{name}<" in drawn.svg
    plain = replace(run, summary=run.summary.model_copy(update={"ladder": (), "rivals": ()}))
    assert by_bytes(plain) is None


def test_without_rungs_and_rivals_there_is_no_table(run):
    plain = replace(run, summary=run.summary.model_copy(update={"ladder": (), "rivals": ()}))
    assert models(plain).rows == () and sentences(plain) == ()


def test_for_a_speed_the_largest_rung_that_surely_has_it(run):
    timing = {"prompt_tokens": 128, "new_tokens": 32, "repeats": 9, "prefill_ms": 1.0, "prefill_each_ms": [1.0] * 9}
    old = {**timing, "decode_ms_per_token": 2.0, "decode_each_ms": [2.0] * 9}
    rungs = []
    for r, ms in zip(run.summary.ladder, (1.9, 1.6, 1.25, 1.0), strict=True):
        new = {**timing, "decode_ms_per_token": ms, "decode_each_ms": [ms] * 9}
        rungs.append(
            RungRecord.model_validate(
                {**r.to_json(), "latency": {"original": old, "final": new}, "speedup": {"decode": 2 / ms}}
            )
        )
    timed = replace(run, summary=run.summary.model_copy(update={"ladder": tuple(rungs)}))
    (said,) = (s for s in sentences(timed) if s.startswith("For a speed"))
    assert said.endswith("surely has it: 0.9 up to 1.05×, 0.8 up to 1.25×, 0.7 up to 1.60×, 0.6 up to 2.00×.")
    assert any(
        s.startswith("For a budget of bytes take the largest rung that fits: 0.9 from ") for s in sentences(timed)
    )
