"""What engines hard-code of a family's layers, and whether a model with layers gone keeps its meaning there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prunetune.models.families.entries import FAMILIES


def is_special(config: Mapping[str, Any]) -> list[bool]:
    """Which layers a config makes the special ones of its family's period; empty where the family has none."""
    family, depth = FAMILIES.get(str(config.get("model_type"))), int(config.get("num_hidden_layers") or 0)
    if family is None or not family.period:
        return []
    key, value = family.special
    if config.get("sliding_window", 1) is None and key == "layer_types":
        return []  # a model of the family without windows
    kinds = config.get(key)
    if isinstance(kinds, list) and len(kinds) == depth:
        return [kind == value for kind in kinds]
    every = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern")
    every = every or config.get("no_rope_layer_interval") or config.get("full_attention_interval") or family.period
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
    family = FAMILIES[str(config["model_type"])]
    return (
        f"llama.cpp and engines like it hard-code that every {family.period}th layer of {family.model_type} is the "
        f"special one ({family.special_means}); here {len(wrong)} of {len(left)} layers stand elsewhere"
    )
