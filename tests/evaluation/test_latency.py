"""Latency is measured in turns, on the same prompt, and summarised by medians."""

from __future__ import annotations

import math
import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.tiny import tiny_model

from prunetune.common.stats import paired_ratio
from prunetune.errors import NotFinite, RecipeError
from prunetune.evaluation import latency
from prunetune.evaluation.latency import LEAST, Latency, measure, time_once


def test_positive_and_complete() -> None:
    ticks: list[tuple[int, int]] = []
    found = measure(
        {"whole": tiny_model("llama"), "cut": tiny_model("gemma2", intermediate_size=16)},
        prompt_tokens=20, new_tokens=4, repeats=3, progress=lambda done, total: ticks.append((done, total)),
    )  # fmt: skip
    assert list(found) == ["whole", "cut"]
    for x in found.values():
        assert x.prefill_ms > 0
        assert x.decode_ms_per_token > 0
        assert (x.prompt_tokens, x.new_tokens, x.repeats) == (20, 4, 3)
        assert x.question_ms == pytest.approx(x.prefill_ms + 3 * x.decode_ms_per_token)
        assert x.to_json()["ms_per_new_token"] == pytest.approx(x.question_ms / 4)
    assert ticks == [(i, 8) for i in range(1, 9)]


def test_each_repeat_times_both_in_an_order_by_lot_and_medians_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = tiny_model("llama", seed=1), tiny_model("llama", seed=2)
    calls: list[str] = []
    prompts: list[torch.Tensor] = []
    # The warm-up is slow, and so is one repeat of `a`: neither may count.
    times = {"a": iter([9.0, 50.0, *[1.0] * 19]), "b": iter([9.0, *[2.0] * 20])}

    def fake(model: object, prompt: torch.Tensor, new_tokens: int) -> tuple[float, float]:
        name = "a" if model is a else "b"
        calls.append(name)
        prompts.append(prompt)
        seconds = next(times[name])
        return seconds, seconds * (new_tokens - 1)

    monkeypatch.setattr(latency, "time_once", fake)
    found = measure({"a": a, "b": b}, prompt_tokens=7, new_tokens=5, repeats=20)
    pairs = {"".join(calls[i : i + 2]) for i in range(0, len(calls), 2)}
    assert len(calls) == 42 and pairs == {"ab", "ba"}, "both orders, with a chance of one in a million to be missed"
    assert all(torch.equal(p, prompts[0]) for p in prompts)
    assert (found["a"].prefill_ms, found["a"].decode_ms_per_token) == (1000, 1000)
    assert (found["b"].prefill_ms, found["b"].prefill_iqr_ms) == (2000, 0)
    assert found["a"].prefill_each_ms == (50000.0, *[1000.0] * 19) and len(found["b"].decode_each_ms) == 20
    assert len(found["a"].load) == 2 and found["a"].load == found["b"].load


class Clock:
    """A machine whose speed wanders: AR(1) drift, other work in bursts, and now and then a timing ten times as long."""

    def __init__(self, seed: int, ratio: float = 1.0) -> None:
        self.lot, self.ratio = random.Random(seed), ratio
        self.drift, self.burst = self.lot.gauss(0, 0.5), 0

    def __call__(self, model: object, prompt: object, new_tokens: int) -> tuple[float, float]:
        lot = self.lot
        self.drift = 0.95 * self.drift + lot.gauss(0, 0.15)
        self.burst = self.burst - 1 if self.burst else (lot.randrange(1, 6) if lot.random() < 0.1 else 0)
        slow = math.exp(self.drift) * (2.5 if self.burst else 1.0) * (10.0 if lot.random() < 0.02 else 1.0)
        whole = 1.0 if getattr(model, "whole") else 1.0 / self.ratio  # noqa: B009 - a stand-in
        return (slow * whole * math.exp(lot.gauss(0, 0.03)), slow * whole * math.exp(lot.gauss(0, 0.03)))


