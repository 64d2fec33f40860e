"""The shipped shapes of public models: their parameters are the published ones, and `inspect` of each is quick."""

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

import prunetune.cli
from prunetune.cli.about_model import model_config, parts_of
from prunetune.models.cost import layer_params, params
from prunetune.models.families.wrappers import own_name, wrapper_of
from prunetune.models.shape import Shape

SHAPES = Path(prunetune.cli.__file__).parent / "shapes"
PUBLISHED: dict[str, dict[str, Any]] = json.loads((SHAPES / "sources.json").read_text())


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(name: str) -> None:
    raw = json.loads((SHAPES / name.replace("/", "--") / "config.json").read_text())
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
    raw = json.loads((SHAPES / name.replace("/", "--") / "config.json").read_text())
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
    names = [path.name.replace("--", "/") for path in SHAPES.iterdir() if path.is_dir()]
    assert set(PUBLISHED) <= set(names)
    assert subprocess.run([sys.executable, "-c", code, *names], check=False).returncode == 0
