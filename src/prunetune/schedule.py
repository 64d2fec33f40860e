"""What the next round removes: pure arithmetic on sizes, printable before any work (Algorithm 1; method, section 4).

    sizes = Sizes.of(config)                      # parameters are affine in depth and width
    next_step(prune, sizes, history)              # -> Step, or None when the target is reached
    plan_ahead(prune, sizes)                      # -> every step, with depth, width and parameters after it

The final width never exceeds the target (it is rounded down to `align`); the widths on the way are rounded up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from prunetune.cost import Shape, layer_params, neuron_params, params
from prunetune.errors import OutOfReach

Order = Literal["neurons-then-layers", "layers-then-neurons", "alternating", "together", "auto"]
Axis = Literal["neurons", "layers", "both"]


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FinalShape(_Config):
    """A final width and depth."""

    width: int | None = Field(None, gt=0)
    """FFN width (`intermediate_size`); None: as it is."""
    depth: int | None = Field(None, gt=0)
    """Number of layers; None: as it is."""


class NeuronStep(_Config):
    """A step counted in neurons, as in the authors' scripts (1000)."""

    neurons: int = Field(gt=0)
    """Neurons removed from every layer in a round on neurons."""
    layers: int = Field(1, gt=0)
    """Layers removed in a round on layers."""


class PruneConfig(_Config):
    """How far to prune, and in which steps."""

    target: float | int | FinalShape | None = None
    """Share of the original parameters (0 to 1), a parameter count (above 1), or {width, depth}."""
    step: Annotated[float, Field(gt=0, le=1)] | NeuronStep = 0.1
    """Share of the original parameters removed in a round (the paper: 0.05, 0.1, 0.2), or {neurons: 1000}."""
    rounds: Annotated[int, Field(gt=0)] | Literal["auto"] | None = None
    """Number of rounds, in place of `step`; auto (with `budget: damage`): as many as the predicted damage asks for."""
    order: Order = "neurons-then-layers"
    """Which axis goes first (Table 3: neurons-then-layers is best); auto: in each round what costs least (`save`)."""
    save: Literal["flops", "bytes", "ms"] = "flops"
    """`order: auto` takes the axis with the least predicted loss per saved FLOP, weight byte, or measured ms."""
    layers: int | Literal["auto"] | list[int] = "auto"
    """How many layers go in all, or which ones; auto: none, unless neurons alone cannot reach the target."""
    align: int | None = Field(None, gt=0)
    """The width becomes a multiple of this; None: 64 on models wider than 1024, else 8."""
    sigma_neuron: float | None = Field(None, ge=0)
    """Instead of counts: neurons with a score at most this are redundant (Eq. 4)."""
    sigma_layer: float | None = Field(None, ge=0)
    """Instead of counts: layers whose maximal change is at most this are redundant (Eq. 6)."""
    max_rounds: int | None = Field(None, gt=0)
    """At most this many rounds (T of Algorithm 1); needed with thresholds."""

    @model_validator(mode="after")
    def _one_way(self) -> PruneConfig:
        if self.by_threshold and self.target is not None:
            raise ValueError("give either a target or thresholds (sigma_neuron, sigma_layer), not both")
        if not self.by_threshold and self.target is None:
            raise ValueError("give a target (a share such as 0.6, a parameter count, or {width, depth}) or thresholds")
        if self.by_threshold and self.max_rounds is None:
            raise ValueError("thresholds need max_rounds (T of Algorithm 1)")
        if isinstance(self.target, float | int) and not isinstance(self.target, bool) and self.target <= 0:
            raise ValueError("target must be above 0")
        if isinstance(self.target, FinalShape) and self.target.depth and self.layers != "auto":
            raise ValueError("give the depth either in target.depth or by layers, not both")
        if isinstance(self.layers, list) and sorted(set(self.layers)) != self.layers:
            raise ValueError("layers must be ascending, without repeats")
        if isinstance(self.layers, int) and self.layers < 0:
            raise ValueError("layers must not be negative")
        if self.rounds is not None and self.by_threshold:
            raise ValueError("thresholds decide the number of rounds: leave out rounds")
        if self.order == "auto" and (self.layers != "auto" or not isinstance(self.target, float | int)):
            raise ValueError("order: auto chooses the depth itself: give a share or a count as target, and no layers")
        return self

    @property
    def by_threshold(self) -> bool:
        """Whether thresholds decide, so that the number of steps is not known beforehand."""
        return self.sigma_neuron is not None or self.sigma_layer is not None


