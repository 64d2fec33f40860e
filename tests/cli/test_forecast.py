"""Forecasts against sums done by hand, the paper's figures beside them, and nothing fetched or imported for it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from tests.models.test_cost import GEMMA2_9B, LLAMA3_8B, QWEN25_7B, TABLE_6

from prunetune.cli.forecast import PAPER, forecast, tokens_of
from prunetune.cli.preview import preview
from prunetune.errors import UnknownName
from prunetune.models.cost import cost_of
from prunetune.models.folders import DEMO_MODEL, config_values
from prunetune.recipe.schema import Recipe, shipped
from prunetune.tune.launch import devices_of
from prunetune.tune.methods import Cpt, Distill, Grpo, Local, Lora
from prunetune.tune.methods.base import rate_for


def test_the_papers_recipes_are_there():
    assert set(PAPER) <= set(shipped())
    assert {n for n in shipped() if n.startswith("paper/")} <= set(PAPER)


def test_llama3_by_hand():
    value, text = forecast(Recipe.read("paper/llama3-8b"), "paper/llama3-8b")
    steps = value["steps"]
    assert (steps[0]["paper_size"], steps[1]["paper_size"], steps[-1]["paper_size"]) == ("8B", None, "5B")
    hours = 0.0
    for s in steps[1:]:
        cost = cost_of(LLAMA3_8B, shape={"layers": s["depth"], "neurons": s["width"]})
        n, products = cost.params, cost.params - 128256 * 4096  # the embedding look-up is no product
        attention = 4 * s["depth"] * 4096 * 400  # each of 400 tokens against all, keys and values
        (m,) = s["recover"]
        assert m["tokens"] == 100_000 * 400
        assert m["hours"] == pytest.approx(40e6 * 3 * (2 * products + attention) / (4 * 312e12 * 0.35) / 3600, rel=1e-4)
        assert m["device_bytes"] == pytest.approx(2 * n + 14 * n / 4 + cost.activation_bytes(1024))
        hours += m["hours"]
    assert value["hours"] == pytest.approx(hours)
    assert 6 < hours < 12 == value["paper_hours"]
    assert value["device_bytes"] == steps[1]["recover"][0]["device_bytes"] < 80e9
    for said in ("4 x A100-80G", "the paper reports 12 h", "8B", "5B", "35%", "400 tokens a sample"):
        assert said in text


def test_gemma2_has_table_6_beside_every_round():
    value, text = forecast(Recipe.read("paper/gemma2-9b"), "paper/gemma2-9b")
    for step, billions in zip(value["steps"], TABLE_6, strict=True):
        assert step["paper_size"] == f"{billions:.1f}B"
        assert abs(step["params"] / 1e9 - billions) < 0.25
    assert text.count("B  ") and "6.6B" in text


def test_reinforcement_learning_counts_every_answer():
    value, text = forecast(Recipe.read("paper/qwen2.5-7b-rl"), "paper/qwen2.5-7b-rl")
    method = value["steps"][1]["recover"][0]
    assert method["tokens"] == 1160 * 8 * (120 + 600)
    step = value["steps"][1]
    forward = cost_of(QWEN25_7B, shape={"layers": step["depth"], "neurons": step["width"]}).train_flops(
        method["tokens"], 720, passes=1
    )
    assert method["hours"] == pytest.approx(forward * (4 / 0.35 + 1 / 0.05) / (8 * 989e12) / 3600)
    assert "8 x H200" in text and "sampled at 5%" in text and "one pass" in text
    assert "allows 3,000: up to 5 times as long" in text and "sampler's own memory comes on top" in text


def test_tokens_of_budgets():
    assert tokens_of(Cpt(tokens=1000), 4) == 250
    assert tokens_of(Cpt(tokens=1000, per="round"), 4) == 1000
    assert tokens_of(Cpt(samples=10, max_length=100), 2) == 500
    assert tokens_of(Cpt(samples=10, tokens=50, max_length=100), 1) == 50
    assert tokens_of(Cpt(samples=10, max_length=100, epochs=3), 1) == 3000
    assert tokens_of(Cpt(), 3) is None
    assert tokens_of(Local(tokens=1000, epochs=3), 4) == 3000  # of each round
    assert tokens_of(Local(tokens=1000, epochs=3, steps=2, batch_size=4, max_length=100), 4) == 2 * 4 * 100
    assert tokens_of(Grpo(samples=10, max_new_tokens=80), 1) == 10 * 8 * 200


def test_local_recovery_needs_one_layers_memory_and_no_head():
    recipe = Recipe.read("paper/llama3-8b").changed(recover=[Local(tokens=100_000, epochs=1), Cpt(tokens=100_000)])
    recipe = recipe.changed(prune=recipe.prune.model_copy(update={"rounds": 1, "step": None}))
    local, cpt = forecast(recipe)[0]["steps"][1]["recover"]
    layer = 16 * 230_000_000  # of 32, smaller ones
    assert layer / 2 < local["device_bytes"] < 4 * layer
    assert 0.7 < local["hours"] / (8 * cpt["hours"]) < 1  # on one device; a head less


def test_calibration_of_an_8b_shape_without_weights():
    """Tokens, bytes and where hidden states lie."""
    recipe = Recipe.read("paper/llama3-8b").changed(compensate="least-squares")
    auto = recipe.changed(score=recipe.score.model_copy(update={"samples": "auto", "memory": "100GB"}))
    value, text = forecast(auto)
    width = value["steps"][-1]["width"]
    found = value["calibration"]
    assert found["tokens"] == pytest.approx(100 * width / 0.75, abs=400) and found["width"] == width
    layers_go = value["steps"][-1]["depth"] < 32
    assert found["bytes"] == found["tokens"] * 4096 * 2 * 2 * (2 if layers_go else 1)
    assert found["place"] == ("device" if found["bytes"] <= 20 << 30 else "host memory")
    assert f"{found['samples']:,} sequences, about {found['tokens']:,} tokens" in text and "hidden states" in text
    less = auto.changed(score=auto.score.model_copy(update={"memory": "2GB"}))
    assert forecast(less)[0]["calibration"]["bytes"] <= 2 * 10**9 and "all that score.memory holds" in forecast(less)[1]


def test_devices_of_launchers(tmp_path):
    assert devices_of(None) == 1
    assert devices_of("zero2") == 8  # as the shipped config says
    assert devices_of("zero2 --num_processes 4") == devices_of("--num_processes=4") == 4
    with pytest.raises(UnknownName, match="zero2"):
        devices_of("zero4")


def test_other_recipes_have_no_column_of_the_paper():
    value, text = forecast(Recipe.read("demo"))
    assert "paper" not in text
    assert value["hardware"] == {"gpu": "A100-80G", "gpus": 1}
    assert value["hours"] < 0.01
    assert all(s["paper_size"] is None for s in value["steps"])


def test_budgets_that_only_the_data_know_and_teachers():
    recipe = Recipe.read("demo").changed(recover=[Cpt(), Distill(samples=100, lora=Lora())])
    value, text = forecast(recipe)
    assert value["hours"] is None
    assert "all data" in text and "adapters" in text
    cpt, distill = value["steps"][1]["recover"]
    assert cpt["hours"] is None
    assert distill["hours"] > 0


def test_steps_that_are_measured_have_no_forecast():
    recipe = Recipe.read("demo")
    value = {**recipe.model_dump(mode="json"), "budget": "equal", "prune": {"sigma_neuron": 0.1, "max_rounds": 3}}
    changed = Recipe.parse(value)
    value, text = forecast(changed)
    assert "unknown" in text and "hours" not in value


def test_a_run_by_damage_is_forecast_as_one_round_at_the_final_shape():
    recipe = Recipe.read("demo")
    damage = {
        "budget": "damage",
        "compensate": "least-squares",
        "prune": {"target": 0.5, "rounds": "auto", "layers": 0},
    }
    changed = Recipe.parse({**recipe.model_dump(mode="json"), **damage, "recover": [{"type": "cpt", "tokens": 10_000}]})
    value, text = forecast(changed)
    assert [s["step"] for s in value["steps"]] == ["original", "target"]
    last = value["steps"][-1]
    assert last["params_ratio"] <= 0.5 and last["recover"][0]["tokens"] == 10_000
    cost = cost_of(config_values(DEMO_MODEL), shape={"layers": last["depth"], "neurons": last["width"]})
    assert value["hours"] == pytest.approx(cost.train_flops(10_000, 400) / (312e12 * 0.35) / 3600)
    assert "unknown" in text and "one round" in text


def test_a_learning_rate_that_is_left_to_us_is_told():
    value = {"model": "demo", "data": [{"type": "demo", "size": 400}], "prune": {"target": 0.6}}
    auto = {**value, "recover": [{"type": "cpt", "tokens": 1000, "batch_size": 2}]}
    parameters = cost_of(config_values(DEMO_MODEL), shape={"neurons": 376}).params
    _, text = forecast(Recipe.parse(auto))
    assert f"learning rate: cpt {rate_for(parameters, 2):.1e}, by the parameters left and 2 sequences a step" in text
    given = {**value, "recover": [{"type": "cpt", "tokens": 1000, "learning_rate": 1e-4}]}
    assert "learning rate" not in forecast(Recipe.parse(given))[1]


def test_within_a_time_the_recipe_s_tokens_are_not_told_and_no_hours_of_another_machine_beside_minutes_of_this_one():
    recipe = Recipe.parse(
        {"model": "demo", "data": [{"type": "demo", "size": 900}], "prune": {"target": 0.5}, "budget": "10min"}
    )
    value, text = forecast(recipe, measured=True)
    assert "what fits" in text and "20.0 M" not in text and value["hours"] is None
    whole, words = forecast(recipe.changed(within=None), measured=True)
    assert "20.0 M" in words and "hours" not in words and "peak" not in words and whole["hours"] is not None
    assert "hours" in forecast(recipe.changed(within=None))[1]


def test_the_command_needs_neither_hub_nor_torch():
    code = (
        "import sys; sys.argv = ['prunetune', 'run', 'paper/gemma2-9b', '--dry-run', '--json']\n"
        "import atexit; heavy = ('torch', 'transformers', 'datasets')\n"
        "atexit.register(lambda: print([m for m in heavy if m in sys.modules], file=sys.stderr))\n"
        "from prunetune.cli.app import main; main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    value = json.loads(done.stdout)
    assert value["steps"][-1]["params"] == cost_of(GEMMA2_9B, shape={"neurons": 6336}).params
    assert value["assumptions"]
    assert done.stderr.strip() == "[]"


def test_what_cannot_be_known_before_says_why():
    value = {"model": "demo", "data": [{"type": "demo", "size": 500}], "prune": {"target": 0.6}}
    text = preview(Recipe.parse(value))[1]
    assert "rounds: unknown" in text and "; the held-out loss that a cut adds decides" in text
    kept = preview(Recipe.parse({**value, "keep": 0.95, "evaluate": {"tasks": [{"name": "demo"}]}}))[1]
    assert "; what each try keeps of the accuracy decides" in kept
