"""The tensors that a model of a supported family consists of, by its config alone: name -> shape.

tests/models/test_tensors.py holds this against the classes of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunetune.models.cost import Shape
from prunetune.models.families import Family, family_of

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"

# Norms of width d in a layer, by how many there are.
_NORMS = {
    2: ("input_layernorm", "post_attention_layernorm"),
    4: ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"),
}


def expected_tensors(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of the model, a tied head apart. UnsupportedModel where `family_of` raises it."""
    values = dict(config)
    family, shape = family_of(values), Shape.of(values)
    layer = _layer(family, shape, attention_bias=bool(values.get("attention_bias", False)))
    found: dict[str, tuple[int, ...]] = {EMBEDDING: (shape.vocab, shape.hidden)}
    for i in range(shape.depth):
        found |= {f"{family.layers}.{i}.{suffix}": size for suffix, size in layer.items()}
    found["model.norm.weight"] = (shape.hidden,)
    if not shape.tied:
        found[HEAD] = (shape.vocab, shape.hidden)
    return found


def _layer(family: Family, shape: Shape, *, attention_bias: bool) -> dict[str, tuple[int, ...]]:
    queries, keys, hidden = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim, shape.hidden
    parts = (queries, keys, keys)
    rows = dict(zip(family.qkv, parts if len(family.qkv) == 3 else (sum(parts),), strict=True))
    found: dict[str, tuple[int, ...]] = {f"{n}.weight": (r, hidden) for n, r in rows.items()}
    found[f"{family.o}.weight"] = (hidden, queries)
    if attention_bias or family.qkv_bias:
        found |= {f"{n}.bias": (r,) for n, r in rows.items()}
    if attention_bias:
        found[f"{family.o}.bias"] = (hidden,)
    if family.qk_norm:
        found |= {f"self_attn.{n}.weight": (shape.head_dim,) for n in ("q_norm", "k_norm")}
    found |= {f"{n}.weight": (hidden,) for n in _NORMS[family.norms]}
    for cut in family.cuts:
        rows_of = shape.width * cut.copies
        if cut.suffix.endswith(".weight"):
            found[cut.suffix] = (rows_of, hidden) if cut.dim == 0 else (hidden, rows_of)
        elif shape.mlp_bias:
            found[cut.suffix] = (rows_of,)
    if shape.mlp_bias:
        found[f"{family.down}.bias"] = (hidden,)
    return found
