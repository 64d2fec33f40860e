from __future__ import annotations

from dataclasses import replace

import pytest
from tests.fake_run import fake_run, summed

from prunetune.common import units as human
from prunetune.report.headline import Row, control_name, control_note, headline
from prunetune.report.pairs import read_samples
from prunetune.report.question_cost import question_cost, stage_cost
from prunetune.runs.reading import RunRecord, read_run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunRecord:
    return read_run(fake_run(tmp_path_factory.mktemp("run")))


def _rows(run: RunRecord) -> dict[str, Row]:
    return {r.label: r for r in headline(run)}


def test_every_measure(run) -> None:
    rows = _rows(run)
    assert rows["layers × FFN width"] == Row("layers × FFN width", "8 × 96", "6 × 48", "", "6 × 48")
    assert rows["KV cache a token"] == Row("KV cache a token", "512 B", "384 B", "0.750", "384 B")
    assert rows["speed-up a generated token, demo"].final == "1.27× (1.23–1.31)"
    assert rows["speed-up, decode"].original == "1.00×"
    assert rows["prefill of 128 tokens"].final == "2.96 ms (IQR 0.10)"
    assert rows["prefill of 128 tokens"].ratio == "0.705"
    assert rows["recovery tokens"].control == "81.9 k"
    assert run.original is not None
    e = run.original.evals[0]
    assert rows["accuracy, demo, n = 240"].original == e.text()


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
    said = alone.summary.control
    assert said is not None
    assert control_name(alone) == "pruned once"
    assert control_note(alone) == "same recovery tokens"
    assert _rows(alone)["accuracy, demo, n = 240"].control == f"{100 * said.accuracy['demo'].final:.1f} %"


def test_the_control_may_have_spent_more(run) -> None:
    control = run.summary["control"] | {"recovery_tokens": 2 * 81920}
    assert control_note(summed(replace(run, control=None), control=control)) == "2.00 × the recovery tokens"


def test_no_control(run) -> None:
    alone = summed(replace(run, control=None), bare=True)
    assert control_name(alone) is None
    assert control_note(alone) == ""
    assert not [r for r in _rows(alone) if r.startswith(("speed-up", "prefill"))]


def test_a_speed_up_within_the_noise_is_called_so(run) -> None:
    latency = {n: t | {"decode_iqr_ms": 1.0, "repeats": 5} for n, t in run.summary["latency"].items()}
    rows = _rows(summed(run, latency=latency))
    row = rows["speed-up, decode"]
    assert row.final == "1.21× (0.60–2.56, not distinguishable from 1)"
    assert row.control.startswith("1.21× (1.") and "not distinguishable" not in row.control


def test_throughput_at_a_fixed_batch(run) -> None:
    timed = {"prefill_ms": 8.0, "prefill_iqr_ms": 0.0, "decode_ms_per_token": 4.0, "decode_iqr_ms": 0.0, "new_tokens": 32, "prompt_tokens": 128,
             "batch": 8, "repeats": 5}  # fmt: skip
    many = {"original": {**timed, "tokens_per_s": 1000.0}, "final": {**timed, "tokens_per_s": 1500.0}}
    rows = _rows(summed(run, latency=run.summary["latency"] | {"batched": many}, speedup={"throughput": 1.5}))
    assert rows["throughput, batch 8"] == Row("throughput, batch 8", "1,000 tokens/s", "1,500 tokens/s", "1.500", "–")
    assert rows["speed-up, throughput"].final == "1.50× (1.50–1.50)"
