"""What a run tells of its memory: the parts, by hand; what was then measured is in docs/performance.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from tests.tiny import tiny_config
from tests.tiny_run import tiny_recipe

from prunetune.common.progress import Watch
from prunetune.loop.context import prepare
from prunetune.loop.pacing.memory import needed
from prunetune.models.cost import cost_of
from prunetune.tune.methods import Cpt
from prunetune.tune.training.machine import training_bytes

CPU = torch.device("cpu")


def told(**settings: Any) -> int:
    config, compute = tiny_config(), settings.pop("compute", torch.float32)
    ways: dict[str, Any] = {"config": config, "params": 10**9, "longest": 64, "compute": compute}
    return training_bytes(Cpt(batch_size=8, **settings), **ways, device=CPU, share=8)


def test_state_of_each_way_to_train() -> None:
    """fp32 weights, gradients and two moments; autocast's copies beside them; a mean of the weights; adapters alone."""
    assert round(told() / 1e9) == 16
    assert round(told(compute=torch.bfloat16) / 1e9) == 18
    assert round(told(average=0.9) / 1e9) == 20
    assert round(told(lora={"rank": 4}) / 1e9) == 4


def test_each_row_more_at_once_takes_its_activations_and_logits() -> None:
    cost = cost_of(tiny_config())
    a_row = cost.activation_bytes(64, item=4, checkpointing=False, logits=False) + 3 * 4 * cost.shape.vocab * 64
    plain = {"gradient_checkpointing": False}
    assert told(micro_batch_size=8, **plain) - told(micro_batch_size=1, **plain) == 7 * a_row
    assert told(micro_batch_size=8, gradient_checkpointing=True) < told(micro_batch_size=8, **plain)


@pytest.mark.parametrize("settings", [{"type": "cpt"}, {"type": "distill"}, {"type": "grpo"}, {"type": "local"}])
def test_a_run_counts_what_the_process_holds_and_the_largest_work(tmp_path: Path, settings: dict[str, Any]) -> None:
    recipe = tiny_recipe(tmp_path)
    context = prepare(recipe, tmp_path / "model", Watch(quiet=True))
    held = psutil.Process().memory_info().rss
    large = recipe.model_validate({**recipe.model_dump(mode="json"), "recover": [{**settings, "samples": 8}]})
    for given in (recipe, large):
        found = needed(prepare(given, tmp_path / "model", Watch(quiet=True)))
        assert held < found < held + 10**9
    assert context.scoring
