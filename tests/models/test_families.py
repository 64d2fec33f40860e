"""Each family is one entry of data; what cannot be cut correctly is refused before any weight is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import DENSE, MIXTURES, tiny_config
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from prunetune.common.files import write_json
from prunetune.errors import UnsupportedModel
from prunetune.models.families import FAMILIES, Family, family_of
from prunetune.models.families.pattern import engine_pattern, is_special, period_of
from prunetune.models.folders import load_config
from prunetune.models.shape import Shape
from prunetune.models.tensors import expected_tensors


def with_attention(model: Any, family: Family) -> Any:
    """A layer that has the family's usual attention: the first of its kind where there are others."""
    kinds = getattr(model.config, "layer_types", None) or []
    at = next(i for i, kind in enumerate(kinds) if kind != family.mixer.kind) if family.mixer else 0
    return model.get_submodule(f"{family.layers}.{at}")


@pytest.mark.parametrize("name", DENSE)
def test_entry_describes_the_model(name: str) -> None:
    """Every tensor whose size follows the FFN width is a cut of the family, and nothing else is; its norms are named."""
    family, biases = FAMILIES[name], {"mlp_bias": True} if FAMILIES[name].mlp_bias == "mlp_bias" else {}
    config, wide = tiny_config(name, **biases), tiny_config(name, **biases, intermediate_size=49)
    with torch.device("meta"):
        model, wider = (AutoModelForCausalLM.from_config(c) for c in (config, wide))
    layer, wide_layer = (m.get_submodule(f"{family.layers}.0") for m in (model, wider))
    found = {}
    for (suffix, a), (_, b) in zip(layer.named_parameters(), wide_layer.named_parameters(), strict=True):
        if a.shape != b.shape:
            dim = next(d for d in range(a.ndim) if a.shape[d] != b.shape[d])
            found[suffix] = (dim, b.shape[dim] - a.shape[dim])
    has_bias = family.flag(family.mlp_bias, config)
    assert found == {c.suffix: (c.dim, c.copies) for c in family.cuts if has_bias or not c.suffix.endswith(".bias")}
    assert wide_layer.get_submodule(family.down).in_features == 49
    norms = {n.rpartition(".")[0] for n, p in with_attention(model, family).named_parameters() if "norm" in n}
    assert norms == {*family.norms, *(family.qk_norm.names if family.qk_norm else ())}
    after = family.norms[-1:] if family.post_ffn_norm else ()
    assert bool(after) == any(n.startswith("post_feed") or n == "post_mlp_layernorm" for n in norms)
    lists = [k for k, v in config.to_dict().items() if isinstance(v, list) and len(v) == 4]
    assert set(lists) <= set(family.per_layer_keys)
    assert model.get_submodule(family.base) is model.base_model
    assert model.get_submodule(family.embedding) is model.get_input_embeddings()
    assert model.get_submodule(family.head) is model.get_output_embeddings()


@pytest.mark.parametrize("name", [name for name in FAMILIES if FAMILIES[name].mixer])
def test_what_takes_the_place_of_attention_is_known(name: str) -> None:
    """Its kind, its tensors, which layers have it where `layer_types` is not given, and what its cache holds."""
    mixer, plain = FAMILIES[name].mixer, tiny_config(name)
    assert mixer is not None
    kinds = plain.layer_types
    usual = "sliding_attention" if mixer.attends else "full_attention"
    assert set(kinds) == {mixer.kind, usual} and FAMILIES[name].heads_stay
    with torch.device("meta"):
        at = kinds.index(mixer.kind)
        layer = AutoModelForCausalLM.from_config(plain).get_submodule(f"{FAMILIES[name].layers}.{at}")
    other = {*FAMILIES[name].norms, FAMILIES[name].down, FAMILIES[name].up, FAMILIES[name].gate}
    held = {n: tuple(p.shape) for n, p in layer.named_parameters() if n.rpartition(".")[0] not in other}
    assert mixer.sizes(plain.to_dict()) == held
    for change in ({}, {"full_attn_idxs": [0, 3]}, {"full_attention_interval": 3}):
        left_out = ("layer_types", "full_attn_idxs", "per_layer_config")
        silent = {k: v for k, v in plain.to_dict().items() if k not in left_out} | change
        made = CONFIG_MAPPING[name](**silent)
        assert mixer.kinds(silent) == made.layer_types


