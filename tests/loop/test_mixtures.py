"""The loop on a mixture of experts: two rounds on the width of its experts, recovered by cpt with the router's loss."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from safetensors.torch import load_file
from tests.loop.test_calibrated import Said
from tests.tiny import tiny_folder
from tests.tiny_run import rows, tiny_recipe
from transformers import AutoModelForCausalLM

from prunetune.common.files import read_json
from prunetune.common.progress import Watch
from prunetune.errors import UnsupportedModel
from prunetune.loop.context import prepare
from prunetune.loop.loop import prune_tune_loop
from prunetune.loop.pacing.memory import needed
from prunetune.models.cost import active_params, cost_of, moments_bytes
from prunetune.pruning.apply import apply_on_disk
from prunetune.pruning.patch import Patch
from prunetune.pruning.plan import PrunePlan
from prunetune.recipe.schema import Recipe

QUIET = Watch(quiet=True)


def recipe_of(at: Path, family: str = "qwen3_moe", **changes: object) -> Recipe:
    at.mkdir(exist_ok=True)
    tiny_folder(at / "model", family, output_router_logits=True)
    rows(at / "rows.jsonl")
    return tiny_recipe(at, family, **changes)


@pytest.mark.parametrize("criterion", ["contribution", "greedy"])
def test_two_rounds_leave_a_plain_smaller_mixture(criterion: str, tmp_path: Path) -> None:
    changes = {"prune": {"target": 0.75, "step": 0.14, "align": 4, "layers": 0}, "control": "once"}
    recipe = recipe_of(
        tmp_path, **changes, score={"samples": 8, "held_out": 4, "max_length": 64, "criterion": criterion}
    )
    summary = prune_tune_loop(recipe, tmp_path / "out", QUIET)
    names = sorted(p.name for p in (tmp_path / "out").glob("[0-9]*"))
    assert len(names) == 2
    final = read_json(tmp_path / "out" / "final" / "config.json")
    assert final["moe_intermediate_size"] < 48 and final["num_local_experts"] == 6 and final["intermediate_size"] == 64
    assert cost_of(final).params <= 0.75 * cost_of(read_json(tmp_path / "model" / "config.json")).params
    record = read_json(tmp_path / "out" / names[-1] / "stage.json")
    assert record["cost"]["active_params"] == active_params(final) < record["cost"]["params"] == cost_of(final).params
    assert (record["width"], record["shape"]["experts"]) == (final["moe_intermediate_size"], 6)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "final")
    assert model.num_parameters() == cost_of(final).params and model.config.output_router_logits
    assert summary.final is not None


@pytest.mark.parametrize(
    ("family", "budget", "rounds"), [("gpt_oss", "equal", 1), ("qwen3_moe", "damage", 2), ("mixtral", "damage", "auto")]
)
def test_its_neurons_are_folded_and_the_cut_is_what_surgery_makes_of_plan_and_patch(
    family: str, budget: str, rounds: int | str, tmp_path: Path
) -> None:
    """Files have one tensor an expert, or one of all. By damage two plans share a walk, or the patch that a probe made
    in memory is the round's.
    """
    recipe = recipe_of(
        tmp_path,
        family,
        compensate="least-squares",
        budget=budget,
        prune={"target": 0.75, "align": 4, "layers": 0, "rounds": rounds},
        score={"samples": 16, "held_out": 4, "max_length": 64, "criterion": "greedy"},
        keep="all",
    )
    prune_tune_loop(recipe, tmp_path / "out", QUIET)
    stages = sorted(p.parent for p in (tmp_path / "out").glob("[0-9]*/stage.json"))
    sources = [tmp_path / "model", *(stage / "tuned" for stage in stages)]
    for stage, source in zip(stages, sources, strict=False):
        patch, plan = Patch.read(stage / "patch.safetensors"), PrunePlan.read(stage / "plan.json")
        assert patch.tensors and all(fit.experts and fit.after < fit.before for fit in patch.fits)
        apply_on_disk(source, plan, tmp_path / f"again-{stage.name}", patch.tensors)
        ours, again = (
            load_file(at / "model.safetensors") for at in (stage / "pruned", tmp_path / f"again-{stage.name}")
        )
        assert any(".experts.3." in name for name in ours) == (family != "gpt_oss") and ours.keys() == again.keys()
        assert all(torch.equal(ours[name], again[name]) for name in ours)
    probed = tmp_path / "out" / "decisions" / "01" / "patch.safetensors"
    assert probed.is_file() == (budget == "damage")
    if rounds == "auto":
        assert len(stages) == 1 and probed.read_bytes() == (stages[0] / "patch.safetensors").read_bytes()


def test_least_squares_is_what_a_recipe_has_that_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three of six experts see a token; moments of all six are in memory, twice."""
    recipe = recipe_of(tmp_path, extends="recommended", recover=[])
    assert recipe.compensate == "least-squares" and recipe.score.criterion == "greedy"
    context = prepare(recipe, tmp_path / "model", QUIET)  # nothing is refused
    assert context.calibration is not None and context.calibration.share == 0.5
    moments = 6 * 48 * 48 * 8
    assert moments_bytes(cost_of(context.config).shape, 1) == moments
    without, bare = (
        replace(context, recipe=recipe.changed(compensate="none", score=score))
        for score in (recipe.score, recipe.score.model_copy(update={"criterion": "contribution"}))
    )
    monkeypatch.setattr(psutil.Process, "memory_info", lambda _: SimpleNamespace(rss=0))
    assert [needed(c) - needed(bare) for c in (context, without)] == [2 * moments, moments]


def test_a_few_tokens_are_told_of_an_expert(tmp_path: Path) -> None:
    said = Said()
    prune_tune_loop(recipe_of(tmp_path, compensate="least-squares", recover=[]), tmp_path / "out", said)
    line = next(line for line in said.lines if "few calibration tokens" in line)
    assert "kept neurons an expert, which sees 50% of them" in line


def test_what_a_mixture_cannot_have_is_refused_before_work(tmp_path: Path) -> None:
    local = {"type": "local", "samples": 8}
    with pytest.raises(UnsupportedModel, match="local recovery"):
        prune_tune_loop(recipe_of(tmp_path / "local", recover=[local]), tmp_path / "third", QUIET)
    grpo = {"type": "grpo", "samples": 8, "group": 2, "batch_size": 2}
    with pytest.raises(UnsupportedModel, match="output_router_logits"):
        prune_tune_loop(recipe_of(tmp_path / "grpo", recover=[grpo]), tmp_path / "other", QUIET)
