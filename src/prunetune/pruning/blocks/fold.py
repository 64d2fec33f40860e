"""Least squares into a readout whose blocks of columns go: what they gave is made up for by the blocks that stay.

The layer in hand stays whole: columns of what goes are set to zero, which computes what the cut layer will compute.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from prunetune.common.device import ALONE, Processes
from prunetune.models.axes import axis_of
from prunetune.models.families import Family
from prunetune.pruning.blocks.units import ReadoutTap
from prunetune.pruning.least_squares import Fold, ResidueSum, fold
from prunetune.pruning.plan import PrunePlan


@dataclass(frozen=True)
class Folded:
    """One readout of one layer, cut and made up for.

    Attributes:
        readout: Its name inside the layer.
        found: How well it fits.
        tensors: Its changed parameters (`weight`, `bias`), of the cut shape; empty where nothing helps.
    """

    readout: str
    found: Fold
    tensors: dict[str, Tensor]


def readouts(plan: PrunePlan, family: Family) -> dict[str, list[str]]:
    """Readout -> the axes of a plan that take blocks of its columns, but for neurons."""
    found: dict[str, list[str]] = {}
    for name in plan.drop:
        if (readout := axis_of(name).readout) is not None and plan.drops(name):
            found.setdefault(readout(family), []).append(name)
    return found


def kept_columns(plan: PrunePlan, names: Sequence[str], layer: int, columns: int) -> Tensor:
    """Which columns of a readout stay, ascending."""
    stays = torch.ones(columns, dtype=torch.bool)
    for name in names:
        units = torch.zeros(axis_of(name).places(plan.shape), dtype=torch.bool)
        units[list(plan.kept(name, layer))] = True
        stays &= units.repeat_interleave(columns // len(units))
    return stays.nonzero().squeeze(1)


def fold_blocks(
    block: nn.Module,
    family: Family,
    eps: float,
    plan: PrunePlan,
    layer: int,
    *,
    run: Callable[[int], object],
    masks: Sequence[Tensor],
    calibration: int,
    ridges: Sequence[float],
    stored: Callable[[str], torch.dtype],
    processes: Processes = ALONE,
) -> list[Folded]:
    """Cut the readouts of a layer in hand, each made up for by what stays of it.

    Args:
        block: The layer, whole; its readouts are changed (see above).
        family: Of the model.
        eps: Of the norm that may follow a readout.
        plan: What goes.
        layer: The layer's number.
        run: Runs the layer on one batch.
        masks: Of each batch its real places.
        calibration: So many batches fit, the others choose the ridge.
        ridges: To choose from.
        stored: Parameter inside the layer -> the type that it will be stored in.
        processes: Who folds, each with batches of its own.
    """
    done = []
    for readout, names in readouts(plan, family).items():
        module = block.get_submodule(readout)
        weight, bias = block.get_parameter(f"{readout}.weight"), dict(module.named_parameters()).get("bias")
        kept = kept_columns(plan, names, layer, weight.shape[1]).to(weight.device)
        gone = torch.ones(weight.shape[1], dtype=torch.bool, device=weight.device)
        gone[kept] = False
        sums = [ResidueSum(len(kept) + (bias is not None), len(weight), weight.device) for _ in range(2)]
        with ReadoutTap(module, family, eps) as tap:
            for i, real in enumerate(masks):
                run(i)
                x, y, count = tap.taken(real)
                missing = x[:, gone] @ weight.float()[:, gone].T
                features = x[:, kept] if bias is None else torch.cat([x[:, kept], count], dim=1)
                sums[i >= calibration].update(features, missing, y)
        for each in sums:
            each.join(processes)
        found = fold(sums[0].finish(), sums[1].finish(), ridges)
        types = {name: stored(f"{readout}.{name}") for name in ("weight", *(() if bias is None else ("bias",)))}
        tensors = _changed(weight, bias, kept, found.change, types)
        whole = torch.zeros_like(weight)
        whole[:, kept] = tensors["weight"].to(weight) if tensors else weight[:, kept]
        module.weight = nn.Parameter(whole, requires_grad=False)
        if "bias" in tensors:
            module.bias = nn.Parameter(tensors["bias"].to(weight), requires_grad=False)
        done.append(Folded(readout, found, tensors))
    return done


def _changed(
    weight: Tensor,
    bias: Tensor | None,
    kept: Tensor,
    change: Float[Tensor, "hidden features"] | None,
    types: Mapping[str, torch.dtype],
) -> dict[str, Tensor]:
    if change is None:
        return {}
    new = {"weight": weight[:, kept].to(change) + change[:, : len(kept)]}
    if bias is not None:
        new["bias"] = bias.to(change) + change[:, -1]
    return {name: tensor.to(types[name]).cpu() for name, tensor in new.items()}
