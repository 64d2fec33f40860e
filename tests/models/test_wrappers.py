"""Models with a vision tower: the language model inside, read, written alone, and put back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.wrapped import CONFIGS, FORMS, wrapped_folder, wrapped_model
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from prunetune.common.files import read_json, write_json
from prunetune.errors import BadCheckpoint, UnsupportedModel
from prunetune.models.families import family_of
from prunetune.models.families.wrappers import WRAPPERS, language_of, own_name
from prunetune.models.folders import check_weights, config_values, is_wrapper, load_config, load_model
from prunetune.models.folders.wrapping import rewrap, unwrap
from prunetune.models.shape import Shape
from prunetune.models.shards import open_shards


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    ids = torch.randint(3, 90, (2, 24), generator=torch.Generator().manual_seed(1))
    return model(input_ids=ids, use_cache=False).logits


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_the_language_model_inside_answers_as_the_wrapper_does(name: str, form: str, tmp_path: Path) -> None:
    folder = wrapped_folder(tmp_path / "m", name, form)
    model = load_model(folder)
    assert is_wrapper(folder) and family_of(model.config) is family_of(config_values(folder))
    assert family_of(model.config).model_type in WRAPPERS[name].languages.values()
    assert torch.equal(logits(model), logits(wrapped_model(name)))
    inside, whole = (sum(p.numel() for p in m.parameters()) for m in (model, wrapped_model(name)))
    assert inside < whole
    assert Shape.of(config_values(folder)) == Shape.of(load_config(folder))


@pytest.mark.parametrize("name", WRAPPERS)
def test_alone_and_back(name: str, tmp_path: Path) -> None:
    folder = wrapped_folder(tmp_path / "m", name)
    (folder / "preprocessor_config.json").write_text('{"size": 16}')
    unwrap(folder, tmp_path / "alone")
    alone = AutoModelForCausalLM.from_pretrained(tmp_path / "alone")
    assert type(alone).__name__ in read_json(tmp_path / "alone" / "config.json")["architectures"]
    assert torch.equal(logits(alone), logits(wrapped_model(name)))
    with torch.no_grad():
        for p in (*alone.parameters(), *(b for n, b in alone.named_buffers() if n.endswith("layer_scalar"))):
            p.add_(0.1)
    alone.save_pretrained(tmp_path / "changed")
    rewrap(folder, tmp_path / "changed", tmp_path / "back")
    back = AutoModelForImageTextToText.from_pretrained(tmp_path / "back")
    assert type(back) is type(wrapped_model(name))
    assert torch.equal(logits(back), logits(alone))
    before, after = (
        {n: load_file(path)[n] for path, infos in open_shards(at).items() for n in infos}
        for at in (folder, tmp_path / "back")
    )
    assert list(before) == list(after), "the same shards in the same order"
    for n, tensor in before.items():
        assert torch.equal(tensor, after[n]) == WRAPPERS[name].is_other(n), n
    for file in ("config.json", "preprocessor_config.json"):
        assert (tmp_path / "back" / file).read_bytes() == (folder / file).read_bytes()


def test_a_language_model_that_is_not_whole_is_not_put_in(tmp_path: Path) -> None:
    folder = wrapped_folder(tmp_path / "m", "gemma3")
    unwrap(folder, tmp_path / "alone")
    file = tmp_path / "alone" / "model-00001-of-00001.safetensors"
    file = next(iter((tmp_path / "alone").glob("*.safetensors"))) if not file.exists() else file
    lost = next(iter(load_file(file)))
    save_file({n: t for n, t in load_file(file).items() if n != lost}, file, {"format": "pt"})
    with pytest.raises(BadCheckpoint, match=r"lacks a tensor|index"):
        rewrap(folder, tmp_path / "alone", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(BadCheckpoint, match="it is one"):
        unwrap(tmp_path / "alone", tmp_path / "out")


def test_what_a_wrapper_lacks_or_holds_besides_is_told(tmp_path: Path) -> None:
    folder = wrapped_folder(tmp_path / "m", "gemma3", "outside")
    file = folder / "model.safetensors"
    whole = load_file(file)
    save_file({**whole, "audio_tower.weight": torch.zeros(2)}, file, {"format": "pt"})
    with pytest.raises(BadCheckpoint, match=r"audio_tower\.weight"):
        check_weights(folder)
    save_file({n: t for n, t in whole.items() if "layers.2.mlp" not in n}, file, {"format": "pt"})
    with pytest.raises(BadCheckpoint, match="lack 3 of"):
        check_weights(folder)
    save_file(whole, file, {"format": "pt"})
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", {**config, "quantization_config": {"quant_method": "fp8"}})
    with pytest.raises(UnsupportedModel, match="quantised"):
        check_weights(folder)


def test_in_memory_the_wrapper_is_refused_with_the_way_in() -> None:
    with pytest.raises(UnsupportedModel, match="wraps its language model") as e:
        family_of(wrapped_model("gemma3").config)
    assert "load_model" in str(e.value.fix)


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("language_model.model.layers.3.mlp.up_proj.weight", "model.layers.3.mlp.up_proj.weight"),
        ("model.language_model.layers.3.mlp.up_proj.weight", "model.layers.3.mlp.up_proj.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("model.norm.weight", "model.norm.weight"),
        ("vision_tower.encoder.layers.0.mlp.fc1.weight", "vision_tower.encoder.layers.0.mlp.fc1.weight"),
    ],
)
def test_names(name: str, own: str) -> None:
    assert own_name(name) == own


def test_a_brief_config_says_as_much_as_its_class(tmp_path: Path) -> None:
    """Gemma 3's files leave out what its class fills in; old Qwen2.5-VL files have no `text_config` at all."""
    sparse = {"model_type": "gemma3", "text_config": {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "model_type": "gemma3_text", "sliding_window": 1024}}  # fmt: skip
    write_json(tmp_path / "config.json", sparse)
    assert Shape.of(config_values(tmp_path)) == Shape.of(load_config(tmp_path))
    inner = {
        k: v for k, v in CONFIGS["qwen2_5_vl"]["text_config"].items() if k not in ("model_type", "rope_parameters")
    }
    flat = {**inner, "model_type": "qwen2_5_vl", "vision_config": {}, "tie_word_embeddings": True, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}  # fmt: skip
    write_json(tmp_path / "config.json", flat)
    assert language_of(flat)["rope_scaling"] == {"type": "default"}
    assert Shape.of(config_values(tmp_path)) == Shape.of(load_config(tmp_path))
    assert json.loads((tmp_path / "config.json").read_text()) == flat, "reading changes nothing"
