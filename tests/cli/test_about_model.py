"""`inspect`: the parts of a model add up, a target says what it takes, and nothing heavy is imported or built."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys

import pytest
import torch
from tests.tiny import EXTRA, tiny_config, tiny_folder
from transformers import AutoModelForCausalLM

from prunetune.cli.about_model import description, model_config, parts_of
from prunetune.errors import PrunetuneError


@pytest.mark.parametrize("family", EXTRA)
def test_the_parts_add_up_to_the_model(family):
    config = tiny_config(family)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    parts = parts_of(config.to_dict())
    assert sum(parts.values()) == model.num_parameters()
    ffn = sum(p.numel() for n, p in model.named_parameters() if ".mlp." in n or ".feed_forward." in n)
    mixes = re.compile(
        r"\.(self_attn|attention|conv|linear_attn)\.(?!\w*_?norm|q_layer|k_layer|query_layer|key_layer)|linear_attn\.norm"
    )
    attention = sum(p.numel() for n, p in model.named_parameters() if mixes.search(n))
    assert (parts["FFN"], parts["attention"]) == (ffn, attention)


def test_a_target_says_what_it_takes(tmp_path):
    config = model_config(str(tiny_folder(tmp_path / "m")))
    value, text = description(config, target=0.7, step=0.3, gpu="L4", tokens=1000)
    last = value["steps"][-1]
    taken = 1 - last["depth"] * last["width"] / (4 * 48)
    assert math.isclose(value["takes"]["ffn"], taken)
    assert f"takes {taken:.0%} of the FFN" in text
    assert "embeddings" in text and "attention" in text
    assert value["parts"]["FFN"] == 4 * 48 * 3 * 32
    held = {row["axis"]: row["params"] for row in value["axes"]}
    assert held["neurons"] == value["parts"]["FFN"] and held["vocabulary"] == value["parts"]["embeddings"]
    assert "is out of reach" not in text


def test_a_target_out_of_reach_is_said_with_what_the_axes_leave(tmp_path):
    config = model_config(str(tiny_folder(tmp_path / "m"))) | {"vocab_size": 4096}
    ours = {"target": 0.5, "step": 0.3, "gpu": "L4", "tokens": 1000}
    value, text = description(config, **ours)
    near = description(config, **{**ours, "target": value["reach"]["layers, neurons"]})[0]
    assert near["steps"][-1]["params"] == value["reach"]["layers, neurons"] > value["wanted"]
    assert value["steps"] == [] and "target 0.5 is out of reach of neurons and layers" in text
    rows = {row["axis"]: row["alone"] for row in value["axes"]}
    assert rows["neurons"] is None and 0 < rows["vocabulary"] < 4096
    with pytest.raises(PrunetuneError, match="no smaller than the model"):
        description(config, **{**ours, "target": 10**9})


def test_a_config_alone_and_a_file_of_another_name(tmp_path):
    folder = tiny_folder(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    config = model_config(str(folder))
    (tmp_path / "other.json").write_text(json.dumps(config | {"intermediate_size": 96}))
    assert model_config(str(tmp_path / "other.json"))["intermediate_size"] == 96


BIG = {"num_hidden_layers": 10**9, "hidden_size": 10**9, "vocab_size": 10**12, "intermediate_size": 10**10}


@pytest.mark.parametrize("key", BIG)
def test_a_config_of_a_billion_is_told_in_a_second_and_without_memory(key, tmp_path):
    config = tiny_config().to_dict() | {key: BIG[key]}
    (tmp_path / "config.json").write_text(json.dumps(config, default=str))
    with pytest.raises(PrunetuneError, match=key):
        model_config(str(tmp_path))


def test_inspect_of_a_checked_folder_needs_no_torch(tmp_path):
    folder = tiny_folder(tmp_path / "m")
    code = (
        "import sys\nfrom prunetune.cli.about_model import description, model_config\n"
        f"description(model_config({str(folder)!r}), target=0.8, step=0.1, gpu='L4', tokens=1)\n"
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