# ------------------------------------------------------------------------------------------------------------ sizes


@dataclass(frozen=True)
class Sizes:
    """Parameters of a model family member as a function of depth and width (they are affine in each).

    Attributes:
        depth: Layers of the original.
        width: FFN width of the original.
        base: Parameters outside the layers (embeddings, head, final norm).
        layer: Parameters of a layer without its neurons.
        neuron: Parameters of one neuron.
        hidden: Hidden size, for the default alignment.
    """

    depth: int
    width: int
    base: int
    layer: int
    neuron: int
    hidden: int

    @staticmethod
    def of(config: Any) -> Sizes:
        """From a `PretrainedConfig` or a config.json dict."""
        shape = Shape.of(config)
        layer, neuron = layer_params(shape, 0), neuron_params(shape)
        return Sizes(shape.depth, shape.width, params(shape, 0), layer, neuron, shape.hidden)

    def params(self, depth: int, width: int) -> int:
        """Parameters at this depth and width."""
        return self.base + depth * (self.layer + width * self.neuron)

    @property
    def original(self) -> int:
        """Parameters of the untouched model."""
        return self.params(self.depth, self.width)


@dataclass(frozen=True)
class Step:
    """One round: how many neurons every layer loses and how many layers go. None: as many as the threshold says."""

    index: int
    neurons: int | None
    layers: int | None
    attempt: int = 1

    @property
    def axis(self) -> Axis:
        """What this round removes."""
        if self.neurons == 0:
            return "layers"
        return "neurons" if self.layers == 0 else "both"

    @property
    def name(self) -> str:
        """Folder of the round: `03-neurons-64`, `04-layers-1`, `02-both-64+1`, `01-neurons-sigma`; `-a2`: again."""
        parts = [("sigma" if n is None else str(n)) for n in (self.neurons, self.layers) if n != 0]
        return f"{self.index:02d}-{self.axis}-{'+'.join(parts)}" + (f"-a{self.attempt}" if self.attempt > 1 else "")


@dataclass(frozen=True)
class Done:
    """What the schedule must know of a finished round."""

    step: Step
    depth: int
    width: int
    accepted: bool = True


def align_of(prune: PruneConfig, sizes: Sizes) -> int:
    """The width's multiple: as the recipe says, else 64 on models wider than 1024, else 8."""
    return prune.align or (64 if sizes.hidden > 1024 else 8)


