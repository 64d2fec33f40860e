"""The draft of an entry: names and shapes alone give back what the entries of the known families say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.tiny import tiny_config
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from prunetune.models.families import FAMILIES, Family
from prunetune.models.families.draft import Draft, draft

NAMES = (
    "layers", "embedding", "final_norm", "head", "down", "up", "gate", "o", "qkv", "norms", "qk_norm", "qkv_bias",
    "o_bias", "mlp_bias", "head_bias", "norm_bias", "post_ffn_norm", "per_layer_keys", "grouped", "query_gate",
)  # fmt: skip
# What names and shapes cannot tell, and the draft says that it cannot.
UNTOLD: dict[str, dict[str, Any]] = {
    "cohere": {"qk_norm": replace(FAMILIES["cohere"].qk_norm or pytest.fail(), when=True)},
    "helium": {"o_bias": "attention_bias"},
    "seed_oss": {"o_bias": "attention_bias"},
}


def drafted(config: Any) -> tuple[Draft, dict[str, tuple[int, ...]]]:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    return draft(config.to_dict(), shapes), shapes


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.experts is None])
def test_a_known_family_is_told_from_its_names(name: str) -> None:
    made, _ = drafted(tiny_config(name))
    entry = made.family()
    assert eval(made.source(), {"Family": Family, "QkNorm": type(entry.qk_norm)}) == entry, "the text is the entry"
    wanted = {key: UNTOLD.get(name, {}).get(key, getattr(FAMILIES[name], key)) for key in NAMES}
    assert {key: getattr(entry, key) for key in NAMES} == wanted
    assert made.unknown == (["mlp.act_fn.alpha_n", "mlp.act_fn.alpha_p"] if name == "apertus" else [])
    said = "\n".join(made.unsure)
    for key in UNTOLD.get(name, {}).keys() - {"qk_norm"}:
        assert f"{key}: " in said
    multipliers = (FAMILIES[name].embedding_scale, FAMILIES[name].residual_scale, FAMILIES[name].logit_scale)
    assert all(f"{key} = " in said for key in multipliers if key)
    assert ("its `mixer`" in said) == (FAMILIES[name].mixer is not None)
    if isinstance(FAMILIES[name].parallel, str):
        assert f"{FAMILIES[name].parallel} = " in said


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.experts is not None])
def test_a_mixture_of_experts_is_said(name: str) -> None:
    made, _ = drafted(tiny_config(name))
    assert any("a mixture of experts" in line for line in made.unsure)


def test_what_is_no_dense_decoder_is_said() -> None:
    config = CONFIG_MAPPING["gpt2"](n_embd=32, n_layer=2, n_head=4, vocab_size=64)
    made, _ = drafted(config)
    said = "\n".join(made.unsure)
    assert "the FFN: no tensors" in said and made.entry["layers"] == "transformer.h"
    assert made.unknown


def test_odd_names_are_found_by_their_shapes() -> None:
    """A made-up model: w1, w2, w3, wq, wk, wv, wo."""
    config = {"model_type": "toy", "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 30}  # fmt: skip
    layer = {
        "feed_forward.w1.weight": (12, 8), "feed_forward.w2.weight": (8, 12), "feed_forward.w3.weight": (12, 8),
        "attention.wq.weight": (8, 8), "attention.wk.weight": (4, 8), "attention.wv.weight": (4, 8), "attention.wo.weight": (8, 8),
        "attention_norm.weight": (8,), "ffn_norm.weight": (8,), "odd.thing": (3,),
    }  # fmt: skip
    shapes = {f"layers.{i}.{n}": s for i in range(2) for n, s in layer.items()}
    shapes |= {"tok_embeddings.weight": (30, 8), "norm.weight": (8,), "output.weight": (30, 8)}
    made = draft(config, shapes)
    entry = made.family()
    assert (entry.gate, entry.up, entry.down) == ("feed_forward.w1", "feed_forward.w3", "feed_forward.w2")
    assert entry.qkv == ("attention.wq", "attention.wk", "attention.wv") and entry.o == "attention.wo"
    assert entry.norms == ("attention_norm", "ffn_norm") and (entry.qkv_bias, entry.mlp_bias) == (False, False)
    assert (entry.layers, entry.embedding, entry.head) == ("layers", "tok_embeddings", "output")
    assert made.unknown == ["odd.thing"] and "odd.thing" in made.text()
    uneven = {**shapes, "layers.1.feed_forward.w1.weight": (16, 8)}
    assert any("2 kinds" in line for line in draft(config, uneven).unsure)
    assert any("no tensor names" in line for line in draft(config, {}).unsure)
