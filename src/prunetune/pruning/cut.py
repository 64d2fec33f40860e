"""What becomes of a tensor, of its name, and of the config when a plan is applied: pure, for any driver.

A layer is never deleted from the ModuleList, whose modules remember their index: the config is cut, the model is built
from it, the cut tensors are loaded (method, section 8).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Shaped

from prunetune.errors import PlanError, UnsupportedModel
from prunetune.models.axes import Axis, Slice, axis_of, resized
from prunetune.models.axes.experts import spelled
from prunetune.models.families import Family, layer_of
from prunetune.models.families.wrappers import own_name
from prunetune.pruning.experts.cut import check_counted, cut_experts, in_patch, kept_experts, own_part
from prunetune.pruning.plan import PrunePlan

Tensor = Shaped[torch.Tensor, "..."]
PatchTensors = Mapping[str, Tensor]


def cut_name(plan: PrunePlan, family: Family, name: str) -> str | None:
    """The name that a source tensor has in the result, its layer renumbered, and its expert where it is that of one;
    None if either is dropped, or nothing reads it.
    """
    at = layer_of(family, name)
    if at is None:
        return None if name.startswith(family.unread) else name
    layer, suffix = at
    _check_layer(plan, layer, name)
    if layer in plan.drop_layers:
        return None
    new = layer - sum(dropped < layer for dropped in plan.drop_layers)
    start = name[: -len(f"{layer}.{suffix}")]
    if family.experts and (single := family.experts.single_at(suffix)):
        kept = kept_experts(plan, layer, single[0] + 1)
        if single[0] not in kept:
            return None
        suffix = family.experts.renumbered(suffix, list(kept).index(single[0]))
    return f"{start}{new}.{suffix}"


def cut_tensor(plan: PrunePlan, patch: PatchTensors, family: Family, name: str, tensor: Tensor) -> Tensor | None:
    """What becomes of one tensor of the source.

    Args:
        plan: What goes.
        patch: Tensors, by their `patch_name`, that replace the cut ones (compensated weights); of the cut shape.
        family: Where the units of each axis are.
        name: The tensor's name in the source.
        tensor: The tensor.

    Returns:
        None if its layer, or the expert whose it is, is dropped; the tensor itself, not a copy, if nothing of it goes;
        else a new tensor.

    Raises:
        PlanError: the tensor or its patch does not have the shape that the plan says.
    """
    at = layer_of(family, name)
    if at is None:
        return _patched(plan, patch, family, name, tensor)
    layer, suffix = at
    _check_layer(plan, layer, name)
    if layer in plan.drop_layers:
        return None
    if family.experts and family.experts.held(suffix) in family.experts.sizes(1, 1, 1):
        cut = cut_experts(plan, family, layer, suffix, name, tensor)
        return None if cut is None else _patched(plan, patch, family, name, cut)
    stays: torch.Tensor | None = None
    for axis_name in ("neurons", *plan.sizes):
        axis = axis_of(axis_name)
        for found in axis.slices(family, plan.shape):
            if found.suffix == suffix:
                here = _stays(plan, axis, found, layer, name, tensor)
                if here is not None:
                    stays = here if stays is None else stays & here
                    dim = found.dim
    if stays is None:
        return _patched(plan, patch, family, name, tensor)
    return _patched(plan, patch, family, name, tensor.index_select(dim, stays.nonzero().squeeze(1).to(tensor.device)))


def _stays(plan: PrunePlan, axis: Axis, cut: Slice, layer: int, name: str, tensor: Tensor) -> torch.Tensor | None:
    """Which places of the tensor's cut dimension stay, as far as this axis goes; None: nothing of it goes anywhere."""
    size, places = tensor.shape[cut.dim], axis.places(plan.shape)
    rows = cut.rows(size, places)
    if rows is None:
        what = "FFN width" if axis.name == "neurons" else f"number of {axis.called[1]}"
        raise PlanError(
            f"{name} has another {what} than the plan",
            value=size // sum(cut.blocks),
            valid=f"{places}",
            fix="make the plan for this model",
        )
    if not plan.drops(axis.name):
        return None
    kept = torch.zeros(places, dtype=torch.bool)
    kept[list(plan.kept(axis.name, layer))] = True
    blocks, rest = rows
    return torch.cat([*(kept.repeat_interleave(block) for block in blocks), torch.ones(rest, dtype=torch.bool)])


def _check_layer(plan: PrunePlan, layer: int, name: str) -> None:
    if layer >= plan.depth:
        raise PlanError(
            f"this model has a layer that the plan does not know ({name})", value=layer, valid=f"0..{plan.depth - 1}"
        )


