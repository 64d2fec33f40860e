"""What becomes of the tensors of a layer's experts and of its router, be they one tensor or one an expert. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Shaped

from prunetune.errors import PlanError
from prunetune.models.axes import Slice, axis_of
from prunetune.models.families import Experts, Family
from prunetune.pruning.plan import PrunePlan

Tensor = Shaped[torch.Tensor, "..."]


def kept_experts(plan: PrunePlan, layer: int, count: int) -> Sequence[int]:
    """The experts of a kept layer that stay; of so many that it has."""
    return plan.kept("experts", layer) if "experts" in plan.sizes else range(count)


def kept_neurons(plan: PrunePlan, layer: int) -> dict[int, list[int]]:
    """Expert -> its neurons that stay, of the experts of a kept layer that stay; empty where no neurons go."""
    if not plan.drop_neurons:
        return {}
    found: dict[int, list[int]] = {expert: [] for expert in plan.kept("experts", layer)}
    for neuron in plan.kept("neurons", layer):
        found[neuron // plan.width].append(neuron % plan.width)
    return found


def of_the_rest(plan: PrunePlan) -> PrunePlan:
    """A plan of neurons alone, for the model whose experts have gone already: those that stay are numbered anew."""
    if not plan.drops("experts"):
        return plan.model_copy(update={"sizes": {"experts": plan.sizes["experts"]}, "drop": {}})
    neurons = {}
    for layer, gone in plan.drop_neurons.items():
        place = {expert: i for i, expert in enumerate(plan.kept("experts", layer))}
        neurons[layer] = tuple(place[n // plan.width] * plan.width + n % plan.width for n in gone)
    sizes = {"experts": plan.new_shape["experts"]}
    return plan.model_copy(update={"drop_neurons": neurons, "sizes": sizes, "drop": {}})


def whole_experts(plan: PrunePlan) -> PrunePlan | None:
    """A plan of the experts alone that go as a whole; None: none do."""
    if not plan.drops("experts"):
        return None
    sizes = {"experts": plan.sizes["experts"]}
    return plan.model_copy(update={"drop_neurons": {}, "sizes": sizes, "drop": {"experts": plan.drops("experts")}})


def check_counted(plan: PrunePlan, family: Family) -> None:
    """PlanError unless a plan that takes neurons of experts says of how many experts they are."""
    if family.experts and plan.drop_neurons and "experts" not in plan.sizes:
        raise PlanError(
            "this plan takes neurons as if a layer had one FFN, and this model has experts",
            value=family.model_type,
            fix="make the plan for this model with `prunetune plan`",
        )


def cut_experts(plan: PrunePlan, family: Family, layer: int, suffix: str, name: str, tensor: Tensor) -> Tensor | None:
    """What stays of a tensor of the router or of experts in a kept layer.

    Args:
        plan: What goes.
        family: Of the model; it has experts.
        layer: The tensor's layer.
        suffix: Its name inside the layer, as its file has it.
        name: Its whole name, for messages.
        tensor: The tensor.

    Returns:
        None if it is that of an expert that goes; the tensor itself, not a copy, if nothing of it goes.

    Raises:
        PlanError: its shape is not what the plan says.
    """
    found: Experts = family.experts  # type: ignore[assignment]  # by contract
    held = found.held(suffix)
    wide = next((s for s in axis_of("neurons").slices(family, plan.shape) if s.suffix == held), None)
    if (single := found.single_at(suffix)) is not None and wide is not None:
        expert, blocks = single[0], (1,)  # gate and up are apart
        if "experts" in plan.sizes and expert >= plan.sizes["experts"]:
            raise _other(name, expert + 1, f"{plan.sizes['experts']} experts")
        if expert not in kept_experts(plan, layer, expert + 1):
            return None
        _check_width(plan, wide.dim, blocks, name, tensor)
        neurons = kept_neurons(plan, layer)
        return _selected(tensor, wide.dim, blocks, plan.width, neurons[expert]) if neurons else tensor
    if "experts" in plan.sizes and len(tensor) != plan.sizes["experts"]:
        raise _other(name, len(tensor), f"{plan.sizes['experts']} experts")
    kept = list(kept_experts(plan, layer, len(tensor)))
    if wide is not None:
        _check_width(plan, wide.dim, wide.blocks, name, tensor)
        if neurons := kept_neurons(plan, layer):
            return torch.stack([_selected(tensor[e], wide.dim, wide.blocks, plan.width, neurons[e]) for e in kept])
    return tensor if len(kept) == len(tensor) else tensor.index_select(0, torch.tensor(kept, device=tensor.device))


def in_patch(found: Experts, suffix: str) -> str:
    """The suffix of what a patch has in a tensor's place: the down projections of all experts, whatever files have."""
    single = found.single_at(suffix)
    return found.in_model(suffix) if single and single[1] != found.single[2] else found.held(suffix)


def own_part(plan: PrunePlan, found: Experts, layer: int, suffix: str, whole: Tensor) -> Tensor:
    """What of a patch's tensor is in the place of a file's: that of one expert, or all of it."""
    if (single := found.single_at(suffix)) is None:
        return whole
    kept = list(kept_experts(plan, layer, single[0] + 1))
    return whole[kept.index(single[0])] if len(whole) == len(kept) else whole


def _selected(tensor: Tensor, dim: int, blocks: Sequence[int], width: int, kept: Sequence[int]) -> Tensor:
    """The rows of the neurons that stay, in each part of a dimension."""
    stays = torch.zeros(width, dtype=torch.bool)
    stays[list(kept)] = True
    rows = torch.cat([stays.repeat_interleave(block) for block in blocks]).nonzero().squeeze(1)
    return tensor.index_select(dim, rows.to(tensor.device))


def _check_width(plan: PrunePlan, dim: int, blocks: tuple[int, ...], name: str, tensor: Tensor) -> None:
    if Slice("", dim, blocks).rows(tensor.shape[dim], plan.width) is None:
        raise _other(name, tensor.shape[dim] // sum(blocks), f"FFN width {plan.width}")


def _other(name: str, value: int, valid: str) -> PlanError:
    return PlanError(
        f"{name} is of another shape than the plan", value=value, valid=valid, fix="make the plan for this model"
    )
