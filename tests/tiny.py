"""Tiny random models of every family, built from a config, and a character tokenizer: the whole suite runs offline."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from prunetune.models.families import FAMILIES

# Three or four layers, so that a non-final one can go; a sliding window of 8, so that tests can step past it.
BASE: dict[str, Any] = {
    "vocab_size": 104,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXTRA: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "mistral": {"sliding_window": 8},
    "qwen2": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
    "qwen3": {},
    "gemma2": {"sliding_window": 8, "query_pre_attn_scalar": 8},
    "gemma3_text": {
        "sliding_window": 8,
        "query_pre_attn_scalar": 8,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "phi3": {"sliding_window": 8},
    "smollm3": {"use_sliding_window": True, "sliding_window": 8, "no_rope_layer_interval": 2},
    "ministral": {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "ministral3": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "llama_4_scaling_beta": 0.1, "original_max_position_embeddings": 16}},
    "gemma": {},
    "olmo": {"clip_qkv": 2.0},
    "olmo2": {},
    "olmo3": {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "granite": {
        "embedding_multiplier": 3.0, "residual_multiplier": 0.7, "logits_scaling": 2.5, "attention_multiplier": 0.3,
        "mlp_bias": True,
    },
    "seed_oss": {"attention_out_bias": True},
    "exaone4": {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "glm": {},
    "glm4": {},
    "cohere": {"logit_scale": 0.3, "use_qk_norm": True},
    "cohere2": {"logit_scale": 0.3, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "hunyuan_v1_dense": {},
    "ernie4_5": {"use_bias": True},
    "helium": {},
    "stablelm": {"use_qkv_bias": True},
    "qwen3_5_text": {
        "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 6,
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
    },
    "gemma4_text": {
        "hidden_size_per_layer_input": 0, "sliding_window": 8, "global_head_dim": 16, "num_global_key_value_heads": 1,
        "attention_k_eq_v": True, "final_logit_softcapping": 3.0, "use_bidirectional_attention": "vision",
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "gemma4_unified_text": {
        "sliding_window": 8, "global_head_dim": 16, "num_global_key_value_heads": 1, "attention_k_eq_v": True,
        "final_logit_softcapping": 3.0, "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "lfm2": {
        "block_auto_adjust_ff_dim": False, "conv_bias": True, "layer_types": ["conv", "full_attention"] * 2,
    },
    "arcee": {"mlp_bias": True},
    "apertus": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    "nemotron": {"mlp_bias": True, "attention_bias": True},
    "starcoder2": {"sliding_window": 8},
    "gpt_neox": {},
    "phi": {},
    "qwen3_moe": {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 48, "intermediate_size": 64, "norm_topk_prob": True},
    "mixtral": {"num_local_experts": 6, "num_experts_per_tok": 2},
    "olmoe": {"num_experts": 6, "num_experts_per_tok": 3, "clip_qkv": 2.0},
    "gpt_oss": {
        "num_local_experts": 6, "num_experts_per_tok": 3, "sliding_window": 8,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    },
}  # fmt: skip
assert set(EXTRA) == set(FAMILIES)
DENSE = [name for name, family in FAMILIES.items() if family.experts is None]
MIXTURES = [name for name in FAMILIES if name not in DENSE]


def tiny_config(family: str = "llama", **changes: Any) -> Any:
    """A config of `family` with four layers of width 48 and hidden size 32."""
    values = {**BASE, **EXTRA[family], **changes}
    if family in ("qwen2", "phi3", "gpt_neox"):
        values.pop("head_dim")
    if family == "gpt_neox":
        values.pop("num_key_value_heads")
    return CONFIG_MAPPING[family](**values)


def tiny_model(family: str = "llama", seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random fp32 model; every parameter is perturbed, so that norms and biases are not at their trivial values."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(family, **changes), dtype=torch.float32)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
        for name, buffer in model.named_buffers():
            if name.endswith("layer_scalar"):  # learned, though no parameter
                buffer.mul_(0.5 + torch.rand_like(buffer))
    return model.eval()


def layers_of(model: PreTrainedModel) -> Any:
    """The decoder layers of a model of any family."""
    return model.get_submodule(FAMILIES[model.config.model_type].layers)


def down_of(model: PreTrainedModel, layer: int) -> Any:
    """The down projection of a layer."""
    return layers_of(model)[layer].get_submodule(FAMILIES[model.config.model_type].down)


def o_of(model: PreTrainedModel, layer: int) -> Any:
    """The projection of a layer whose input is the attention heads."""
    return layers_of(model)[layer].get_submodule(FAMILIES[model.config.model_type].o)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a printable ASCII character, after <pad> <bos> <eos> <unk>."""
    vocab = {t: i for i, t in enumerate(["<pad>", "<bos>", "<eos>", "<unk>", *string.printable])}
    core = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def tiny_folder(path: Path, family: str = "llama", seed: int = 0, **changes: Any) -> Path:
    """A saved model folder with its tokenizer."""
    tiny_model(family, seed, **changes).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def brief_folder(path: Path) -> Path:
    """A saved model that ends its answers after some forty tokens, so that evaluations of it are quick."""
    model = tiny_model("llama", max_position_embeddings=4096, tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight[model.config.eos_token_id] *= 5
    model.save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path
