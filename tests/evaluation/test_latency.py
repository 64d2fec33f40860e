"""Latency is measured in turns, on the same prompt, and summarised by medians."""

from __future__ import annotations

import pytest
import torch
from tests.tiny import tiny_model

from prunetune.errors import RecipeError
from prunetune.evaluation import latency
from prunetune.evaluation.latency import Latency, measure, time_once


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


def test_models_alternate_and_medians_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = tiny_model("llama", seed=1), tiny_model("llama", seed=2)
    calls: list[str] = []
    prompts: list[torch.Tensor] = []
    # The warm-up is slow, and so is one repeat of `a`: neither may count.
    times = {"a": iter([9.0, 1.0, 1.2, 50.0]), "b": iter([9.0, 2.0, 2.0, 2.0])}

    def fake(model: object, prompt: torch.Tensor, new_tokens: int) -> tuple[float, float]:
        name = "a" if model is a else "b"
        calls.append(name)
        prompts.append(prompt)
        seconds = next(times[name])
        return seconds, seconds * (new_tokens - 1)

    monkeypatch.setattr(latency, "time_once", fake)
    found = measure({"a": a, "b": b}, prompt_tokens=7, new_tokens=5, repeats=3)
    assert "".join(calls) == "abbaabba"
    assert all(torch.equal(p, prompts[0]) for p in prompts)
    assert (found["a"].prefill_ms, found["a"].decode_ms_per_token) == (1200, 1200)
    assert (found["b"].prefill_ms, found["b"].prefill_iqr_ms) == (2000, 0)
    assert found["a"].prefill_iqr_ms > 0


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