def final_shape(prune: PruneConfig, sizes: Sizes) -> tuple[int, int]:
    """The (depth, width) that the target means. OutOfReach, with what is possible, if there is none.

    For a share or a count the width is the largest multiple of `align` whose size does not exceed the target.
    """
    if prune.target is None:
        return sizes.depth, sizes.width
    align, lost = align_of(prune, sizes), _layers_to_lose(prune)
    if lost is not None and lost >= sizes.depth:
        raise OutOfReach("this leaves no layer", value=f"layers: {lost}", valid=f"0 to {sizes.depth - 1}")
    if isinstance(prune.layers, list) and prune.layers and prune.layers[-1] >= sizes.depth:
        raise OutOfReach("no such layer", value=prune.layers[-1], valid=f"0 to {sizes.depth - 1}")
    if isinstance(prune.target, FinalShape):
        depth, width = prune.target.depth or sizes.depth - (lost or 0), prune.target.width or sizes.width
        if depth > sizes.depth or width > sizes.width:
            raise OutOfReach(
                "the target is larger than the model",
                value=f"width {width}, depth {depth}",
                valid=f"width up to {sizes.width}, depth up to {sizes.depth}",
            )
        if width % align and width != sizes.width:
            raise OutOfReach(
                "the target's width is not a multiple of align",
                value=width,
                valid=f"multiples of {align}",
                fix="change prune.target.width or prune.align",
            )
        return depth, width
    wanted = _wanted_params(prune.target, sizes)
    least = align if lost is not None else max(align, math.ceil(sizes.width / 4))
    for drop in range(sizes.depth) if lost is None else (lost,):
        depth = sizes.depth - drop
        width = min(sizes.width, (wanted - sizes.base - depth * sizes.layer) // (depth * sizes.neuron))
        width = width if width == sizes.width else width // align * align
        if width >= least:
            return depth, width
    smallest = sizes.params(1 if lost is None else sizes.depth - lost, least)
    raise OutOfReach(
        "the target is smaller than neurons and layers alone can reach",
        value=f"{prune.target} ({wanted:,} parameters)",
        valid=f"at least {smallest / sizes.original:.3f} of the parameters ({smallest:,})",
        fix="embeddings and attention are not cut: choose a larger target, or more layers (prune.layers)",
    )


def _layers_to_lose(prune: PruneConfig) -> int | None:
    if isinstance(prune.layers, list):
        return len(prune.layers)
    return None if prune.layers == "auto" else prune.layers


def _wanted_params(target: float | int, sizes: Sizes) -> int:
    if isinstance(target, float) and target <= 1:
        return math.floor(target * sizes.original)
    if target >= sizes.original:
        raise OutOfReach(
            "the target is no smaller than the model",
            value=target,
            valid=f"a share below 1, or a parameter count below {sizes.original:,}",
        )
    if 1 < target <= 100:
        raise OutOfReach(
            "this target means a model of so few parameters",
            value=target,
            valid="a share between 0 and 1, or a parameter count",
            fix=f"for {target:g} %, write {target / 100:g}",
        )
    if target <= 1 or target != int(target):
        raise OutOfReach(
            "this target means nothing",
            value=target,
            valid=f"a share between 0 and 1, or a parameter count below {sizes.original:,}",
        )
    return int(target)


# ------------------------------------------------------------------------------------------------------------ steps


def next_step(prune: PruneConfig, sizes: Sizes, history: Sequence[Done]) -> Step | None:
    """The next round, from what was accepted so far; None when the loop is finished. Pure."""
    accepted = [d for d in history if d.accepted]
    index = len(accepted) + 1
    if prune.max_rounds is not None and index > prune.max_rounds:
        return None
    if prune.by_threshold:
        return _threshold_step(prune, sizes, index, accepted)
    shared, prune = prune.rounds if isinstance(prune.rounds, int) else None, evenly(prune, sizes)
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
    if shared is not None and prune.order != "together":
        return _shared(prune, shared, sizes, index, (neurons_left, layers_left), width, accepted)
    if prune.order == "together":
        return _together(prune, sizes, index, (depth, width), (final_depth, final_width))
    neurons = _neurons_a_round(prune, sizes, depth, width, final_width) if neurons_left else 0
    layers = min(layers_left, _layers_a_round(prune, sizes, width)) if layers_left else 0
    if _axis(prune.order, accepted, neurons_left, layers_left) == "neurons":
        return Step(index, neurons, 0)
    return Step(index, 0, layers)


def evenly(prune: PruneConfig, sizes: Sizes) -> PruneConfig:
    """With a number of rounds: the step that shares the parameters out over them."""
    if not isinstance(prune.rounds, int):
        return prune
    gap = 1 - sizes.params(*final_shape(prune, sizes)) / sizes.original
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
    axis = _axis(prune.order, accepted, *left)
    done = sum(d.step.axis == axis for d in accepted)
    to_go = max(1, (for_layers if axis == "layers" else rounds - for_layers) - done)
    if axis == "layers":
        return Step(index, 0, -(-left[1] // to_go))
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
    layers = now[0] - final[0] if rounds == 1 else round((now[0] - final[0]) / rounds)
    if left == now[1] and not layers:  # a round must remove something
        layers, left = (1, left) if now[0] > final[0] else (0, max(final[1], (now[1] - 1) // align * align))
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


def once(prune: PruneConfig, sizes: Sizes) -> PruneConfig:
    """The same target in one round: the Prune-Once control."""
    depth, width = final_shape(prune, sizes)
    target = FinalShape(width=width, depth=depth)
    if isinstance(prune.layers, list):  # which layers go stays decided; their number then gives the depth
        target = FinalShape(width=width, depth=None)
    layers = prune.layers if isinstance(prune.layers, list) else "auto"
    changes = {"target": target, "step": 1.0, "order": "together", "max_rounds": None, "layers": layers, "rounds": None}
    return prune.model_copy(update=changes)
