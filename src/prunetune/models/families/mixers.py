"""What takes the place of attention in some layers of a family: linear attention, a short convolution.

Such a layer has the family's norms and FFN. Its kind stands in `layer_types`, and stays what it was. Its neurons
can go, or all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Size = tuple[int, ...]
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Mixer:
    """A layer's part that mixes tokens, where it is no attention.

    Attributes:
        kind: Its value in `layer_types`.
        called: What it is, in words.
        counts: Config keys that give its sizes: whole numbers above 0.
        kinds: Each layer's kind where a config has no `layer_types`.
        sizes: Its tensors by their suffix in a layer, of a config whose defaults are filled in.
        state: Elements that the cache holds of one sequence in one layer: (in the model's dtype, in fp32).
    """

    kind: str
    called: str
    counts: tuple[str, ...]
    kinds: Callable[[Values], list[str]]
    sizes: Callable[[Values], dict[str, Size]]
    state: Callable[[Values], tuple[int, int]]


def _convolution(values: Values) -> dict[str, Size]:
    hidden, kernel = values["hidden_size"], values["conv_L_cache"]
    found: dict[str, Size] = {
        "conv.conv.weight": (hidden, 1, kernel),
        "conv.in_proj.weight": (3 * hidden, hidden),
        "conv.out_proj.weight": (hidden, hidden),
    }
    if values["conv_bias"]:
        found |= {"conv.conv.bias": (hidden,), "conv.in_proj.bias": (3 * hidden,), "conv.out_proj.bias": (hidden,)}
    return found


def _listed(values: Values) -> list[str]:
    """Layers with attention are listed; without a list all have it."""
    full = values.get("full_attn_idxs")
    return ["full_attention" if full is None or i in full else "conv" for i in range(values["num_hidden_layers"])]


SHORT_CONVOLUTION = Mixer(
    "conv",
    "a short convolution",
    ("conv_L_cache",),
    _listed,
    _convolution,
    lambda values: (values["hidden_size"] * values["conv_L_cache"], 0),
)
"""LFM2's gated convolution over the last few tokens: https://arxiv.org/abs/2511.23404."""


def _delta(values: Values) -> dict[str, Size]:
    hidden, heads = values["hidden_size"], values["linear_num_value_heads"]
    queries, out = _delta_widths(values)
    return {
        "linear_attn.dt_bias": (heads,),
        "linear_attn.A_log": (heads,),
        "linear_attn.conv1d.weight": (queries, 1, values["linear_conv_kernel_dim"]),
        "linear_attn.norm.weight": (values["linear_value_head_dim"],),
        "linear_attn.out_proj.weight": (hidden, out),
        "linear_attn.in_proj_qkv.weight": (queries, hidden),
        "linear_attn.in_proj_z.weight": (out, hidden),
        "linear_attn.in_proj_b.weight": (heads, hidden),
        "linear_attn.in_proj_a.weight": (heads, hidden),
    }


def _delta_widths(values: Values) -> tuple[int, int]:
    """(queries, keys and values together; values)."""
    keys = values["linear_num_key_heads"] * values["linear_key_head_dim"]
    out = values["linear_num_value_heads"] * values["linear_value_head_dim"]
    return 2 * keys + out, out


def _delta_state(values: Values) -> tuple[int, int]:
    queries, out = _delta_widths(values)
    return queries * values["linear_conv_kernel_dim"], out * values["linear_key_head_dim"]


def _every(values: Values) -> list[str]:
    """Every n-th layer has attention."""
    n = values.get("full_attention_interval") or 4
    return ["linear_attention" if (i + 1) % n else "full_attention" for i in range(values["num_hidden_layers"])]


_HEADS = ("linear_num_key_heads", "linear_num_value_heads", "linear_key_head_dim", "linear_value_head_dim")
GATED_DELTA = Mixer(
    "linear_attention", "linear attention", (*_HEADS, "linear_conv_kernel_dim"), _every, _delta, _delta_state
)
"""The gated delta rule: https://arxiv.org/abs/2412.06464."""
