from __future__ import annotations

from pathlib import Path

import pytest
from tests.fake_run import config, fake_run

from prunetune.evaluation.samples import Sample
from prunetune.models.cost import cost_of
from prunetune.report.pairs import read_samples
from prunetune.report.question_cost import question_cost, stage_cost
from prunetune.runs.reading import read_run


def _sample(prompt: int | None, new: int | None) -> Sample:
    return Sample(id="1", question="q", output="a", correct=True, prompt_tokens=prompt, new_tokens=new)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return fake_run(tmp_path_factory.mktemp("run"))


def test_the_mean_is_over_questions_not_of_mean_lengths() -> None:
    cost = cost_of(config(2, 32))
    found = question_cost(cost, [_sample(10, 1), _sample(30, 100), _sample(30, 100)])
    assert found is not None
    one, two = cost.flops(10, 1), cost.flops(30, 100)
    assert found.prefill == pytest.approx((one.prefill + 2 * two.prefill) / 3)
    assert found.decode == pytest.approx((one.decode + 2 * two.decode) / 3)
    assert one.decode == 0, "the prefill yields the first token"
    assert (found.n, found.prompt_tokens, found.new_tokens) == (3, pytest.approx(70 / 3), 67.0)
    assert found.total == found.prefill + found.decode
    assert found.per_new_token == pytest.approx(found.total / 67)


def test_a_shorter_answer_costs_less_a_question_but_not_a_token() -> None:
    cost = cost_of(config(2, 32))
    short, long = (question_cost(cost, [_sample(20, n)]) for n in (10, 200))
    assert short is not None
    assert long is not None
    assert short.total < long.total
    assert short.per_new_token > long.per_new_token


def test_an_empty_answer_still_costs_its_prompt() -> None:
    cost = cost_of(config(2, 32))
    found = question_cost(cost, [_sample(20, 0)])
    assert found is not None
    assert found.total == cost.flops(20, 1).total


@pytest.mark.parametrize("samples", [[], [_sample(1, None)], [_sample(10, 5), _sample(None, 5)]])
def test_unknown_lengths_are_no_cost(samples) -> None:
    assert question_cost(cost_of(config(2, 32)), samples) is None


def test_it_equals_what_the_run_recorded(folder) -> None:
    run = read_run(folder)
    for stage in run.measured:
        cost = stage_cost(run, stage)
        assert cost is not None
        found = question_cost(cost, read_samples(run.folder(stage), "demo").values())
        assert found is not None
        assert found.total == pytest.approx(stage.cost.flops["demo"])


def test_a_config_of_another_model_is_not_used(folder) -> None:
    run = read_run(folder)
    assert run.final is not None
    other = run.final.model_copy(update={"cost": run.final.cost.model_copy(update={"params": 1})})
    assert stage_cost(run, other) is None
