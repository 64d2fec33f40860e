from __future__ import annotations

from dataclasses import replace

import pytest

from fake_run import fake_run
from prunetune import human
from prunetune.answers import read_samples
from prunetune.headline import Row, control_name, control_note, headline
from prunetune.questions import question_cost, stage_cost
from prunetune.records import RunRecord, read_run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunRecord:
    return read_run(fake_run(tmp_path_factory.mktemp("run")))


def _rows(run: RunRecord) -> dict[str, Row]:
    return {r.label: r for r in headline(run)}


def test_every_measure(run) -> None:
    rows = _rows(run)
    assert rows["layers × FFN width"] == Row("layers × FFN width", "8 × 96", "6 × 48", "", "6 × 48")
    assert rows["KV cache a token"] == Row("KV cache a token", "512 B", "384 B", "0.750", "384 B")
    assert rows["speed-up a generated token, demo"].final == "1.27×"
    assert rows["speed-up, decode"].original == "1.00×"
    assert rows["prefill of 128 tokens"].final == "2.96 ms (IQR 0.10)"
    assert rows["prefill of 128 tokens"].ratio == "0.705"
    assert rows["recovery tokens"].control == "81.9 k"
    assert run.original is not None
    e = run.original.evals[0]
    assert rows["accuracy, demo, n = 240"].original == f"{100 * e.value:.1f} % ± {100 * (e.stderr or 0):.1f}"


def test_flops_by_question_and_by_token(run) -> None:
    rows = _rows(run)
    assert run.final is not None
    row = rows["FLOPs a question (prefill + decode), demo"]
    assert row.final.startswith(human.flops(run.final.cost.flops["demo"]) + " (")
    cost = question_cost(stage_cost(run, run.final), read_samples(run.folder(run.final), "demo").values())
    assert row.final.endswith(f"({human.flops(cost.prefill)} + {human.flops(cost.decode)})")
    assert rows["FLOPs a generated token, demo"].final == human.flops(cost.per_new_token)


def test_a_control_known_from_the_summary_alone(run) -> None:
    alone = replace(run, control=None)
    said = alone.summary["control"]
    assert control_name(alone) == "pruned once"
    assert control_note(alone) == "same recovery tokens"
    assert _rows(alone)["accuracy, demo, n = 240"].control == f"{100 * said['accuracy']['demo']:.1f} %"


def test_the_control_may_have_spent_more(run) -> None:
    summary = run.summary | {"control": run.summary["control"] | {"recovery_tokens": 2 * 81920}}
    assert control_note(replace(run, control=None, summary=summary)) == "2.00 × the recovery tokens"


def test_no_control(run) -> None:
    alone = replace(run, control=None, summary={})
    assert control_name(alone) is None
    assert control_note(alone) == ""
    assert not [r for r in _rows(alone) if r.startswith(("speed-up", "prefill"))]