def patch_name(family: Family, name: str) -> str:
    """What a patch calls a tensor: as the family's model has it, whatever a file does. So one patch serves a model in
    memory, its folder, and a wrapper around it.
    """
    if (at := layer_of(family, name)) is None:
        return own_name(name)
    layer, suffix = at
    return f"{family.layers}.{layer}.{in_patch(family.experts, suffix) if family.experts else suffix}"


def _patched(plan: PrunePlan, patch: PatchTensors, family: Family, name: str, tensor: Tensor) -> Tensor:
    called = patch_name(family, name) if patch else name
    if called not in patch:
        return tensor
    new, at = patch[called], layer_of(family, name)
    if family.experts and at:
        new = own_part(plan, family.experts, *at, new)
    if new.shape != tensor.shape:
        raise PlanError(
            f"the patch of {name} does not fit the plan", value=tuple(new.shape), valid=f"{tuple(tensor.shape)}"
        )
    return new.to(tensor)


def cut_config(plan: PrunePlan, family: Family, raw: dict[str, Any], resolved: dict[str, Any]) -> dict[str, Any]:
    """The raw config.json with only the cut fields changed.

    Args:
        plan: What goes.
        family: Which fields have one entry a layer, or count layers.
        raw: The source's config.json as it is written.
        resolved: The same after transformers filled in its defaults (`config.to_dict()`).

    Old files lack lists such as `layer_types`, which transformers then derives from a layer's index. Where layers go
    and that list is not constant, it is written, sliced, so that each kept layer stays what it was. Where the class
    has the last word on it (`Family.last`), what is sliced is what the class makes of it.
    """
    check_shape(plan, resolved)
    check_counted(plan, family)
    changed = spelled(resized(resolved, plan.new_shape), raw)
    for name in plan.drop:
        if told := axis_of(name).unfit(family, {**resolved, **changed}):
            raise UnsupportedModel(
                f"no stock model of this family has so many {name}: {told}", value=plan.new_shape[name]
            )
    out = {**raw, **changed}
    out |= {theirs: changed[ours] for theirs, ours in family.aliases.items() if theirs in raw and ours in changed}
    if raw.get(family.unread_count):
        out[family.unread_count] = 0
    if not plan.drop_layers:
        return out
    for key in family.per_layer_keys:
        full = resolved.get(key) if raw.get(key) is None or family.last else raw[key]
        if not full or (raw.get(key) is None and len(set(full)) == 1):
            continue
        if len(full) < plan.depth:
            raise UnsupportedModel(
                f"`{key}` of this config is shorter than the model", value=len(full), valid=f"{plan.depth}"
            )
        out[key] = [full[layer] for layer in plan.kept_layers]
    for key in family.layer_index_keys:
        if raw.get(key) is not None:
            out[key] = [new for new, layer in enumerate(plan.kept_layers) if layer in raw[key]]
    for key in family.layer_map_keys:
        if raw.get(key):
            by_layer = {int(at): own for at, own in raw[key].items()}
            left = {new: by_layer[layer] for new, layer in enumerate(plan.kept_layers) if layer in by_layer}
            digits = len(str(max(left, default=0)))
            out[key] = {str(new).zfill(digits): own for new, own in left.items()}  # as transformers writes them
    for key in family.layer_count_keys:
        count = resolved.get(key)
        if count is not None and (raw.get(key) is not None or count < plan.depth):
            out[key] = sum(layer < count for layer in plan.kept_layers)
    return out


def check_last(plan: PrunePlan, family: Family, config: Mapping[str, Any]) -> None:
    """UnsupportedModel if a layer would come to stand last that its class makes another kind of there."""
    kinds, last = config.get("layer_types"), plan.kept_layers[-1]
    if family.last and plan.drop_layers and kinds and kinds[last] != family.last:
        raise UnsupportedModel(
            f"{family.model_type} makes its last layer one of {family.last}, and this would be one of {kinds[last]}",
            value=f"layer {last}, once layers {', '.join(map(str, range(last + 1, plan.depth)))} are gone",
            fix=f"let layer {max(i for i, kind in enumerate(kinds) if kind == family.last)} stay",
        )


def check_shape(plan: PrunePlan, config: Mapping[str, Any]) -> None:
    """PlanError unless the plan was made for a model of this shape; `config` has its defaults filled in."""
    for name, planned in plan.shape.items():
        called = {"layers": "depth", "neurons": "width"}.get(name, f"number of {axis_of(name).called[1]}")
        has = _units(axis_of(name), config)
        if has != planned:
            raise PlanError(
                f"this plan is for a model of another {called}",
                value=f"plan: {planned}, model: {has}",
                fix="make the plan for this model with `prunetune plan`",
            )


def _units(axis: Axis, config: Mapping[str, Any]) -> int | None:
    try:
        return axis.units(config)
    except (KeyError, TypeError, ValueError):  # no config of a model
        return None
