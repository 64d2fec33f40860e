"""Where each model family keeps what can be cut: data, one entry a family.

A neuron is one row of the gate and up projections (and their biases) and one column of the down projection
(method, section 1). A `Cut` names one such tensor by its suffix inside the layer; `copies=2` is a fused tensor whose
two halves are cut alike (`gate_up_proj` of Phi3). Everything else about a family that surgery must know is here too:
which config lists have one entry a layer, and which config numbers count layers.

To add a family, add an entry and its line in tests/test_family.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prunetune.common.plugins import joined
from prunetune.errors import UnsupportedModel


@dataclass(frozen=True)
class Cut:
    """One tensor of a layer that loses neurons: `suffix` inside the layer, the dimension, how many fused copies."""

    suffix: str
    dim: int
    copies: int = 1


GATED = (
    Cut("mlp.gate_proj.weight", 0),
    Cut("mlp.gate_proj.bias", 0),
    Cut("mlp.up_proj.weight", 0),
    Cut("mlp.up_proj.bias", 0),
    Cut("mlp.down_proj.weight", 1),
)
FUSED = (Cut("mlp.gate_up_proj.weight", 0, copies=2), Cut("mlp.down_proj.weight", 1))


@dataclass(frozen=True)
class Family:
    """Where a family keeps what can be cut.

    Attributes:
        model_type: `model_type` of config.json.
        cuts: The tensors of a layer that hold its neurons. A suffix that a model lacks (a bias) is simply not there.
        per_layer_keys: Config lists with one entry a layer; sliced by the kept layers, never regenerated.
        layer_count_keys: Config numbers n that mean "the first n layers"; become the number of kept ones below n.
        post_ffn_norm: A norm follows the FFN, and one the attention, so that Eq. 2 holds before it (method, section 2).
        norms: Norm vectors of width d in a layer.
        qk_norm: A norm of width head_dim on queries and on keys.
        qkv_bias: Biases on q, k, v even where the config has no `attention_bias`.
        silent: What its config class fills in where config.json says nothing, of the keys that decide the cost.
        layers: Where the decoder layers are in the model.
        down: The projection whose input is the neurons, inside a layer.
        up: The up projection; fused families have gate and up in one, gate first.
        gate: The gate projection.
        o: The projection whose input is the attention heads, side by side.
        qkv: The projections of queries, keys and values; or the one that fuses them, in that order.
        even_heads: Its config class refuses a hidden size that is no multiple of the attention heads.
        rope_by_hidden: Its config class expects as many LongRoPE factors as hidden size / heads asks for.
        full_every: Without `layer_types` in config.json every n-th layer sees all tokens, the others a sliding window
            if there is one; 0: all see the window; None: only the class knows.
        period: Engines hard-code that every n-th layer (the n-th, the 2n-th, …) is the special one: it sees all tokens,
            or has no rotary embedding. 0: they read each layer's kind, or all are alike. A model keeps its meaning
            there only if layers go in whole periods (method, section 9).
        special: The config list that says which layers those are, and its value for them.
    """

    model_type: str
    cuts: tuple[Cut, ...] = GATED
    per_layer_keys: tuple[str, ...] = ("layer_types",)
    layer_count_keys: tuple[str, ...] = ()
    post_ffn_norm: bool = False
    norms: int = 2
    qk_norm: bool = False
    qkv_bias: bool = False
    silent: Mapping[str, Any] = field(default_factory=dict, hash=False)
    full_every: int | None = None
    period: int = 0
    special: tuple[str, Any] = ("layer_types", "full_attention")

    layers: str = "model.layers"
    down: str = "mlp.down_proj"
    up: str = "mlp.up_proj"
    gate: str = "mlp.gate_proj"
    o: str = "self_attn.o_proj"
    qkv: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    even_heads: bool = False
    rope_by_hidden: bool = False


_QWEN = {"use_sliding_window": False, "sliding_window": 4096}
_GEMMA = {"tie_word_embeddings": True, "sliding_window": 4096, "head_dim": 256}

FAMILIES: dict[str, Family] = {
    f.model_type: f
    for f in (
        Family("llama", full_every=0, even_heads=True),
        Family("mistral", silent={"sliding_window": 4096}, full_every=0),
        Family("qwen2", layer_count_keys=("max_window_layers",), qkv_bias=True, silent=_QWEN),
        Family("qwen3", layer_count_keys=("max_window_layers",), qk_norm=True, silent={**_QWEN, "head_dim": 128}),
        Family("gemma2", post_ffn_norm=True, norms=4, silent=_GEMMA, full_every=2, period=2, even_heads=True),
        Family("gemma3_text", post_ffn_norm=True, norms=4, qk_norm=True, silent=_GEMMA, period=6, even_heads=True),
        Family(
            "phi3",
            cuts=FUSED,
            full_every=0,
            gate="mlp.gate_up_proj",
            up="mlp.gate_up_proj",
            qkv=("self_attn.qkv_proj",),
            rope_by_hidden=True,
        ),
        Family(
            "smollm3",
            per_layer_keys=("layer_types", "no_rope_layers"),
            silent={"tie_word_embeddings": True, "use_sliding_window": False},
            period=4,
            special=("no_rope_layers", 0),
        ),
    )
}

# Config keys that mean "this cannot be cut by dropping neurons and layers alone", with the reason.
_REFUSED: tuple[tuple[tuple[str, ...], str], ...] = (
    (("num_experts", "num_local_experts", "n_routed_experts", "moe_intermediate_size"), "a mixture of experts"),
    (("quantization_config",), "already quantised"),
    (("is_encoder_decoder",), "an encoder-decoder"),
    (
        ("num_kv_shared_layers", "mlp_only_layers", "decoder_sparse_step", "block_configs"),
        "not uniform over its layers",
    ),
)


# Config keys that give sizes; as a list with different numbers they give one a layer, as other pruners do.
_WIDTHS = re.compile(r"(inter|ffn|mlp|hidden|head).*(size|dim|num|width|heads)|num.*heads")


def family_of(config: Any) -> Family:
    """The family of a `PretrainedConfig` or a config.json dict; UnsupportedModel, naming what is supported, if none.

    Raises before any weight is read: an unknown `model_type`, a mixture of experts, per-layer widths, an
    encoder-decoder, and quantised weights are refused.
    """
    d: dict[str, Any] = config if isinstance(config, dict) else config.to_dict()
    supported, model_type = ", ".join(families()), d.get("model_type")
    for keys, reason in _REFUSED:
        for key in keys:
            if d.get(key) not in (None, False, 0, [], {}):
                raise UnsupportedModel(
                    f"this model ({model_type}) is {reason}",
                    value=f"{key}: {d[key]}",
                    valid=f"dense models of {supported}",
                )
    for key, value in d.items():
        if (
            _WIDTHS.search(key)
            and isinstance(value, list)
            and (key == "intermediate_size" or len(set(map(str, value))) > 1)
        ):
            raise UnsupportedModel(
                f"this model ({model_type}) has another FFN width or other heads in each layer",
                value=f"{key}: {str(value)[:60]}",
                valid=f"dense models of {supported}, all layers alike",
            )
    found = families()
    if model_type not in found:
        raise UnsupportedModel("this model family is not supported", value=model_type, valid=supported)
    return found[model_type]


def families() -> dict[str, Family]:
    """All families by `model_type`: ours, and what plugins add."""
    return joined("family", FAMILIES)


def layer_of(family: Family, name: str) -> tuple[int, str] | None:
    """(layer, suffix) of a tensor inside a decoder layer, else None. `model.` may be missing (a base model's file)."""
    prefix, _, last = family.layers.rpartition(".")
    found = re.match(rf"(?:{re.escape(prefix)}\.)?{re.escape(last)}\.(\d+)\.(.+)", name)
    return (int(found[1]), found[2]) if found else None


def is_special(config: Mapping[str, Any]) -> list[bool]:
    """Which layers a config makes the special ones of its family's period; empty where the family has none."""
    family, depth = FAMILIES.get(str(config.get("model_type"))), int(config.get("num_hidden_layers") or 0)
    if family is None or not family.period:
        return []
    key, value = family.special
    kinds = config.get(key)
    if isinstance(kinds, list) and len(kinds) == depth:
        return [kind == value for kind in kinds]
    every = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern")
    every = every or config.get("no_rope_layer_interval") or family.period
    return [(i + 1) % int(every) == 0 for i in range(depth)]


def period_of(config: Any) -> int:
    """The family's period, if this config follows it as engines assume: what layers should go by; else 1."""
    values: dict[str, Any] = config if isinstance(config, dict) else config.to_dict()
    special = is_special(values)
    if not special or engine_pattern(values) is not None:
        return 1
    return FAMILIES[str(values["model_type"])].period


def engine_pattern(config: Mapping[str, Any], kept: Sequence[int] | None = None) -> str | None:
    """Why engines that hard-code the family's pattern compute another model from a config; None where they do not.

    Args:
        config: Of a model, as config.json has it.
        kept: Its layers that stay, ascending; None: all.
    """
    special = is_special(config)
    left = special if kept is None else [special[i] for i in kept] if special else []
    wrong = [i for i, kind in enumerate(left) if kind != ((i + 1) % FAMILIES[str(config["model_type"])].period == 0)]
    if not wrong:
        return None
    period = FAMILIES[str(config["model_type"])].period
    return (
        f"llama.cpp and engines like it hard-code that every {period}th layer of {config['model_type']} is the special "
        f"one ({_SPECIAL[str(config['model_type'])]}); here {len(wrong)} of {len(left)} layers stand elsewhere"
    )


_SPECIAL = {
    "gemma2": "it sees all tokens, the others a window",
    "gemma3_text": "it sees all tokens, the others a window",
    "smollm3": "it has no rotary embedding",
}
