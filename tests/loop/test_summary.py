"""Ratios and speed-ups by hand-computed numbers."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from tests.tiny import tiny_config
from tests.tiny_run import tiny_recipe

from prunetune.data.stream import Example
from prunetune.loop.measure import per_question
from prunetune.loop.summary import _asked, _reached, accuracy, environment, leaks
from prunetune.models.cost import cost_of
from prunetune.report.speed import speedups
from prunetune.runs.records import EvalRecord, StageRecord
from prunetune.runs.summary import TaskSpeedup, Timing, Timings
from prunetune.tasks.registry import TaskConfig, build_task


def record(value, new_tokens=11.0, n=10, task="t"):
    e = EvalRecord(task=task, value=value, stderr=0.1, n=n, prompt_tokens=20.0, new_tokens=new_tokens)
    return StageRecord(index=0, name="original", evals=(e,))


def test_accuracy_pairs_tasks_and_takes_the_smaller_n():
    other = record(0.6, n=7)
    found = accuracy(record(0.8), other.model_copy(update={"evals": (*other.evals, *record(1, task="other").evals)}))
    assert {t: a.to_json() for t, a in found.items()} == {
        "t": {"original": 0.8, "final": 0.6, "original_stderr": 0.1, "final_stderr": 0.1, "n": 7}
    }


def test_speed_up_tells_faster_from_shorter():
    """The same speed a token, half the tokens: twice as fast a question (nearly), not a bit faster a token."""
    same = Timing(prefill_ms=10.0, decode_ms_per_token=10.0, prompt_tokens=20)
    found = speedups(Timings(original=same, final=same), record(1, 11.0), record(1, 6.0))
    assert found["prefill"] == found["decode"] == 1.0
    assert found["t"].question == pytest.approx(110 / 60)
    assert found["t"].token == pytest.approx(1.0)
    fast = Timing(prefill_ms=5.0, decode_ms_per_token=5.0, prompt_tokens=20)
    found = speedups(Timings(original=same, final=fast), record(1), record(1))
    assert found["t"] == TaskSpeedup(question=2.0, token=2.0)
    assert speedups(Timings(), record(1), record(1)) == {}


@pytest.mark.parametrize(
    ("target", "reached"),
    [(0.75, 0.5), (123456, 50), ({"width": 40}, {"width": 24, "depth": 3}), ({"depth": 3}, {"width": 24, "depth": 3})],
)
def test_what_was_asked_and_reached_is_in_the_targets_own_unit(tmp_path, target, reached):
    recipe = tiny_recipe(tmp_path, prune={"target": target})
    whole, half = (StageRecord(index=0, name="s", depth=3, width=24, cost={"params": n}) for n in (100, 50))
    run = SimpleNamespace(original=whole)
    assert _asked(recipe) == ({"width": None, "depth": None} | target if isinstance(target, dict) else target)
    assert _reached(recipe, run, half, None) == reached
    threshold = tiny_recipe(tmp_path, prune={"sigma_neuron": 0.1, "max_rounds": 2})
    assert _asked(threshold) is _reached(threshold, run, half, None) is None


def test_flops_a_question(tmp_path):
    cost = cost_of(tiny_config("llama"))
    (tmp_path / "t.jsonl").write_text(
        "".join(json.dumps({"prompt_tokens": p, "new_tokens": n}) + "\n" for p, n in ((10, 5), (20, 0)))
    )
    assert per_question(cost, tmp_path / "t.jsonl") == (cost.flops(10, 5).total + cost.flops(20, 1).total) / 2
    assert per_question(cost, tmp_path / "none.jsonl") is None


def test_leaks(tmp_path):
    (tmp_path / "r.jsonl").write_text('{"question": "2+2", "answer": "4"}\n{"question": "3+5", "answer": "8"}\n')
    task = build_task(TaskConfig(name="t", path=str(tmp_path / "r.jsonl"), verifier="number"))
    found = leaks([[Example("2+2", "", "s")], [Example("9+9", "", "s")]], [task])["t"]
    assert (found.exact, found.digits, found.questions) == (1, 2, 2)


def test_environment_names_versions():
    assert {"python", "torch", "transformers", "prunetune", "threads"} <= set(environment())
