"""Where each model family keeps what can be cut, data, one entry a family; and what is refused.

A neuron is one row of the gate and up projections (and their biases) and one column of the down projection; where
there is no gate, of up and down (method, section 1). An entry says what its projections and norms are called, how a
layer is laid out, what multiplies what, which config lists have one entry a layer. Nothing else names a tensor.
Others take `family_of`, `families`, `layer_of`, `check_packing`, `Family`, of `pattern` what engines assume of its
layers, and of `wrappers` what is read of models with a vision tower.
To add a family: one entry in `entries.py`, its config in tests/tiny.py, its row in docs/concepts.md.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

from prunetune.common.plugins import joined
from prunetune.errors import UnsupportedModel
from prunetune.models.families.entries import FAMILIES
from prunetune.models.families.experts import Experts
from prunetune.models.families.family import Cut, Family, QkNorm
from prunetune.models.families.wrappers import own_name, wrapper_of

__all__ = [
    "FAMILIES",
    "Cut",
    "Experts",
    "Family",
    "QkNorm",
    "check_packing",
    "families",
    "family_of",
    "layer_of",
    "named",
]

# Config keys that mean "this cannot be cut by dropping neurons and layers alone", with the reason.
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_intermediate_size")
_REFUSED: tuple[tuple[tuple[str, ...], str], ...] = (
    (_EXPERTS, "a mixture of experts, of a family whose experts are not known"),
    (("quantization_config",), "already quantised"),
    (("is_encoder_decoder",), "an encoder-decoder"),
    (
        ("num_kv_shared_layers", "mlp_only_layers", "decoder_sparse_step", "block_configs", "per_layer_config"),
        "not uniform over its layers",
    ),
)


# Config keys that give sizes; as a list with different numbers they give one a layer, as other pruners do.
_WIDTHS = re.compile(r"(inter|ffn|mlp|hidden|head).*(size|dim|num|width|heads)|num.*heads")


def family_of(config: Any) -> Family:
    """The family of a `PretrainedConfig` or a config.json dict; UnsupportedModel, naming what is supported, if none.

    Raises before any weight is read: an unknown `model_type`, an unknown mixture of experts, per-layer widths, an
    encoder-decoder, and quantised weights are refused.
    """
    d: dict[str, Any] = config if isinstance(config, dict) else config.to_dict()
    model_type = str(d.get("model_type") or "")
    found = families()
    own = found.get(model_type)
    known = _known(own, d) if own else set[str]()
    for keys, reason in _REFUSED:
        for key in keys:
            harmless: tuple[object, ...] = (None, False, 0, [], {}) if key != "decoder_sparse_step" else (None, 0, 1)
            if d.get(key) not in harmless and key not in known:
                raise UnsupportedModel(
                    f"this model ({model_type}) is {reason}",
                    value=f"{key}: {d[key]}",
                    valid=f"models of {named(model_type)}",
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
                valid=f"models of {named(model_type)}, all layers alike",
            )
    if wrapper := wrapper_of(d):
        raise UnsupportedModel(
            f"this model ({model_type}) wraps its language model, and is read from its folder alone",
            valid=f"its language model, of {', '.join(wrapper.languages.values())}",
            fix="give the folder; in Python `prunetune.models.folders.load_model(FOLDER)` is its language model",
        )
    if own is None:
        raise UnsupportedModel(
            "this model family is not supported",
            value=d.get("model_type"),
            valid=named(model_type),
            fix="a family is one entry of data: `prunetune family MODEL` drafts it, and it goes into one file "
            "(models/families/entries.py) or a plugin, as `family.NAME`: docs/extend.md",
        )
    return own


def _known(family: Family, config: Mapping[str, Any]) -> set[str]:
    """Config keys that its entry speaks for, of those that else mean that a model cannot be cut. UnsupportedModel where
    the entry refuses what they say.
    """
    said = {key: config.get(key, family.silent.get(key)) for key in family.refused}
    if wrong := [key for key, value in said.items() if value]:
        raise UnsupportedModel(
            f"this model ({family.model_type}) {'; it '.join(family.refused[key] for key in wrong)}",
            value=", ".join(f"{key}: {said[key]}" for key in wrong),
            valid=family.served or None,
        )
    if family.mixer and (uneven := family.mixer.uneven(config)):
        raise UnsupportedModel(
            f"this model ({family.model_type}) is not uniform over its layers",
            value=uneven,
            valid=family.served or None,
        )
    experts = (*_EXPERTS, "mlp_only_layers") if family.experts else ()
    return {*experts, *family.refused, *family.layer_map_keys}


def named(wanted: str = "", most: int = 10) -> str:
    """The supported families for a message: all, or where they are many those with the nearest names and a number."""
    found = sorted(families())
    if len(found) <= most:
        return ", ".join(found)
    near = difflib.get_close_matches(wanted, found, n=3, cutoff=0.5)
    near += [name for name in found if len(wanted) > 3 and name.startswith(wanted[:4])]
    shown = list(dict.fromkeys([*near, "llama", "qwen3", "gemma3_text", "mistral", "phi3"]))[:6]
    return f"{len(found)} families: {', '.join(shown)}, … (docs/concepts.md has all)"


def check_packing(model_type: object) -> None:
    """UnsupportedModel where examples in one row would see each other: a state or a convolution runs on from one into
    the next, and no mask keeps them apart.
    """
    family = families().get(str(model_type))
    if family and family.mixer and not family.mixer.attends:
        raise UnsupportedModel(
            f"examples of one row see each other in layers with {family.mixer.called}, so nothing is packed there",
            value=family.model_type,
            fix="packing: false",
        )


def families() -> dict[str, Family]:
    """All families by `model_type`: ours, and what plugins add."""
    return joined("family", FAMILIES)


def layer_of(family: Family, name: str) -> tuple[int, str] | None:
    """(layer, suffix) of a tensor inside a decoder layer, else None.

    `model.` may be missing (a base model's file), or more in front (a wrapper's).
    """
    prefix, _, last = family.layers.rpartition(".")
    found = re.match(rf"(?:{re.escape(prefix)}\.)?{re.escape(last)}\.(\d+)\.(.+)", own_name(name))
    return (int(found[1]), found[2]) if found else None
