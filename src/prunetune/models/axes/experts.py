"""The axis `experts`: whole experts of every layer's mixture, with their rows of the router (and of its bias).

The router chooses among what stays: its softmax is over those. `num_experts_per_tok` is kept, or becomes the number of
experts where fewer stay. Shared experts, which every token passes, are none of these and stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunetune.models.axes.axis import Axis, Slice, Values
from prunetune.models.families import Family

KEYS = ("num_local_experts", "num_experts")
"""What configs call their number; transformers takes either for the same."""


def experts(values: Values) -> int:
    """Experts of a config's layers; 0 of a dense model."""
    return int(next((values[key] for key in KEYS if values.get(key)), 0))


def _resized(values: Values, count: int) -> dict[str, Any]:
    changed: dict[str, Any] = {key: count for key in KEYS if values.get(key)}
    if int(values["num_experts_per_tok"]) > count:
        changed["num_experts_per_tok"] = max(1, count)
    return changed


def spelled(changed: Mapping[str, Any], raw: Values) -> dict[str, Any]:
    """The same changes, with the number of experts under the key that a config.json has it under."""
    count = next((changed[key] for key in KEYS if key in changed), None)
    names = [key for key in KEYS if raw.get(key)]
    if count is None or not names:
        return dict(changed)
    return {key: value for key, value in changed.items() if key not in KEYS} | dict.fromkeys(names, count)


def _slices(family: Family, shape: Mapping[str, int]) -> tuple[Slice, ...]:
    found = family.experts
    return tuple(Slice(suffix, 0) for suffix in found.sizes(1, 1, 1)) if found else ()


EXPERTS = Axis(
    name="experts",
    units=experts,
    resized=_resized,
    slices=_slices,
    called=("expert", "experts"),
)
