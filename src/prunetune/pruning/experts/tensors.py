"""The tensors of a layer's experts as the model has them, from a file with one tensor an expert."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from prunetune.errors import UnsupportedModel
from prunetune.models.families import Experts, Family


def merged(found: Experts, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A layer's tensors by suffix, those of single experts merged: gate above up, expert after expert."""
    single: dict[str, dict[int, Tensor]] = {name: {} for name in found.single}
    whole = {}
    for suffix, tensor in tensors.items():
        if at := found.single_at(suffix):
            single[at[1]][at[0]] = tensor
        else:
            whole[found.in_model(suffix)] = tensor
    if not any(single.values()):
        return whole
    gate, up, down = (torch.stack([each[i] for i in sorted(each)]) for each in single.values())
    return {**whole, found.gate_up: torch.cat([gate, up], dim=1), found.down: down}


def dense_only(family: Family, what: str, fix: str) -> None:
    """UnsupportedModel for a family with experts: `what` is not there for it."""
    if family.experts:
        raise UnsupportedModel(
            f"{what} is there for dense models alone, and this one is a mixture of experts",
            value=family.model_type,
            fix=fix,
        )
