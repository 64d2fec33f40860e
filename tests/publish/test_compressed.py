"""Fewer bits: what plain transformers reads from the folder is the model with its matrices rounded, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.tiny import tiny_folder
from transformers import AutoModelForCausalLM, AutoTokenizer

from prunetune.errors import NotWritable, UnknownName, UnsupportedModel
from prunetune.models.folders import DEMO_MODEL, load_model
from prunetune.publish.compressed import SCHEMES, compress
from prunetune.publish.serve import commands

STEPS = {"int8": 127.5, "int4": 7.5}
"""Half of the range that a scale is divided into."""


def plain(folder: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def weights(model: torch.nn.Module, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    with torch.inference_mode():
        model(ids)  # what is packed is unpacked by the first tokens
    return {name: m.weight.detach().float() for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}


@pytest.mark.parametrize("to", SCHEMES)
def test_it_is_the_model_rounded_and_read_by_plain_transformers(to, tmp_path) -> None:
    """By hand: every entry within half a step of the original's, all else as it was; smaller, and told beside the model."""
    text = tmp_path / "words.txt"
    text.write_text("Question: What is 12 + 30?\nAnswer: 12 + 30 = 42\n" * 40)
    done = compress(DEMO_MODEL, tmp_path / "out", to=to, text=text)
    assert not done.faults
    whole, small = done.rows
    assert small.bytes < {"fp8": 0.6, "int8": 0.6, "int4": 0.35}[to] * whole.bytes
    assert whole.perplexity and small.perplexity and small.perplexity < 2 * whole.perplexity
    assert small.answers.startswith("the same on ")
    assert f"greedy answers in {done.engine}" in done.text()
    assert not (tmp_path / "out" / "README.md").exists(), "the card tells of the model with all its bits"
    asked = AutoTokenizer.from_pretrained(tmp_path / "out")("Question: What is 2 + 3?", return_tensors="pt").input_ids
    assert torch.equal(
        asked, AutoTokenizer.from_pretrained(DEMO_MODEL)("Question: What is 2 + 3?", return_tensors="pt").input_ids
    )

    before, after = weights(load_model(DEMO_MODEL), asked), weights(plain(tmp_path / "out"), asked)
    groups = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["config_groups"]
    (size,) = {g["weights"]["group_size"] for g in groups.values()}
    for name, w in before.items():
        if "layers." not in name:
            assert torch.equal(after[name], w), name
            continue
        parts, new = (m.unflatten(1, (-1, size or m.shape[1])) for m in (w, after[name]))
        largest = parts.abs().amax(-1, keepdim=True)
        half = 2**-4 * parts.abs() + largest / 448 / 2**9 if to == "fp8" else 0.5 * largest / STEPS[to]
        assert ((parts - new).abs() <= half + 0.01 * parts.abs()).all(), name
        assert not torch.equal(new, parts), name


def test_what_cannot_be_written_is_refused_before_anything_is(tmp_path) -> None:
    with pytest.raises(UnknownName, match="int8"):
        compress(DEMO_MODEL, tmp_path / "out", to="int7")
    narrow = tiny_folder(tmp_path / "narrow", "llama", hidden_size=48, intermediate_size=80)
    with pytest.raises(UnsupportedModel, match="multiples of 32"):
        compress(narrow, tmp_path / "out", to="int4")
    experts = tiny_folder(tmp_path / "experts", "mixtral")
    with pytest.raises(UnsupportedModel, match="experts"):
        compress(experts, tmp_path / "out", to="fp8")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(NotWritable):
        compress(DEMO_MODEL, tmp_path / "full", to="fp8")
    assert [p.name for p in tmp_path.glob("out*")] == []


def test_the_commands_that_serve_it_name_the_folder(tmp_path) -> None:
    said = dict(commands(DEMO_MODEL, tmp_path / "demo-fp8", "fp8"))
    assert set(said) == {"vLLM", "SGLang"}
    assert all(str(tmp_path / "demo-fp8") in line for line in said.values())