def stand_ins() -> dict[str, Any]:
    config, device = SimpleNamespace(vocab_size=100), torch.device("cpu")
    return {n: SimpleNamespace(config=config, device=device, whole=n == "whole") for n in ("whole", "cut")}


@pytest.mark.parametrize("ratio", [1.0, 1.6])
@pytest.mark.parametrize("settle", [True, False])
def test_the_interval_holds_the_truth_on_a_noisy_machine(
    ratio: float, settle: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """95 % is promised, whatever the noise; 90 % of 300 is what a right interval falls short of once in ten thousand."""
    held, repeats, runs = 0, set(), 300
    for seed in range(runs):
        monkeypatch.setattr(latency, "time_once", Clock(seed, ratio))
        found = measure(stand_ins(), prompt_tokens=4, new_tokens=2, repeats=12, settle=settle)
        for part in ("prefill_each_ms", "decode_each_ms"):
            r = paired_ratio(getattr(found["whole"], part), getattr(found["cut"], part))
            held += r.low <= ratio <= r.high
        repeats.add(found["cut"].repeats)
    assert held >= 0.9 * 2 * runs, f"{held} of {2 * runs}"
    assert repeats <= {12, 24, 48} if settle else repeats == {12}


def test_repeats_go_on_until_the_ratio_is_known_or_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(noise: float, patience: float = 60.0) -> int:
        lot = random.Random(0)
        monkeypatch.setattr(latency, "PATIENCE_S", patience)
        monkeypatch.setattr(latency, "time_once", lambda *_: (math.exp(lot.gauss(0, noise)),) * 2)
        return measure(stand_ins(), prompt_tokens=4, new_tokens=2, repeats=5, settle=True)["cut"].repeats

    assert run(0.001) == LEAST, "known at the first look"
    assert run(1.0) == 4 * LEAST, "twice as many, and twice as many again"
    assert run(1.0, patience=0.0) == LEAST
    assert measure(stand_ins(), prompt_tokens=4, new_tokens=2, repeats=5, settle=True, most=0.0)["cut"].repeats == 1


def test_a_model_that_gives_no_numbers_has_no_speed() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[0, 0] = math.nan
    with pytest.raises(NotFinite, match="layer 2"):
        measure({"a": model}, prompt_tokens=4, new_tokens=2, repeats=1)


def test_exactly_the_tokens_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama", eos_token_id=list(range(104)))  # every token would end a generation
    lengths: list[int] = []
    model.register_forward_pre_hook(lambda _m, _a, kw: lengths.append(kw["input_ids"].shape[1]), with_kwargs=True)
    time_once(model, torch.randint(3, 100, (1, 9)), 6)
    assert lengths == [9, 1, 1, 1, 1, 1]


def test_a_batch_is_timed_as_one() -> None:
    model, shapes = tiny_model("llama"), []
    model.register_forward_pre_hook(lambda _m, _a, kw: shapes.append(tuple(kw["input_ids"].shape)), with_kwargs=True)
    found = measure({"a": model}, prompt_tokens=6, new_tokens=3, batch=4, repeats=2, warmup=0)["a"]
    assert shapes == [(4, 6), (4, 1), (4, 1)] * 2
    assert found.batch == 4
    assert found.tokens_per_s == pytest.approx(4 * 3 / (found.question_ms / 1000)) == found.to_json()["tokens_per_s"]


@pytest.mark.parametrize("wrong", [{"prompt_tokens": 0}, {"new_tokens": 1}, {"batch": 0}, {"repeats": 0}])
def test_too_small_to_time(wrong: dict[str, int]) -> None:
    with pytest.raises(RecipeError, match=next(iter(wrong))):
        measure({"a": tiny_model("llama")}, **wrong)


def test_one_repeat_has_no_spread() -> None:
    found = measure({"a": tiny_model("llama")}, prompt_tokens=4, new_tokens=2, repeats=1)["a"]
    assert isinstance(found, Latency)
    assert found.prefill_iqr_ms == found.decode_iqr_ms == 0
