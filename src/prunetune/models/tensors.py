"""The tensors that a model of a supported family consists of, by its config alone: name -> shape.

tests/models/test_tensors.py holds this against the classes of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunetune.models.families import Family, family_of
from prunetune.models.shape import Shape, filled

Sizes = dict[str, tuple[int, ...]]


def expected_tensors(config: Mapping[str, Any]) -> Sizes:
    """Every parameter of the model, a tied head apart. UnsupportedModel where `family_of` raises it."""
    values = dict(config)
    family, shape = family_of(values), Shape.of(values)
    alike, attention, mixed, kinds = _layer(family, shape), _attention(family, shape), Sizes(), list[str]()
    if family.mixer:
        config = vars(filled(values, family))
        mixed, kinds = family.mixer.sizes(config), config["layer_types"]
    found: Sizes = {f"{family.embedding}.weight": (shape.vocab, shape.hidden)}
    for i in range(shape.depth):
        own = mixed if family.mixer and kinds[i] == family.mixer.kind else attention
        found |= {f"{family.layers}.{i}.{suffix}": size for suffix, size in {**own, **alike}.items()}
    found |= _norm(family, family.final_norm, shape.hidden)
    if not shape.tied:
        found[f"{family.head}.weight"] = (shape.vocab, shape.hidden)
    if shape.head_bias:
        found[f"{family.head}.bias"] = (shape.vocab,)
    return found


def token_tensors(family: Family) -> frozenset[str]:
    """What has a row a token, by its names in a file: the embedding, the head, its bias."""
    ours = {f"{family.embedding}.weight", f"{family.head}.weight", f"{family.head}.bias"}
    return frozenset(ours | {theirs for theirs, own in family.stored.items() if own in ours})


def part_of(family: Family, name: str) -> str:
    """What a tensor belongs to: `embeddings` (with the head), `attention`, `FFN` or `norms`."""
    if name.startswith((f"{family.embedding}.", f"{family.head}.")):
        return "embeddings"
    norms = (*family.norms, *(family.qk_norm.names if family.qk_norm else ()))
    if name.startswith(f"{family.final_norm}.") or any(f".{norm}." in name for norm in norms):
        return "norms"
    ffn = family.experts.module if family.experts else family.down
    return "FFN" if f".{ffn.split('.')[0]}." in name else "attention"


def _norm(family: Family, name: str, *size: int) -> Sizes:
    kinds = [k for k, there in (("weight", family.norm_weight), ("bias", family.norm_bias)) if there]
    return {f"{name}.{kind}": size for kind in kinds}


def _layer(family: Family, shape: Shape) -> Sizes:
    """What every layer has, whatever its kind."""
    found: Sizes = {}
    for norm in family.norms:
        if not (shape.parallel and norm in family.parallel_lacks):
            found |= _norm(family, norm, shape.hidden)
    if family.experts:
        found |= family.experts.sizes(shape.experts, shape.hidden, shape.width)
    for cut in family.cuts:
        rows = shape.width * cut.copies
        if cut.suffix.endswith(".weight"):
            found[cut.suffix] = (rows, shape.hidden) if cut.dim == 0 else (shape.hidden, rows)
        elif shape.mlp_bias:
            found[cut.suffix] = (rows,)
    if shape.mlp_bias:
        found[f"{family.down}.bias"] = (shape.hidden,)
    return found | {suffix: (size,) for suffix, size in family.extra.items()}


def _attention(family: Family, shape: Shape) -> Sizes:
    queries, keys, hidden = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim, shape.hidden
    parts = (queries * (2 if shape.query_gate else 1), keys, keys)
    rows = dict(zip(family.qkv, parts if len(family.qkv) == 3 else (sum(parts),), strict=True))
    found: Sizes = {f"{n}.weight": (r, hidden) for n, r in rows.items()}
    found[f"{family.o}.weight"] = (hidden, queries)
    if shape.qkv_bias:
        found |= {f"{n}.bias": (r,) for n, r in rows.items()}
    if shape.o_bias:
        found[f"{family.o}.bias"] = (hidden,)
    if family.sinks:
        found[family.sinks] = (shape.heads,)
    if family.qk_norm and shape.qk_norm:
        sizes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
            "head": ((shape.head_dim,), (shape.head_dim,)),
            "each": ((shape.heads, shape.head_dim), (shape.kv_heads, shape.head_dim)),
            "all": ((queries,), (keys,)),
        }
        found |= {f"{n}.weight": size for n, size in zip(family.qk_norm.names, sizes[shape.qk_norm], strict=True)}
    return found