@pytest.mark.parametrize("name", MIXTURES)
def test_the_entry_of_a_mixture_describes_the_model(name: str) -> None:
    """Every tensor of router and experts, no other; where gate and up are; the norms; the activation."""
    family = FAMILIES[name]
    found = family.experts
    assert found is not None and family.cuts == ()
    config = tiny_config(name)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    layer = model.get_submodule(f"{family.layers}.0")
    held = {n: tuple(p.shape) for n, p in layer.named_parameters() if n.startswith("mlp.")}
    assert held == found.sizes(6, 32, 48)
    module = layer.get_submodule(found.module)
    assert (module.is_transposed, module.has_bias) == (found.transposed, found.bias)
    assert module.is_concatenated != found.alternating
    norms = {n.rpartition(".")[0] for n, p in layer.named_parameters() if "norm" in n}
    assert norms == {*family.norms, *(family.qk_norm.names if family.qk_norm else ())}
    assert model.get_submodule(family.base) is model.base_model
    assert model.get_submodule(family.embedding) is model.get_input_embeddings()


@pytest.mark.parametrize("name", FAMILIES)
def test_config_object_and_dict_give_the_same_family(name: str) -> None:
    config = tiny_config(name)
    assert family_of(config) is family_of(config.to_dict()) is FAMILIES[name]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "phimoe": ({"model_type": "phimoe", "num_local_experts": 8}, "mixture of experts"),
    "deepseek": ({"model_type": "deepseek_v3", "n_routed_experts": 256}, "mixture of experts"),
    "quantised": ({"model_type": "llama", "quantization_config": {"quant_method": "awq"}}, "quantised"),
    "t5": ({"model_type": "t5", "is_encoder_decoder": True}, "encoder-decoder"),
    "gemma3n": ({"model_type": "gemma3n_text", "intermediate_size": [8, 16]}, "another FFN width"),
    "llama-widths": ({"model_type": "llama", "intermediate_size": [8, 16]}, "another FFN width"),
    "decilm": ({"model_type": "nemotron-nas", "block_configs": [{}]}, "not uniform"),
    "shared-kv": ({"model_type": "gemma3n_text", "num_kv_shared_layers": 10}, "not uniform"),
    "heterogeneous": ({"model_type": "llama", "per_layer_config": {"1": {"intermediate_size": 8}}}, "not uniform"),
    "vision": ({"model_type": "llava", "text_config": {"model_type": "llama"}}, "not supported"),
    "gpt2": ({"model_type": "gpt2"}, "not supported"),
    "nothing": ({}, "not supported"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_name_the_reason_and_what_is_supported(case: str) -> None:
    config, reason = REFUSED[case]
    with pytest.raises(UnsupportedModel, match=reason) as e:
        family_of(config)
    assert f"{len(FAMILIES)} families" in str(e.value) and "docs/concepts.md" in str(e.value)
    assert len(str(e.value)) < 700, "a message, not a page"


WIDE = {"head_dim": 16, "num_key_value_heads": 1}
UNEVEN: dict[str, tuple[dict[str, Any], str, str]] = {
    "E2B": (
        {"hidden_size_per_layer_input": 256, "num_kv_shared_layers": 20, "use_double_wide_mlp": True},
        "an embedding for every layer.*without keys and values of their own.*use_double_wide_mlp",
        "hidden_size_per_layer_input: 256, num_kv_shared_layers: 20",
    ),
    "nothing said of it": ({"hidden_size_per_layer_input": ...}, "an embedding for every layer", "input: 256"),
    "26B-A4B": ({"enable_moe_block": True, "num_experts": 128}, "a mixture of experts", "enable_moe_block: True"),
    "one layer of its own": ({"per_layer_config": {"01": WIDE, "3": {**WIDE, "head_dim": 24}}}, "not uniform", "layer 3"),
    "a sliding layer": ({"per_layer_config": {"0": WIDE, "1": WIDE, "3": WIDE}}, "not uniform", "layer 0"),
    "a layer without": ({"per_layer_config": {"1": WIDE}}, "not uniform", "layer 3"),
    "widths": ({"per_layer_config": {"1": {"intermediate_size": 8}}}, "not uniform", "layer 1"),
    "what is no size": ({"per_layer_config": {"1": {"head_dim": "16"}}}, "not uniform", "layer 1"),
    "what is no mapping": ({"per_layer_config": [1, 2]}, "not uniform", "per_layer_config"),
    "no width": ({"global_head_dim": None}, "not uniform", "global_head_dim: None"),
    "kinds of fewer": ({"layer_types": ["full_attention"], "per_layer_config": {"0": WIDE}}, "not uniform", "of 1 layers"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNEVEN)
def test_sizes_of_gemma_4_whose_layers_differ_are_refused_by_key_and_value(case: str) -> None:
    change, reason, value = UNEVEN[case]
    config = {**tiny_config("gemma4_text").to_dict(), "per_layer_config": {"1": WIDE, "3": WIDE}, **change}
    with pytest.raises(UnsupportedModel, match=reason) as e:
        family_of({k: v for k, v in config.items() if v is not ...})
    assert value in str(e.value.value) and "12B and 31B" in str(e.value.valid) and "Gemma 3" in str(e.value.valid)


def test_gemma_4_says_the_shape_of_its_wide_heads_in_two_ways() -> None:
    """The hub's files by two keys, newer ones by layer: both are the same tensors; what equals the usual is no override."""
    by_layer = tiny_config("gemma4_text").to_dict()
    by_keys = {k: v for k, v in by_layer.items() if k != "per_layer_config"}
    by_keys |= {"global_head_dim": 16, "num_global_key_value_heads": 1}
    assert expected_tensors(by_keys) == expected_tensors(by_layer)
    assert Shape.of(by_keys) == Shape.of(by_layer) == Shape.of(tiny_config("gemma4_text"))
    for change in ({"num_global_key_value_heads": None}, {"attention_k_eq_v": False}, {"global_head_dim": 8}):
        config = {**by_keys, **change}
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(CONFIG_MAPPING["gemma4_text"](**config))
        assert expected_tensors(config) == {n: tuple(p.shape) for n, p in model.named_parameters()}
        assert expected_tensors(model.config.to_dict()) == expected_tensors(config)


def test_harmless_fields_are_not_refused() -> None:
    harmless = {"num_experts": 0, "mlp_only_layers": [], "quantization_config": None, "is_encoder_decoder": False}
    assert family_of({**tiny_config("qwen2").to_dict(), **harmless}) is FAMILIES["qwen2"]


def test_an_unknown_type_on_disk(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {"model_type": "surely_not_a_model"})
    with pytest.raises(UnsupportedModel, match="cannot read this config"):
        load_config(tmp_path)


PERIODS = {
    "gemma2": 2,
    "gemma3_text": 6,
    "smollm3": 4,
    "olmo3": 4,
    "exaone4": 4,
    "cohere2": 4,
    "gpt_oss": 2,
    "qwen3_5_text": 4,
}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_period_that_engines_hard_code_is_known(name: str) -> None:
    assert FAMILIES[name].period == PERIODS.get(name, 0)
    plain = {"model_type": name, "num_hidden_layers": 12}
    assert engine_pattern(plain) is None
    assert period_of(plain) == PERIODS.get(name, 1)
    if name in PERIODS:
        made = CONFIG_MAPPING[name](num_hidden_layers=12).to_dict()
        assert is_special(made) == is_special(plain), "the pattern of the class itself"


@pytest.mark.parametrize("name", PERIODS)
def test_layers_keep_their_meaning_in_engines_only_in_whole_periods(name: str) -> None:
    period, config = PERIODS[name], {"model_type": name, "num_hidden_layers": 12}
    for start in range(12 - period + 1):
        kept = [i for i in range(12) if not start <= i < start + period]
        assert engine_pattern(config, kept) is None
    for drop in range(11 if period > 2 else 10):
        kept = [i for i in range(12) if i != drop]
        assert f"every {period}th layer of {name}" in str(engine_pattern(config, kept)), drop
    key, value = FAMILIES[name].special
    other = {**config, key: [value] * 12}
    assert engine_pattern(other) is not None and period_of(other) == 1, "it follows no pattern of the engines' itself"
