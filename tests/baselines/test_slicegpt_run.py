"""A SliceGPT run beside the loop's: the same sequences, the same tokens, the same questions; resumed, it repeats itself."""

from __future__ import annotations

import json

import pytest
import torch
from tests.tiny_run import tiny_recipe

from prunetune.baselines.sliced_cost import sliced_cost
from prunetune.baselines.slicegpt import load_sliced
from prunetune.baselines.slicegpt_run import slicegpt_run
from prunetune.common.progress import Watch
from prunetune.errors import RecipeError, UnsupportedModel
from prunetune.loop.loop import prune_tune_loop
from prunetune.models.folders import load_config
from prunetune.recipe.schema import Recipe
from prunetune.report.compare import compare
from prunetune.schedule.sizes import Sizes
from prunetune.schedule.steps import plan_ahead

QUIET = Watch(quiet=True)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    at = tmp_path_factory.mktemp("slice")
    recipe = tiny_recipe(at)
    loop = prune_tune_loop(recipe, at / "loop", QUIET)
    return at, recipe, loop, slicegpt_run(recipe, at / "slice", QUIET, align=4)


def test_the_same_data_tokens_and_questions_as_the_loop(done):
    at, recipe, loop, sliced = done
    assert sliced["final"]["samples"] == [loop["stages"][0]["samples"][0], loop["stages"][-1]["samples"][1]]
    assert sliced["recovery_tokens"] == loop["recovery_tokens"] > 0
    assert sliced["params_ratio"] <= loop["params_ratio"]
    assert sliced["original"]["evals"][0]["value"] == loop["original"]["evals"][0]["value"]
    asked = [
        {json.loads(line)["id"] for line in next((at / name).glob("0*/eval/sums.jsonl")).read_text().splitlines()}
        for name in ("loop", "slice")
    ]
    assert len(asked[1]) == recipe.evaluate.tasks[0].n
    assert asked[0] <= asked[1]


def test_the_record_is_of_the_model_in_the_folder(done):
    at, _, _, sliced = done
    stage = sliced["final"]
    model = load_sliced(at / "slice" / stage["name"] / "tuned")
    kept = model.config.hidden_size
    assert stage["cost"]["params"] == sum(p.numel() for p in model.parameters())
    assert stage["cost"] == {**sliced_cost(load_config(at / "model"), kept).to_json(), "flops": stage["cost"]["flops"]}
    assert stage["held_out_loss"] < stage["pruned_loss"]  # recovery helps even here
    assert "not a stock architecture" in stage["verdict"]["why"]
    assert "not a stock architecture" in sliced["artefact"]
    assert not (at / "slice" / "final").exists()
    assert set(sliced["speedup"]) == set(done[2]["speedup"]) >= {"prefill", "decode"}


def test_compare_reads_both(done):
    at = done[0]
    table = compare([at / "loop", at / "slice"]).to_markdown()
    assert "slice" in table


def test_a_second_start_makes_nothing_again(done):
    at, recipe, _, sliced = done
    before = {p: p.stat().st_mtime_ns for p in (at / "slice").rglob("*.safetensors")}
    again = slicegpt_run(recipe, at / "slice", QUIET, align=4)
    assert again["final"] == sliced["final"]
    assert {p: p.stat().st_mtime_ns for p in (at / "slice").rglob("*.safetensors")} == before


def test_killed_between_recovery_and_measuring_it_ends_with_the_same_weights(done, tmp_path, monkeypatch):
    _, recipe, _, sliced = done
    with monkeypatch.context() as m:
        m.setattr("prunetune.loop.measure.per_question", lambda *a: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            slicegpt_run(recipe, tmp_path / "slice", QUIET, align=4)
    again = slicegpt_run(recipe, tmp_path / "slice", QUIET, align=4)
    assert again["final"]["model_sha"] == sliced["final"]["model_sha"]
    assert again["final"]["evals"][0]["value"] == sliced["final"]["evals"][0]["value"]


def test_two_methods_share_the_stream_and_adapters_are_merged(tmp_path):
    small = {"type": "cpt", "samples": 16, "batch_size": 8, "learning_rate": 1e-3, "max_length": 64}
    recipe = tiny_recipe(
        tmp_path,
        "qwen3",
        recover=[{**small, "lora": {"rank": 2}}, {**small, "type": "distill"}],
        evaluate={"tasks": [], "latency_repeats": 0},
    )
    summary = slicegpt_run(recipe, tmp_path / "out", QUIET, align=4)
    assert summary["final"]["samples"] == [12, 12 + 32]
    assert [t["method"] for t in summary["final"]["tune"]] == ["cpt", "distill"]
    names = load_sliced(tmp_path / "out" / summary["final"]["name"] / "tuned").state_dict()
    assert not [n for n in names if "lora" in n]
    assert all(torch.isfinite(t).all() for t in names.values())


def test_budgets_of_a_round_count_for_all_rounds(tmp_path):
    method = {"type": "cpt", "samples": 8, "per": "round", "batch_size": 8, "learning_rate": 1e-3, "max_length": 64}
    recipe = tiny_recipe(tmp_path, recover=[method], evaluate={"tasks": [], "latency_repeats": 0})
    rounds = len(plan_ahead(recipe.prune, Sizes.of(load_config(tmp_path / "model"))))
    summary = slicegpt_run(recipe, tmp_path / "out", QUIET, align=4)
    assert summary["final"]["samples"][1] - summary["final"]["samples"][0] == 8 * rounds > 8


def test_what_it_cannot_do_is_said_before_any_work(tmp_path):
    recipe = tiny_recipe(tmp_path)
    value = recipe.model_dump(mode="json")
    with pytest.raises(RecipeError, match="size to stay within"):
        slicegpt_run(Recipe.parse({**value, "prune": {"sigma_neuron": 0.1, "max_rounds": 2}}), tmp_path / "o", QUIET)
    with pytest.raises(RecipeError, match="launcher"):
        slicegpt_run(recipe.changed(launcher="ddp"), tmp_path / "o", QUIET)
    (tmp_path / "g").mkdir()
    with pytest.raises(UnsupportedModel, match="gemma2"):
        slicegpt_run(tiny_recipe(tmp_path / "g", "gemma2"), tmp_path / "o", QUIET)
    assert not list(tmp_path.glob("o/*/stage.json"))


def test_reinforcement_learning_takes_it_too(tmp_path):
    """The KL reference is the sliced model itself (`policy.check_reference`), and the last weights differ from it."""
    method = {"type": "grpo", "samples": 8, "batch_size": 4, "group": 4, "max_new_tokens": 4, "learning_rate": 1e-2}
    recipe = tiny_recipe(tmp_path, recover=[method])
    summary = slicegpt_run(recipe, tmp_path / "out", QUIET, align=4)
    tuned = summary["final"]["tune"][0]
    assert (tuned["method"], tuned["steps"], tuned["log"][0]["kl"]) == ("grpo", 2, pytest.approx(0, abs=1e-5))
    assert summary["final"]["pruned_loss"] != pytest.approx(summary["final"]["held_out_loss"], abs=1e-6)
