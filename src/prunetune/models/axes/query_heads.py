"""The axis `query_heads`: query heads within every key/value group, whose keys and values stay (method, section 9).

The number is that of one group (the ratio of query to key/value heads, which stays whole); which of them go is each
group's own matter. Indices run over all query heads of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunetune.models.axes.axis import Axis, Slice, Values
from prunetune.models.axes.heads import attention, groups, head_dim, unfit
from prunetune.models.families import Family


def _resized(values: Values, count: int) -> dict[str, Any]:
    return {"num_attention_heads": count * groups(values), "head_dim": head_dim(values)}


def _slices(family: Family, shape: Mapping[str, int]) -> tuple[Slice, ...]:
    return attention(family, queries=1, keys=0, fixed=2 * shape["heads"])


QUERY_HEADS = Axis(
    name="query_heads",
    units=lambda values: int(values["num_attention_heads"]) // groups(values),
    resized=_resized,
    slices=_slices,
    called=("query head", "query heads"),
    readout=lambda family: family.o,
    within="heads",
    beside=("heads",),
    unfit=unfit,
)
