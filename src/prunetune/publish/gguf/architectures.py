"""What GGUF calls a family, what its files hold beside the weights, and what llama.cpp could not compute of a model.

Names of the metadata: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. What llama.cpp takes for granted of an
architecture (a family's attention scale, which layers see a window) stands in no file: a model that has it otherwise is
refused, for it would load and be another model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from prunetune.errors import UnsupportedModel
from prunetune.models.families.pattern import engine_pattern

if TYPE_CHECKING:
    from gguf import GGUFWriter

    Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Architecture:
    """One of GGUF's architectures.

    Attributes:
        name: What GGUF calls it.
        paired: Rotary dimensions lie in pairs (2i, 2i+1), not in halves: rows of q and k change places.
        plus_one: Norms multiply by 1 + w in the family's code, by w in llama.cpp: 1 is added.
        windows: llama.cpp knows which layers see a window; else no layer may.
        own_scale: Attention is scaled by `query_pre_attn_scalar`, which llama.cpp takes to be the head size.
    """

    name: str
    paired: bool = False
    plus_one: bool = False
    windows: bool = False
    own_scale: bool = False


ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture("llama", paired=True),
    "mistral": Architecture("llama", paired=True),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
    "gemma2": Architecture("gemma2", plus_one=True, windows=True, own_scale=True),
    "gemma3_text": Architecture("gemma3", plus_one=True, windows=True, own_scale=True),
}
"""By `model_type`."""

_ROPES = ("default", "linear", "llama3")
_OWN = "use llama.cpp's convert_hf_to_gguf.py: on PATH, in $LLAMA_CPP, or by --converter"


def architecture_of(config: Any) -> Architecture:
    """The architecture of a `PretrainedConfig`; UnsupportedModel where a GGUF file would be another model."""
    found = ARCHITECTURES.get(str(config.model_type))
    if found is None:
        raise UnsupportedModel(
            "this family is not among those that are written as GGUF here",
            value=config.model_type,
            valid=ARCHITECTURES,
            fix=_OWN,
        )
    kinds = set(getattr(config, "layer_types", None) or [])
    if "sliding_attention" in kinds and not found.windows:
        raise UnsupportedModel(
            f"llama.cpp computes {found.name} without windows, and layers of this model have one",
            value=f"sliding_window: {config.sliding_window}",
            fix=_OWN,
        )
    if found.windows and (broken := engine_pattern(config.to_dict())):
        raise UnsupportedModel(broken, fix="cut layers in whole periods (prune.whole_periods), or another engine")
    scalar = getattr(config, "query_pre_attn_scalar", None)
    if found.own_scale and scalar != head_size(config):
        raise UnsupportedModel(
            "this model scales its attention by another number than its head size",
            value=f"query_pre_attn_scalar: {scalar}, head_dim: {head_size(config)}",
            fix=_OWN,
        )
    for rope in _ropes(config).values():
        if rope.get("rope_type", "default") not in _ROPES:
            raise UnsupportedModel(
                "these rotary embeddings are not written here", value=rope.get("rope_type"), valid=_ROPES, fix=_OWN
            )
    return found


def head_size(config: Any) -> int:
    """Dimensions of one attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _ropes(config: Any) -> dict[str, dict[str, Any]]:
    """Kind of layer -> its rotary embedding; one of them for all is under `full_attention`."""
    rope = dict(config.rope_parameters or {})
    return rope if all(isinstance(v, dict) for v in rope.values()) and rope else {"full_attention": rope}


def add_metadata(writer: GGUFWriter, config: Any) -> None:
    """Sizes, norms, rotary embeddings, windows and caps of a config, as GGUF names them."""
    from gguf import RopeScalingType

    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_size(config))
    writer.add_value_length(head_size(config))
    writer.add_rope_dimension_count(head_size(config))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    ropes = _ropes(config)
    rope = ropes["full_attention"]
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if "sliding_attention" in ropes:
        writer.add_rope_freq_base_swa(ropes["sliding_attention"]["rope_theta"])
    if "sliding_attention" in (getattr(config, "layer_types", None) or []):
        writer.add_sliding_window(config.sliding_window)
    for cap, add in (
        ("attn_logit_softcapping", writer.add_attn_logit_softcapping),
        ("final_logit_softcapping", writer.add_final_logit_softcapping),
    ):
        if getattr(config, cap, None):
            add(getattr(config, cap))


def rope_factors(config: Any) -> Array | None:
    """Llama 3's divisors of the rotary frequencies [head size / 2], fp32; None where there are none.

    Between the two wavelengths the factor goes over from 1 to `factor`: transformers' `_compute_llama3_parameters`,
    from https://github.com/meta-llama/llama-models.
    """
    rope = _ropes(config)["full_attention"]
    if rope.get("rope_type") != "llama3":
        return None
    size = head_size(config)
    waves = 2 * np.pi * rope["rope_theta"] ** (np.arange(0, size, 2) / size)
    low, high, context = rope["low_freq_factor"], rope["high_freq_factor"], rope["original_max_position_embeddings"]
    share = np.clip((context / waves - low) / (high - low), 0, 1)  # of the unscaled frequency: 1 for short waves
    return np.asarray(1 / (share + (1 - share) / rope["factor"]), dtype=np.float32)


def values_of(name: str, values: Array, config: Any, architecture: Architecture) -> Array:
    """A tensor's values as llama.cpp wants them.

    Args:
        name: Of the tensor, as transformers has it.
        values: fp32.
        config: Of the model.
        architecture: Of the model.
    """
    if architecture.plus_one and name.endswith("norm.weight"):
        return values + 1
    if architecture.paired and (".q_proj." in name or ".k_proj." in name):
        heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
        halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
        return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)
    return values
