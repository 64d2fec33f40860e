"""A cut through a model with a vision tower: the language model inside is cut, and an image still goes through."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.pruning.test_compensate import CALIBRATION, HELD_OUT
from tests.wrapped import FORMS, with_image, wrapped_folder, wrapped_model
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

from prunetune.common.files import read_json, write_json
from prunetune.errors import UnsupportedModel
from prunetune.models.families.wrappers import WRAPPERS, own_name
from prunetune.models.folders import check_weights, load_model, model_sha
from prunetune.models.folders.wrapping import rewrap, unwrap
from prunetune.models.shards import ShardReader, open_shards
from prunetune.pruning.apply import apply_in_memory, apply_on_disk
from prunetune.pruning.compensate import compensate
from prunetune.pruning.plan import PrunePlan

KEPT_FILES = ("tokenizer.json", "processor_config.json")


def plan_of(folder: Path, drop_layers: tuple[int, ...]) -> PrunePlan:
    g = torch.Generator().manual_seed(3)
    kept = [layer for layer in range(4) if layer not in drop_layers]
    drop = {layer: tuple(sorted(torch.randperm(48, generator=g)[:20].tolist())) for layer in kept}
    return PrunePlan(model_sha=model_sha(folder), depth=4, width=48, drop_layers=drop_layers, drop_neurons=drop)


def oracle(model: PreTrainedModel, plan: PrunePlan) -> PreTrainedModel:
    """The whole wrapper, with the plan's neurons silenced and its layers skipped."""
    model = copy.deepcopy(model)
    layers: Any = model.get_submodule("model.language_model.layers")
    for layer, neurons in plan.drop_neurons.items():
        with torch.no_grad():
            layers[layer].mlp.down_proj.weight[:, list(neurons)] = 0
    for layer in plan.drop_layers:
        layers[layer].register_forward_hook(lambda _module, args, _out: args[0])
    return model


@torch.no_grad()
def logits(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**inputs, use_cache=False).logits


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for path, infos in open_shards(folder).items():
        with ShardReader(path) as reader:
            found.update({name: reader.read(name) for name in infos})
    return found


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_with_an_image_the_cut_wrapper_equals_the_oracle(name: str, form: str, tmp_path: Path) -> None:
    folder = wrapped_folder(tmp_path / "m", name, form)
    (folder / "processor_config.json").write_text("{}")
    plan, inputs = plan_of(folder, () if form == "inside" else (2,)), with_image(name)
    apply_on_disk(folder, plan, tmp_path / "out")
    cut, whole = AutoModelForImageTextToText.from_pretrained(tmp_path / "out"), wrapped_model(name)
    assert type(cut) is type(whole)
    wanted = logits(oracle(whole, plan), inputs)
    torch.testing.assert_close(logits(cut, inputs), wanted, atol=1e-5, rtol=1e-5)
    other = {**inputs, "pixel_values": inputs["pixel_values"].flip(-1)}
    assert (logits(cut, other) - wanted).abs().max() > 1e-3, "it sees the image"
    before, after = tensors(folder), tensors(tmp_path / "out")
    for tensor in filter(WRAPPERS[name].is_other, before):
        assert torch.equal(before[tensor], after[tensor]), tensor
    old, new = read_json(folder / "config.json"), read_json(tmp_path / "out" / "config.json")
    changed = {k for k in new["text_config"] if new["text_config"][k] != old["text_config"].get(k)}
    assert {k for k in new if new[k] != old[k]} == {"text_config"}
    allowed = {"intermediate_size", "num_hidden_layers", "layer_types", "max_window_layers", "per_layer_config"}
    assert {"intermediate_size"} <= changed <= allowed
    for file in KEPT_FILES:
        assert (tmp_path / "out" / file).read_bytes() == (folder / file).read_bytes()


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_one_patch_serves_the_wrapper_and_the_language_model_in_memory(name: str, form: str, tmp_path: Path) -> None:
    """A probe folds in memory what a round then cuts on disk, whose tensors have other names; so have older patches."""
    folder = wrapped_folder(tmp_path / "m", name, form)
    plan, language = plan_of(folder, () if form == "inside" else (2,)), load_model(folder)
    in_memory, on_disk = (
        compensate(m, plan, CALIBRATION, held_out=HELD_OUT, target="layer").tensors for m in (language, folder)
    )
    assert in_memory.keys() == on_disk.keys() and all(torch.equal(t, on_disk[n]) for n, t in in_memory.items())
    assert len(in_memory) >= len(plan.kept_layers)
    old = {n: in_memory[own_name(n)] for n in tensors(folder) if own_name(n) in in_memory}
    assert len(old) == len(in_memory)
    for i, patch in enumerate((in_memory, old)):
        apply_on_disk(folder, plan, tmp_path / f"out-{i}", patch)
    small, (one, two) = (
        apply_in_memory(language, plan, old).state_dict(),
        (tensors(tmp_path / f"out-{i}") for i in (0, 1)),
    )
    assert all(torch.equal(t, two[n]) for n, t in one.items())
    for n, tensor in one.items():
        if not WRAPPERS[name].is_other(n) and own_name(n) in small:
            assert torch.equal(tensor, small[own_name(n)]), n
    plain = tmp_path / "plain"
    apply_on_disk(folder, plan, plain)
    assert {own_name(n) for n, t in tensors(plain).items() if not torch.equal(t, one[n])}


