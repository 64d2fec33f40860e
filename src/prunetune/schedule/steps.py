"""What the next round removes: pure arithmetic on sizes, printable before any work (Algorithm 1; method, section 4).

    next_step(prune, sizes, history)              # -> Step, or None when the target is reached
    plan_ahead(prune, sizes)                      # -> every step, with depth, width and parameters after it

The widths on the way to the final one are rounded up to `align`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from prunetune.errors import OutOfReach
from prunetune.schedule.sizes import Sizes
from prunetune.schedule.target import (
    FinalShape,
    NeuronStep,
    Order,
    PruneConfig,
    align_of,
    final_shape,
    period_in,
)
from prunetune.schedule.way import leg

Axis = Literal["neurons", "layers", "both", "others"]


@dataclass(frozen=True)
class Step:
    """One round: how many neurons every layer loses and how many layers go. None: as many as the threshold says.

    `more`: units of other axes that go, by axis.
    """

    index: int
    neurons: int | None
    layers: int | None
    attempt: int = 1
    more: Mapping[str, int] = field(default_factory=dict)

    @property
    def axis(self) -> Axis:
        """What this round removes."""
        if self.neurons == 0:
            return "others" if self.layers == 0 and self.more else "layers"
        return "neurons" if self.layers == 0 else "both"

    @property
    def name(self) -> str:
        """Folder of the round: `03-neurons-64`, `04-layers-1`, `02-both-64+1`, `01-neurons-sigma`; `-a2`: again.

        With other axes `01-neurons-64+heads-1`.
        """
        parts = [("sigma" if n is None else str(n)) for n in (self.neurons, self.layers) if n != 0]
        parts += [f"{axis}-{n}" for axis, n in self.more.items()]
        return f"{self.index:02d}-{self.axis}-{'+'.join(parts)}" + (f"-a{self.attempt}" if self.attempt > 1 else "")


@dataclass(frozen=True)
class Done:
    """What the schedule must know of a finished round."""

    step: Step
    depth: int
    width: int
    accepted: bool = True


# ------------------------------------------------------------------------------------------------------------ steps


def next_step(prune: PruneConfig, sizes: Sizes, history: Sequence[Done]) -> Step | None:
    """The next round, from what was accepted so far; None when the loop is finished. Pure.

    What `prune.cut` names goes with the first round.
    """
    step = _by_size(prune, sizes, history)
    if not prune.cut or any(d.accepted for d in history):
        return step
    return replace(step or Step(1, 0, 0), more=prune.cut)


def _by_size(prune: PruneConfig, sizes: Sizes, history: Sequence[Done]) -> Step | None:
    """What goes of neurons and layers."""
    accepted = [d for d in history if d.accepted]
    index = len(accepted) + 1
    if prune.max_rounds is not None and index > prune.max_rounds:
        return None
    if prune.by_threshold:
        return _threshold_step(prune, sizes, index, accepted)
    depth, width = (accepted[-1].depth, accepted[-1].width) if accepted else (sizes.depth, sizes.width)
    final_depth, final_width = final_shape(prune, sizes)
    neurons_left, layers_left = width - final_width, depth - final_depth
    if neurons_left < 0 or layers_left < 0:
        raise OutOfReach(
            "this run is already smaller than the target",
            value=f"width {width}, depth {depth}",
            valid=f"a target of at most width {width} and depth {depth}",
            fix="choose a deeper target, or a new --out",
        )
    if not neurons_left and not layers_left:
        return None
    if prune.ladder:
        part = leg(prune, sizes, [(d.depth, d.width) for d in accepted])
        step = next_step(part.prune, part.sizes, accepted[part.before :])
        return step and replace(step, index=index)
    shared, prune = prune.rounds if isinstance(prune.rounds, int) else None, evenly(prune, sizes)
    if shared is not None and prune.order != "together":
        return _shared(prune, shared, sizes, index, (neurons_left, layers_left), width, accepted)
    if prune.order == "together":
        return _together(prune, sizes, index, (depth, width), (final_depth, final_width))
    neurons = _neurons_a_round(prune, sizes, depth, width, final_width) if neurons_left else 0
    layers = min(layers_left, _layers_a_round(prune, sizes, width)) if layers_left else 0
    layers = max(layers // (period := period_in(prune, sizes)), layers > 0) * period
    if _axis(prune.order, accepted, neurons_left, layers_left) == "neurons":
        return Step(index, neurons, 0)
    return Step(index, 0, layers)


def evenly(prune: PruneConfig, sizes: Sizes) -> PruneConfig:
    """With a number of rounds: the step that shares the parameters out over them."""
    if not isinstance(prune.rounds, int):
        return prune
    gap = (sizes.params(sizes.depth, sizes.width) - sizes.params(*final_shape(prune, sizes))) / sizes.original
    return prune.model_copy(update={"step": max(gap, 1e-9) / prune.rounds, "rounds": None})


def _threshold_step(prune: PruneConfig, sizes: Sizes, index: int, accepted: Sequence[Done]) -> Step | None:
    if accepted:
        shapes = [(sizes.depth, sizes.width), *((d.depth, d.width) for d in accepted)]
        if shapes[-1] == shapes[-2]:
            return None  # the round before found nothing redundant
    return Step(index, None if prune.sigma_neuron is not None else 0, None if prune.sigma_layer is not None else 0)


def _axis(order: Order, accepted: Sequence[Done], neurons_left: int, layers_left: int) -> Axis:
    if not layers_left:
        return "neurons"
    if not neurons_left:
        return "layers"
    if order == "alternating":
        return "layers" if accepted and accepted[-1].step.axis == "neurons" else "neurons"
    return "neurons" if order == "neurons-then-layers" else "layers"


def _shared(
    prune: PruneConfig,
    rounds: int,
    sizes: Sizes,
    index: int,
    left: tuple[int, int],
    width: int,
    accepted: Sequence[Done],
) -> Step:
    """A fixed number of rounds: each axis gets its part of them by its parameters, and shares itself out over those.

    Fewer where the width has fewer multiples of `align`, or the depth fewer layers, than rounds; two where both axes
    must go, one after the other.
    """
    final_depth, final_width = final_shape(prune, sizes)
    neurons = sizes.depth * (sizes.width - final_width) * sizes.neuron
    layers = (sizes.depth - final_depth) * (sizes.layer + final_width * sizes.neuron)
    for_layers = min(round(rounds * layers / (neurons + layers)), sizes.depth - final_depth)
    if neurons and layers:
        for_layers = max(1, min(for_layers, rounds - 1))
    period = period_in(prune, sizes)
    for_layers = min(for_layers, max(1, (sizes.depth - final_depth) // period)) if layers else 0
    axis = _axis(prune.order, accepted, *left)
    done = sum(d.step.axis == axis for d in accepted)
    to_go = max(1, (for_layers if axis == "layers" else rounds - for_layers) - done)
    if axis == "layers":
        return Step(index, 0, -(-left[1] // (to_go * period)) * period)
    align, wanted = align_of(prune, sizes), left[0] / to_go
    kept = math.ceil((width - wanted) / align - 1e-9) * align if to_go > 1 else width - left[0]
    kept = kept if kept < width else (width - 1) // align * align
    return Step(index, width - max(kept, width - left[0]), 0)


def _neurons_a_round(prune: PruneConfig, sizes: Sizes, depth: int, width: int, final: int) -> int:
    """Neurons a layer loses in a round; the width left is rounded up to `align`, but always falls.

    A count is taken as it is, the rest goes last. A share is a largest step (15 % more passes): the rounds it takes
    are made equal, so that no round is left with a sliver and an equal part of the recovery budget.
    """
    align = align_of(prune, sizes)
    if isinstance(prune.step, NeuronStep):
        wanted: float = prune.step.neurons
    else:
        largest = prune.step * sizes.original / (depth * sizes.neuron)
        wanted = (width - final) / max(1, math.ceil((width - final) / largest - 0.15))
    left = math.ceil((width - wanted) / align - 1e-9) * align
    if left >= width:
        left = (width - 1) // align * align
    return width - max(left, final)


def _layers_a_round(prune: PruneConfig, sizes: Sizes, width: int) -> int:
    if isinstance(prune.step, NeuronStep):
        return prune.step.layers
    return max(1, int(prune.step * sizes.original / (sizes.layer + width * sizes.neuron) + 1e-9))


def _together(prune: PruneConfig, sizes: Sizes, index: int, now: tuple[int, int], final: tuple[int, int]) -> Step:
    """Neurons and layers in every round, both spread evenly over the rounds that are left."""
    if isinstance(prune.step, NeuronStep):
        rounds = max(-(-(now[1] - final[1]) // prune.step.neurons), -(-(now[0] - final[0]) // prune.step.layers))
    else:
        gap = sizes.params(*now) - sizes.params(*final)
        rounds = math.ceil(gap / (prune.step * sizes.original) - 0.15)
    rounds, align = max(1, rounds), align_of(prune, sizes)
    width = now[1] - (now[1] - final[1]) / rounds
    left = final[1] if rounds == 1 else min(now[1], max(final[1], math.ceil(width / align - 1e-9) * align))
    period = period_in(prune, sizes)
    layers = now[0] - final[0] if rounds == 1 else round((now[0] - final[0]) / (rounds * period)) * period
    if left == now[1] and not layers:  # a round must remove something
        layers, left = (period, left) if now[0] > final[0] else (0, max(final[1], (now[1] - 1) // align * align))
    return Step(index, now[1] - left, layers)


@dataclass(frozen=True)
class Ahead:
    """A step and the shape that it leaves."""

    step: Step
    depth: int
    width: int
    params: int


def plan_ahead(prune: PruneConfig, sizes: Sizes, history: Sequence[Done] = ()) -> list[Ahead]:
    """All steps to the target, with what each leaves. Empty with thresholds: unknown, at most `max_rounds`."""
    if prune.by_threshold:
        return []
    final_shape(prune, sizes)
    done, ahead = list(history), []
    depth, width = (done[-1].depth, done[-1].width) if done else (sizes.depth, sizes.width)
    while step := next_step(prune, sizes, done):
        depth, width = depth - (step.layers or 0), width - (step.neurons or 0)
        done.append(Done(step, depth, width))
        ahead.append(Ahead(step, depth, width, sizes.params(depth, width)))
    return ahead


def check_protection(ahead: Sequence[Ahead], width: int, share: float) -> None:
    """Raise OutOfReach if a step would remove protected neurons: the top `share` of the width of its round."""
    for a in ahead:
        removable = width - math.ceil(share * width)
        if (a.step.neurons or 0) > removable:
            raise OutOfReach(
                f"protection keeps {share:.0%} of each layer's neurons, and round {a.step.index} would remove more",
                value=f"{a.step.neurons} of {width} neurons a layer",
                valid=f"at most {removable} neurons a layer in that round",
                fix="smaller steps (prune.step), a smaller protect.share, or a larger target",
            )
        width = a.width


def check_removes(prune: PruneConfig, sizes: Sizes) -> None:
    """Raise OutOfReach for a target that is the model as it is: nothing would go, of whatever axis."""
    if prune.by_threshold or prune.cut or (prune.vocabulary is not None and not prune.open):
        return
    if prune.open:
        nothing = isinstance(prune.target, float) and prune.target >= 1
    else:
        nothing = final_shape(prune, sizes) == (sizes.depth, sizes.width)
    if nothing:
        said = prune.target
        raise OutOfReach(
            "this target is the whole model: nothing would be removed",
            value=said.model_dump(exclude_none=True) if isinstance(said, FinalShape) else said,
            valid=f"less than {sizes.original:,} parameters: {sizes.depth} layers of {sizes.width:,} neurons",
            fix="a smaller target, such as 0.6 (60%); recovery alone, without a cut: prunetune tune",
        )


def once(prune: PruneConfig, sizes: Sizes) -> PruneConfig:
    """The same target in one round: the Prune-Once control."""
    depth, width = final_shape(prune, sizes)
    target = FinalShape(width=width, depth=depth)
    if isinstance(prune.layers, list):  # which layers go stays decided; their number then gives the depth
        target = FinalShape(width=width, depth=None)
    layers = prune.layers if isinstance(prune.layers, list) else "auto"
    none = dict.fromkeys(("max_rounds", "rounds", "ladder"))
    changes = {"target": target, "step": 1.0, "order": "together", "layers": layers, **none}
    return prune.model_copy(update=changes)
