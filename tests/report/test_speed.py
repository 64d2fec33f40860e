"""The range of a measured ratio, by hand."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import Any

import pytest
from tests.fake_run import fake_run, summed

from prunetune.report.speed import Speedup, speedup, speedups
from prunetune.runs.reading import RunRecord, read_run
from prunetune.runs.summary import Timings


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    return read_run(fake_run(tmp_path_factory.mktemp("run")))


def timed(prefill: float, prefill_iqr: float, decode: float, decode_iqr: float, **more: Any) -> dict[str, Any]:
    return {"prefill_ms": prefill, "prefill_iqr_ms": prefill_iqr, "decode_ms_per_token": decode, "decode_iqr_ms": decode_iqr,
            "prompt_tokens": 100, "new_tokens": 11, "repeats": 5, **more}  # fmt: skip


def with_latency(run: RunRecord, old: dict[str, Any], new: dict[str, Any], **speeds: Any) -> RunRecord:
    return summed(run, latency={"original": old, "final": new}, speedup=speeds)


def test_prefill_and_decode_by_hand(run: RunRecord) -> None:
    found = with_latency(run, timed(20, 4, 3, 0), timed(10, 2, 2, 2), prefill=2.0, decode=1.5)
    assert speedup(found, "prefill") == Speedup(2.0, pytest.approx(2 * 0.9 / 1.1), pytest.approx(2 * 1.1 / 0.9), 5)
    assert speedup(found, "decode") == Speedup(1.5, pytest.approx(1.5 / 1.5), pytest.approx(1.5 / 0.5), 5)
    assert not speedup(found, "prefill").is_noise and speedup(found, "decode").is_noise, "a range that just holds 1"


def test_a_question_weighs_prefill_and_decoding_by_its_own_lengths(run: RunRecord) -> None:
    found = with_latency(run, timed(10, 2, 1, 0), timed(10, 0, 1, 0.5), demo={"question": 1.0, "token": 1.0})
    old, new = (s.eval_of("demo") for s in (run.original, run.final))
    a = (old.prompt_tokens / 100 * 2) / 2 / (old.prompt_tokens / 100 * 10 + (old.new_tokens - 1) * 1)
    b = ((new.new_tokens - 1) * 0.5) / 2 / (new.prompt_tokens / 100 * 10 + (new.new_tokens - 1) * 1)
    for per in ("question", "token"):
        seen = speedup(found, "demo", per)
        assert (seen.low, seen.high) == (pytest.approx((1 - a) / (1 + b)), pytest.approx((1 + a) / (1 - b)))


def test_throughput_has_its_own_timings(run: RunRecord) -> None:
    found = with_latency(run, timed(1, 9, 1, 9), timed(1, 9, 1, 9), throughput=2.0)
    assert speedup(found, "throughput") == Speedup(2.0), "no spread of it was recorded"
    many = {"original": timed(10, 0, 1, 0), "final": timed(5, 1, 1, 0.1)}
    found = summed(found, latency=found.summary["latency"] | {"batched": many})
    b = (1 + 10 * 0.1) / 2 / (5 + 10)
    assert speedup(found, "throughput") == Speedup(2.0, pytest.approx(2 / (1 + b)), pytest.approx(2 / (1 - b)), 5)


def test_what_is_not_known_is_not_judged(run: RunRecord) -> None:
    assert speedup(run, "nothing") is None and speedup(run, "demo", "nothing") is None
    assert speedup(summed(run, bare=True, speedup={"decode": 1.2}), "decode") == Speedup(1.2)
    once = with_latency(run, timed(2, 0, 2, 0, repeats=1), timed(1, 0, 1, 0, repeats=1), decode=2.0)
    assert speedup(once, "decode").text() == "2.00× (timed once: spread unknown)"
    wild = with_latency(run, timed(2, 0, 2, 0), timed(1, 0, 1, 3), decode=2.0)
    assert speedup(wild, "decode").high == inf


def test_texts() -> None:
    few = Speedup(1.43, 1.1, 1.9, 2)  # the spread of two timings is none
    assert (few.text(), few.short()) == ("1.43× (timed 2 times: spread unknown)", "≈ 1.43×")
    assert Speedup(1.27).text() == Speedup(1.27).short() == "1.27×"
    assert Speedup(1.27, 1.2, 1.3, 5).text() == "1.27× (1.20–1.30)"
    noise = Speedup(1.05, 0.9, 1.2, 5)
    assert (noise.text(), noise.short()) == ("1.05× (0.90–1.20, not distinguishable from 1)", "≈ 1.05×")


def repeats(prefill: list[float], decode: list[float], **more: Any) -> dict[str, Any]:
    return timed(9, 9, 9, 9, prefill_each_ms=prefill, decode_each_ms=decode, **more)  # medians and spreads are not read


def test_repeats_are_compared_one_with_one(run: RunRecord) -> None:
    """The machine halves its speed midway: medians of each model would say anything, the pairs say 2."""
    slow = [1.0] * 4 + [2.0] * 4
    found = with_latency(run, repeats([20 * s for s in slow], [4 * s for s in slow]), repeats([10 * s for s in slow], [2 * s for s in slow]),
                         prefill=5.0, decode=5.0, demo={"question": 5.0, "token": 5.0})  # fmt: skip
    for keys in (("prefill",), ("decode",)):
        assert speedup(found, *keys) == Speedup(pytest.approx(2.0), pytest.approx(2.0), pytest.approx(2.0), 8)
    old, new = (s.eval_of("demo") for s in (run.original, run.final))
    a = old.prompt_tokens / 100 * 20 + (old.new_tokens - 1) * 4
    b = new.prompt_tokens / 100 * 10 + (new.new_tokens - 1) * 2
    assert speedup(found, "demo", "question").value == pytest.approx(a / b)
    assert speedup(found, "demo", "token").value == pytest.approx(a / b * new.new_tokens / old.new_tokens)
    few = with_latency(
        run, repeats([2.0] * 6, [1.0] * 6, repeats=6), repeats([1.0] * 6, [1.0] * 6, repeats=6), prefill=2.0
    )
    assert speedup(few, "prefill").text() == "2.00× (timed 6 times: spread unknown)"


def test_what_the_summary_keeps_is_what_the_report_shows(run: RunRecord) -> None:
    each = repeats([20.0, 30.0, 10.0] * 3, [4.0, 6.0, 2.0] * 3), repeats([10.0, 20.0, 9.0] * 3, [2.0, 3.0, 2.0] * 3)
    latency = Timings.model_validate(
        {"original": each[0], "final": each[1], "batched": {"original": each[0], "final": each[1]}}
    )
    kept = speedups(latency, run.original, run.final)
    assert {"prefill", "decode", "throughput", "demo"} <= kept.keys()
    found = with_latency(run, *each, **kept)
    assert speedup(found, "prefill").value == kept["prefill"] == pytest.approx(1.5)
    assert speedup(found, "demo", "question").value == kept["demo"].question
    assert speedups(Timings(), run.original, run.final) == {}


def test_answers_that_ran_into_the_limit_are_said_beside_a_question(run: RunRecord) -> None:
    final = run.final.eval_of("demo").model_copy(update={"truncated": 18, "n": 20})
    cut = replace(run, stages=(run.final.model_copy(update={"evals": (final,)}),), summary=run.summary)
    found = with_latency(cut, timed(10, 0, 1, 0), timed(10, 0, 1, 0), demo={"question": 0.22, "token": 1.0}, decode=1.0)
    assert cut.final is not None
    text = speedup(found, "demo", "question").text()
    assert "18 of 20 of the compacted model" in text and "length limit" in text
    assert "limit" not in speedup(found, "demo", "token").text() + speedup(found, "decode").text()