@pytest.mark.parametrize("name", WRAPPERS)
def test_text_only_writes_the_stock_language_model(name: str, tmp_path: Path) -> None:
    folder = wrapped_folder(tmp_path / "m", name)
    plan = plan_of(folder, (2,))
    apply_on_disk(folder, plan, tmp_path / "out", text_only=True)
    alone = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    config = read_json(tmp_path / "out" / "config.json")
    assert config["architectures"] == [type(alone).__name__] and "vision_config" not in config
    assert config["model_type"] in WRAPPERS[name].languages.values()
    assert not any(map(WRAPPERS[name].is_other, tensors(tmp_path / "out")))
    text = {"input_ids": torch.randint(3, 90, (2, 24), generator=torch.Generator().manual_seed(1))}
    wanted = logits(oracle(wrapped_model(name), plan), text)
    torch.testing.assert_close(logits(alone, text), wanted, atol=1e-5, rtol=1e-5)


def test_layers_that_the_image_comes_in_behind_stay(tmp_path: Path) -> None:
    folder = wrapped_folder(tmp_path / "m", "qwen3_vl")
    with pytest.raises(UnsupportedModel, match="behind its first 1 layers") as e:
        apply_on_disk(folder, plan_of(folder, (0,)), tmp_path / "out")
    assert "--text-only" in str(e.value.fix)
    apply_on_disk(folder, plan_of(folder, (0,)), tmp_path / "out", text_only=True)


HEADS = [name for name in WRAPPERS if name not in ("qwen2_5_vl", "qwen3_5", "gemma4", "gemma4_unified")]
"""The class of the one takes a head's width from hidden size / heads; of the others some layers have none of these."""


@pytest.mark.parametrize("name", HEADS)
def test_groups_of_heads_go_from_the_language_model(name: str, tmp_path: Path) -> None:
    folder = wrapped_folder(tmp_path / "m", name)
    groups = {layer: ((layer + 1) % 2,) for layer in range(4)}
    plan = PrunePlan(
        model_sha=model_sha(folder), depth=4, width=48, sizes={"heads": 2, "query_heads": 2}, drop={"heads": groups}
    )
    apply_on_disk(folder, plan, tmp_path / "out")
    whole, inputs = wrapped_model(name), with_image(name)
    for layer, (group,) in groups.items():
        attention: Any = whole.get_submodule(f"model.language_model.layers.{layer}.self_attn")
        with torch.no_grad():
            attention.o_proj.weight[:, 16 * group : 16 * group + 16] = 0  # two query heads of eight each
    cut = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(cut, inputs), logits(whole, inputs), atol=1e-5, rtol=1e-5)


def test_heads_that_the_wrappers_class_cannot_do_without_stay(tmp_path: Path) -> None:
    folder = wrapped_folder(tmp_path / "m", "qwen2_5_vl")
    drop = {"heads": dict.fromkeys(range(4), (0,))}
    sizes = {"heads": 2, "query_heads": 2}
    plan = PrunePlan(model_sha=model_sha(folder), depth=4, width=48, sizes=sizes, drop=drop)
    with pytest.raises(UnsupportedModel, match="takes a head's width") as e:
        apply_on_disk(folder, plan, tmp_path / "out")
    assert "--text-only" in str(e.value.fix) and not (tmp_path / "out").exists()
    apply_on_disk(folder, plan, tmp_path / "out", text_only=True)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.num_attention_heads == 2


def test_layers_that_guess_more_tokens_do_not_go_with_a_cut_model(tmp_path: Path) -> None:
    """Qwen3.5's files hold `mtp.` tensors of the whole width, which transformers neither reads nor writes."""
    folder = wrapped_folder(tmp_path / "m", "qwen3_5", "inside")
    file, more = folder / "model.safetensors", {"mtp.fc.weight": torch.ones(32, 64), "mtp.norm.weight": torch.ones(32)}
    save_file({**load_file(file), **more}, file, {"format": "pt"})
    config = read_json(folder / "config.json")
    config["text_config"]["mtp_num_hidden_layers"] = 1
    write_json(folder / "config.json", config)
    check_weights(folder)
    for text_only in (False, True):
        out = tmp_path / f"out-{text_only}"
        apply_on_disk(folder, plan_of(folder, ()), out, text_only=text_only)
        cut = read_json(out / "config.json")
        assert not more.keys() & tensors(out).keys() and cut.get("text_config", cut)["mtp_num_hidden_layers"] == 0
    unwrap(folder, tmp_path / "alone")
    assert not more.keys() & tensors(tmp_path / "alone").keys()
    rewrap(folder, tmp_path / "alone", tmp_path / "back")
    assert more.keys() <= tensors(tmp_path / "back").keys(), "nothing is cut: they stay"
    text = tmp_path / "alone" / "model.safetensors"
    save_file({**load_file(text), **more}, text, {"format": "pt"})
    apply_on_disk(tmp_path / "alone", plan_of(tmp_path / "alone", (2,)), tmp_path / "text")
    assert not more.keys() & tensors(tmp_path / "text").keys()


def test_old_files_without_a_text_config(tmp_path: Path) -> None:
    """Qwen2.5-VL's first config.json has the language model's keys beside the others."""
    folder = wrapped_folder(tmp_path / "m", "qwen2_5_vl")
    config = read_json(folder / "config.json")
    inner = {k: v for k, v in config.pop("text_config").items() if k not in ("model_type", "rope_parameters", "dtype")}
    rope = {"rope_theta": 1e4, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}
    write_json(folder / "config.json", {**inner, **config, **rope})
    plan, inputs = plan_of(folder, (2,)), with_image("qwen2_5_vl")
    apply_on_disk(folder, plan, tmp_path / "out")
    new = read_json(tmp_path / "out" / "config.json")
    assert "text_config" not in new and new["rope_scaling"] == rope["rope_scaling"]
    wanted = logits(oracle(AutoModelForImageTextToText.from_pretrained(folder), plan), inputs)
    cut = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(cut, inputs), wanted, atol=1e-5, rtol=1e-5)
