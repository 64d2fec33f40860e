"""The shipped shapes of public models: their parameters are the published ones, a token's too, and `inspect` is quick."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText

from prunetune.cli.about_model import SHAPES, description, model_config, parts_of
from prunetune.models.cost import active_params, cost_of, layer_params, moments_bytes, params
from prunetune.models.families.wrappers import own_name, wrapper_of
from prunetune.models.shape import Shape

SHIPPED: dict[str, dict[str, Any]] = json.loads(SHAPES.read_text(encoding="utf-8"))
PUBLISHED: dict[str, dict[str, Any]] = {name: s["published"] for name, s in SHIPPED.items() if "published" in s}
ACTIVE = {"Qwen/Qwen3-30B-A3B": 3.3, "mistralai/Mixtral-8x7B-v0.1": 12.9, "openai/gpt-oss-20b": 3.6}
"""Of one token, in billions, as the publishers of mixtures say; that of gpt-oss leaves the embedding's table out."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(name: str) -> None:
    raw = SHIPPED[name]["config"]
    wrapper = wrapper_of(raw)
    auto: Any = AutoModelForImageTextToText if wrapper else AutoModelForCausalLM
    with torch.device("meta"):
        model = auto.from_config(CONFIG_MAPPING[raw["model_type"]](**raw))
    sizes = {n: p.numel() for n, p in model.named_parameters()}
    unread = PUBLISHED[name].get("unread", 0)
    assert sum(sizes.values()) + unread == pytest.approx(PUBLISHED[name]["params"], rel=0.005)
    ours = sum(size for n, size in sizes.items() if not (wrapper and wrapper.is_other(own_name(n))))
    config = model_config(name)
    assert params(config) == ours == sum(parts_of(config).values())
    assert (ours < sum(sizes.values())) == bool(PUBLISHED[name].get("whole"))
    assert all(PUBLISHED[name][key] for key in ("config", "count")), "where it is from"


def test_what_transformers_does_not_read_of_qwen3_5_is_one_layer_with_attention() -> None:
    """Two norms and a matrix from both of their outputs, a layer, a norm: then the published count is met exactly."""
    name = "Qwen/Qwen3.5-27B"
    shape = Shape.of(model_config(name))
    layer = layer_params(replace(shape, mixers=0))
    assert 2 * shape.hidden**2 + layer + 3 * shape.hidden == PUBLISHED[name]["unread"]
    vision = 460_730_096  # of the class, as `test_parameters_are_the_published_ones` builds it
    assert params(shape) + vision + PUBLISHED[name]["unread"] == PUBLISHED[name]["params"]


@pytest.mark.parametrize(
    ("name", "language"), [("google/gemma-4-31B-it", 30_697_345_280), ("google/gemma-4-12B-it", 11_907_350_272)]
)
def test_what_of_gemma_4_is_no_parameter_makes_the_published_count_exact(name: str, language: int) -> None:
    """A number a layer, and the vision tower's mean and scale: all in the files, and carried over by a cut."""
    raw = SHIPPED[name]["config"]
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(CONFIG_MAPPING[raw["model_type"]](**raw))
    state = {n: t.numel() for n, t in model.state_dict().items() if n != "lm_head.weight"}  # tied
    assert sum(state.values()) == PUBLISHED[name]["params"]
    assert params(model_config(name)) == language


def test_every_shape_is_inspected_within_a_second_and_without_torch() -> None:
    """CPU seconds in one process, after its start; `inspect` of them all takes less than that of one with torch."""
    code = (
        "import sys, time; from prunetune.cli.about_model import description, model_config\n"
        "for name in sys.argv[1:]:\n"
        "    start = time.process_time()\n"
        "    _, text = description(model_config(name), target=0.5, step=0.1, gpu='A100-80G', tokens=10**8)\n"
        "    assert 'target 0.5' in text and time.process_time() - start < 1, name\n"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert len(PUBLISHED) >= 10
    assert subprocess.run([sys.executable, "-c", code, *SHIPPED], check=False).returncode == 0


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
