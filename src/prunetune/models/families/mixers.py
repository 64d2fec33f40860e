"""What takes the place of attention in some layers of a family: linear attention, a short convolution, or attention
with heads of another shape.

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
        attends: Where it is attention, too: (query heads, key/value heads) times their width. None: it is another
            thing, in which the examples of one packed row would see each other.
        uneven: Why a config's layers are of more than two shapes; None: they are not. It may hold anything.
        spelled: Keys for those who do not read how transformers writes it.
    """

    kind: str
    called: str
    counts: tuple[str, ...]
    kinds: Callable[[Values], list[str]]
    sizes: Callable[[Values], dict[str, Size]]
    state: Callable[[Values], tuple[int, int]]
    attends: Callable[[Values], tuple[int, int]] | None = None
    uneven: Callable[[Values], str | None] = lambda values: None
    spelled: Callable[[Values], dict[str, int]] = lambda values: {}


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


_OVERRIDES = "per_layer_config"
_OTHER_HEADS = ("head_dim", "num_key_value_heads")


def _gemma4_kinds(values: Values) -> list[str]:
    """Every sixth layer sees all tokens, and the last one."""
    depth = values["num_hidden_layers"]
    return ["sliding_attention" if (i + 1) % 6 and i + 1 < depth else "full_attention" for i in range(depth)]


def _full_heads(values: Values) -> tuple[int, int]:
    """(width of a head, key/value heads) of the layers that see all tokens.

    The hub's files say it by `global_head_dim` and `num_global_key_value_heads`; newer versions of transformers write
    for each such layer what is its own.
    """
    usual: tuple[int, int] = (values["head_dim"], values["num_key_value_heads"])
    if isinstance(own := values.get(_OVERRIDES), Mapping):
        first = next((dict(one) for one in own.values() if one), {})
        return first.get("head_dim", usual[0]), first.get("num_key_value_heads", usual[1])
    groups: int | None = values.get("num_global_key_value_heads") if values.get("attention_k_eq_v") else None
    return values.get("global_head_dim", 512), usual[1] if groups is None else groups


def _full(values: Values) -> dict[str, Size]:
    (width, groups), hidden, bias = _full_heads(values), values["hidden_size"], values.get("attention_bias")
    rows = {"q_proj": values["num_attention_heads"] * width, "k_proj": groups * width, "v_proj": groups * width}
    if values.get("attention_k_eq_v"):
        del rows["v_proj"]
    found: dict[str, Size] = {f"self_attn.{name}.weight": (size, hidden) for name, size in rows.items()}
    found |= {"self_attn.o_proj.weight": (hidden, rows["q_proj"])}
    found |= {f"self_attn.{name}.bias": (size,) for name, size in {**rows, "o_proj": hidden}.items() if bias}
    return found | {f"self_attn.{name}.weight": (width,) for name in ("q_norm", "k_norm")}


def _full_products(values: Values) -> tuple[int, int]:
    width, groups = _full_heads(values)
    return values["num_attention_heads"] * width, groups * width


def _is_size(value: object) -> bool:
    return type(value) is int and value > 0


def _full_uneven(values: Values) -> str | None:
    own, depth = values.get(_OVERRIDES), values.get("num_hidden_layers")
    for key in ("global_head_dim", "num_global_key_value_heads"):
        if key in values and not _is_size(values[key]) and not (key.startswith("num") and values[key] is None):
            return f"{key}: {str(values[key])[:60]}"
    if not own:
        return None
    try:
        by_layer = {int(at): dict(one) for at, one in own.items()}
        kinds = values.get("layer_types") or _gemma4_kinds(values)
        usual, seen = {key: values.get(key) for key in _OTHER_HEADS}, dict[str, Any]()
        for i, kind in enumerate(kinds):
            one = {key: n for key, n in by_layer.get(i, {}).items() if key not in usual or n != usual[key]}
            if (
                one.keys() - usual.keys()
                or not all(map(_is_size, one.values()))
                or one != seen.setdefault(kind, one)
                or (one and kind != "full_attention")
            ):
                return f"{_OVERRIDES} of layer {i} ({kind}): {one}"
    except (AttributeError, TypeError, ValueError):
        return f"{_OVERRIDES}: {str(own)[:60]}"
    return None if len(kinds) == depth else f"layer_types of {len(kinds)} layers; num_hidden_layers: {depth}"


WIDE_ATTENTION = Mixer(
    "full_attention",
    "those that see all tokens have others",
    ("sliding_window",),
    _gemma4_kinds,
    _full,
    lambda values: (0, 0),
    _full_products,
    _full_uneven,
    lambda values: dict(zip(("global_head_dim", "num_global_key_value_heads"), _full_heads(values), strict=True)),
)
"""Gemma 4: layers that see all tokens have wider heads, fewer keys, and values that are the keys, before their norm."""
