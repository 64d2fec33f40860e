"""What a run tells of its memory: the parts, by hand; what was then measured is in docs/performance.md."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from tests.tiny import tiny_config
from tests.tiny_run import tiny_recipe

from prunetune.common.progress import Watch
from prunetune.errors import TooLittleMemory
from prunetune.loop.context import prepare
from prunetune.loop.loop import prune_tune_loop
from prunetune.loop.pacing import memory
from prunetune.loop.pacing.memory import check_memory, needed
from prunetune.loop.pacing.rehearsal import room
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


def test_a_run_that_cannot_fit_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_recipe(tmp_path)
    context = prepare(recipe, tmp_path / "model", Watch(quiet=True))
    wanted = needed(context)
    monkeypatch.setattr(memory, "needed", lambda _: wanted)
    monkeypatch.setattr(memory, "total_bytes", lambda _: wanted // 2)
    with pytest.raises(TooLittleMemory, match="needs more memory than there is") as e:
        prune_tune_loop(recipe, tmp_path / "out", Watch(quiet=True))
    assert "lora" in str(e.value) and not (tmp_path / "out" / "original").exists()
    with pytest.raises(TooLittleMemory):
        room(context, tmp_path / "out")
    check_memory(replace(context, recipe=recipe.changed(launcher="fsdp2")))  # it shares the state out
    monkeypatch.setattr(memory, "total_bytes", lambda _: wanted)  # near: told, not refused
    check_memory(context)
