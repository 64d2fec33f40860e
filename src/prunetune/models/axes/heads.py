"""The axis `heads`: key/value groups, each with all of its query heads (method, section 9).

A group is rows of the query, key and value projections (and of their biases) and columns of the output projection.
Norms of queries and keys are of one head's width and stay (where each head has its own, they go with it), as does what
scales the products: `head_dim` is written out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunetune.models.axes.axis import Axis, Slice, Values
from prunetune.models.families import Family


def groups(values: Values) -> int:
    """Key/value heads of a config; one a query head where it does not say."""
    return int(values.get("num_key_value_heads") or values["num_attention_heads"])


def head_dim(values: Values) -> int:
    """Width of a head, which a config may leave to its hidden size."""
    return int(values.get("head_dim") or values["hidden_size"] // values["num_attention_heads"])


def attention(family: Family, queries: int, keys: int, fixed: int = 0) -> tuple[Slice, ...]:
    """The tensors of the attention, by how many heads a unit has in each.

    Args:
        family: Where they are.
        queries: Query heads of a unit.
        keys: Its key heads, and its value heads.
        fixed: Key and value heads behind the queries of a fused projection that all stay.
    """
    found = []
    if len(family.qkv) == 1:
        blocks = (queries, keys, keys) if keys else (queries,)
        found = [Slice(f"{family.qkv[0]}.{kind}", 0, blocks, fixed, scaled=True) for kind in ("weight", "bias")]
    else:
        parts = zip(family.qkv, (queries, keys, keys), strict=True)
        found = [Slice(f"{n}.{k}", 0, (b,), scaled=True) for n, b in parts if b for k in ("weight", "bias")]
    if family.qk_norm and family.qk_norm.per == "each":
        sizes = zip(family.qk_norm.names, (queries, keys), strict=True)
        found += [Slice(f"{name}.weight", 0, (heads,)) for name, heads in sizes if heads]
    if family.sinks and queries:
        found.append(Slice(family.sinks, 0, (queries,)))
    return (*found, Slice(f"{family.o}.weight", 1, (queries,), scaled=True))


def unfit(family: Family, values: Values) -> str | None:
    """Some config classes check hidden size / heads, though `head_dim` is given and is what counts."""
    if family.heads_stay:
        return family.heads_stay
    hidden, heads = int(values["hidden_size"]), int(values["num_attention_heads"])
    if family.even_heads and hidden % heads:
        return f"its config class wants the hidden size ({hidden}) to be a multiple of the attention heads ({heads})"
    rope = values.get("rope_parameters") or values.get("rope_scaling")
    factors = rope.get("short_factor") if family.rope_by_hidden and isinstance(rope, Mapping) else None
    if not isinstance(rope, Mapping) or not isinstance(factors, list | tuple):
        return None
    part = rope.get("partial_rotary_factor")
    wanted = int(hidden // heads * (part if isinstance(part, int | float) and part else 1)) // 2
    if len(factors) != wanted:
        return f"its config class wants {wanted} factors of LongRoPE then, and there are {len(factors)}"
    return None


def _resized(values: Values, count: int) -> dict[str, Any]:
    ratio = int(values["num_attention_heads"]) // groups(values)
    return {"num_key_value_heads": count, "num_attention_heads": count * ratio, "head_dim": head_dim(values)}


def _slices(family: Family, shape: Mapping[str, int]) -> tuple[Slice, ...]:
    return attention(family, queries=shape["query_heads"], keys=1)


HEADS = Axis(
    name="heads",
    units=groups,
    resized=_resized,
    slices=_slices,
    called=("key/value group", "key/value groups"),
    readout=lambda family: family.o,
    beside=("query_heads",),
    unfit=unfit,
)
