"""Published mixtures of experts, by their shipped shapes: the parameters of one token are those published, too."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunetune.cli.about_model import description, model_config
from prunetune.models.cost import active_params, cost_of, moments_bytes

# In billions, as their publishers say (shapes/sources.json); that of gpt-oss leaves the embedding's table out.
ACTIVE = {"Qwen/Qwen3-30B-A3B": 3.3, "mistralai/Mixtral-8x7B-v0.1": 12.9, "openai/gpt-oss-20b": 3.6}


@pytest.mark.parametrize("name", ACTIVE)
def test_active_parameters_and_what_experts_hold(name: str) -> None:
    values = model_config(name)
    looked_up = values["vocab_size"] * values["hidden_size"] if "gpt-oss" in name else 0
    assert (active_params(values) - looked_up) / 1e9 == pytest.approx(ACTIVE[name], rel=0.02)
    value, text = description(values, target=0.6, step=0.2, gpu="H100", tokens=10**6)
    assert value["experts"] == cost_of(values).shape.experts and "of them a token" in text
    held = {row["axis"]: row for row in value["axes"]}
    assert held["experts"]["params"] >= held["neurons"]["params"] > 0.85 * value["params"]
    stay = held["experts"]["alone"]
    assert cost_of(values, shape={"experts": stay}).params <= value["wanted"]
    assert cost_of(values, shape={"experts": stay + 1}).params > value["wanted"]


def test_second_moments_of_a_layers_experts_are_as_large_as_the_docs_say() -> None:
    """Of 128 small experts, and of 8 large ones whose sums are fp32; what fits and what is held out."""
    page = (Path(__file__).parents[2] / "docs/method.md").read_text()
    small, large = (moments_bytes(cost_of(model_config(name)).shape, 2) for name in list(ACTIVE)[:2])
    assert (small, large) == (16 * 128 * 768**2, 8 * 8 * 14336**2)
    assert f"{small / 1e9:.1f} GB for Qwen3-30B-A3B, {large / 1e9:.0f} GB for Mixtral-8x7B" in page
