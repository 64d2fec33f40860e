"""How far to prune: the settings, and the shape that a target means.

    sizes = Sizes.of(config)
    depth, width = final_shape(prune, sizes)      # OutOfReach, with what is possible, if there is none

The final width never exceeds the target (it is rounded down to `align`).
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from prunetune.common import units
from prunetune.errors import OutOfReach
from prunetune.schedule.fitting import bytes_at, fits
from prunetune.schedule.reach import VOCABULARY, in_blocks, narrowest
from prunetune.schedule.search import NEURONS, frontier
from prunetune.schedule.sizes import Sizes
from prunetune.schedule.vocabulary import VocabularyConfig, written_out
from prunetune.schedule.wanted import SMALLEST, bytes_of, check_ladder, read_ladder, read_target, times_of

SEARCHED = (NEURONS, "layers")
"""The axes that rounds cut by themselves; those in blocks (heads) only where they are named."""
FURTHER = "a larger target, more layers (prune.layers), or heads and vocabulary, too: `inspect` tells what they hold"
Order = Literal["neurons-then-layers", "layers-then-neurons", "alternating", "together"]


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


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

    target: float | int | FinalShape | str | None = None
    """Share of the original parameters (0 to 1), a parameter count (above 1), or {width, depth}. As text also `60%`,
    `3B`, `4GB` (bytes of the weights as they are stored; see `context`) and `2x` (decoding at batch 1, on this
    machine). smallest: half of the layers and a sixteenth of the width, the end of a search with `stop_at`."""
    ladder: list[float] | None = None
    """Sizes on the way, as falling shares ([0.8, 0.7, 0.6, 0.5]): each ends a round and is finished as a model of its
    own (`RUN/final-0.8`), the last is the target. Short: `ladder` beside `prune`."""
    context: int | None = Field(None, gt=0)
    """With a target in bytes: the key/value cache of so many tokens counts, too."""
    axes: list[str] | None = Field(None, min_length=1)
    """Choose the final shape among these axes (neurons, layers, heads, query_heads, vocabulary), by the held-out
    loss straight after the cut; at most twelve shapes are cut. None: neurons, and layers where needed."""
    cut: dict[str, Annotated[int, Field(gt=0)]] = Field(default_factory=dict)
    """Units of other axes that go in the first round, beside what the target asks for: {heads: 1} is a key/value group
    with its query heads in every layer, {query_heads: 1} a query head in every group."""
    vocabulary: VocabularyConfig | None = None
    """Tokens that stay: task (all that the data use), or a count; the rest goes once, before the first round. Named in
    `axes`, too, it goes only where that costs less than anything else."""
    step: Annotated[float, Field(gt=0, le=1)] | NeuronStep = 0.1
    """Share of the original parameters removed in a round (the paper: 0.05, 0.1, 0.2), or {neurons: 1000}."""
    rounds: Annotated[int, Field(gt=0)] | Literal["auto"] | None = "auto"
    """Number of rounds, in place of `step`; auto (with `budget: damage`): as many as the predicted damage asks for.
    None, or a recipe that says `step`: as many as the steps make, as the paper has it."""
    order: Order = "neurons-then-layers"
    """Which axis goes first (Table 3: neurons-then-layers is best)."""
    layers: int | Literal["auto"] | list[int] = "auto"
    """How many layers go in all, or which ones; auto: none, unless neurons alone cannot reach the target with a
    quarter of them left (of models of fewer than eight layers, a sixteenth)."""
    whole_periods: bool = True
    """Layers go in whole periods of the pattern that engines such as llama.cpp hard-code (gemma2 2, gemma3 6, smollm3
    4), where their number allows it; false: any layers, and `prunetune check` tells which engines that costs."""
    text_only: bool = False
    """Of a model with a vision tower, write the language model alone, as its own stock class."""
    align: int | None = Field(None, gt=0)
    """The width becomes a multiple of this; None: 64 on models wider than 1024, else 8."""
    sigma_neuron: float | None = Field(None, ge=0)
    """Instead of counts: neurons with a score at most this are redundant (Eq. 4)."""
    sigma_layer: float | None = Field(None, ge=0)
    """Instead of counts: layers whose maximal change is at most this are redundant (Eq. 6)."""
    max_rounds: int | None = Field(None, gt=0)
    """At most this many rounds (T of Algorithm 1); needed with thresholds."""

    @model_serializer(mode="wrap")
    def _without_empty(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A recipe that cuts nothing else is written, and hashed, as before there was anything else."""
        return {k: v for k, v in handler(self).items() if v or k not in ("cut", "vocabulary")}

    @model_validator(mode="before")
    @classmethod
    def _steps(cls, value: Any) -> Any:
        """Who says `step`, or thresholds, does not want `rounds: auto`; a ladder's last rung is the target."""
        value = written_out(value)
        if isinstance(value, dict) and value.get("ladder") is not None:
            rungs = read_ladder(value["ladder"])
            value = {**value, "ladder": rungs, "target": value["target"] if "target" in value else rungs[-1]}
        if isinstance(value, dict) and {"step", "sigma_neuron", "sigma_layer"} & set(value):
            return {"rounds": None, **value}
        return value

    @field_validator("target", mode="before")
    @classmethod
    def _as_said(cls, value: Any) -> Any:
        """`60%` and `3B` are numbers; `4GB` and `2x` stay as they are said."""
        return read_target(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _chosen(self) -> PruneConfig:
        """A shape that is chosen by measuring needs something to choose, and steps that do not need to know it."""
        if self.context and not self.in_bytes:
            raise ValueError("context counts the cache into a target in bytes, such as 4GB")
        if self.axes is not None:
            if self.by_threshold or isinstance(self.target, FinalShape):
                raise ValueError("axes are for a target that leaves the shape open: a share, a count, 4GB or 2x")
            if unknown := [name for name in self.axes if name not in (*SEARCHED, *in_blocks(), VOCABULARY)]:
                there = ", ".join((*SEARCHED, *in_blocks(), VOCABULARY))
                raise ValueError(f"axes has no {unknown[0]!r}: there are {there}")
            if VOCABULARY in self.axes and isinstance(self.target, str) and not self.in_bytes:
                raise ValueError("a choice by time knows nothing of the vocabulary: leave it out of axes")
            if NEURONS not in self.axes:
                raise ValueError("axes must have neurons: they make the size fit")
            if self.layers != "auto":
                raise ValueError("give the layers either by layers or leave them to the choice by axes, not both")
        if self.axes is not None and self.target == SMALLEST:
            raise ValueError("axes are for a target that leaves the shape open: a share, a count, 4GB or 2x")
        if unknown := [name for name in self.cut if name not in in_blocks()]:
            raise ValueError(f"cut has no {unknown[0]!r}: there are {', '.join(in_blocks())}")
        if self.cut and (self.open or self.by_threshold or self.target == SMALLEST):
            raise ValueError("cut needs a target that tells the rest: no axes, no thresholds, no 2x, no smallest")
        if self.open and not (self.rounds == "auto" or isinstance(self.rounds, int)):
            raise ValueError("a shape that is chosen by measuring needs rounds (auto, or a number), not step")
        return self

    @model_validator(mode="after")
    def _down_the_ladder(self) -> PruneConfig:
        if self.ladder and (self.axes is not None or self.by_threshold or self.order == "alternating"):
            raise ValueError(
                "a ladder lies on one way to its target: leave out axes, thresholds and order: alternating"
            )
        if self.ladder and (self.cut or self.vocabulary):
            raise ValueError("a ladder is of neurons and layers: leave out cut and vocabulary")
        if self.ladder:
            check_ladder(self.ladder, self.target, {"rounds": self.rounds, "max_rounds": self.max_rounds})
        return self

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
        return self

    @property
    def by_threshold(self) -> bool:
        """Whether thresholds decide, so that the number of steps is not known beforehand."""
        return self.sigma_neuron is not None or self.sigma_layer is not None

    @property
    def in_bytes(self) -> bool:
        """Whether the target is one of bytes."""
        return isinstance(self.target, str) and bytes_of(self.target) is not None

    @property
    def open(self) -> bool:
        """Whether only measuring tells the final shape: a choice among axes, or a target in time."""
        return self.axes is not None or (isinstance(self.target, str) and times_of(self.target) is not None)


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
    if isinstance(prune.layers, list) and prune.layers and (last := prune.layers[-1]) >= sizes.depth - sizes.stays:
        what = "no such layer" if last >= sizes.depth else "this model's last layer stays: its class fixes its kind"
        raise OutOfReach(what, value=last, valid=f"0 to {sizes.depth - sizes.stays - 1}")
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
    if prune.target == SMALLEST:
        period = sizes.period if prune.whole_periods else 1
        gone = lost if lost is not None else sizes.depth // 2 // period * period
        return sizes.depth - gone, min(sizes.width, math.ceil(sizes.width / 16 / align) * align)
    if isinstance(prune.target, str):
        return _in_bytes(prune, prune.target, sizes, lost)
    wanted = _wanted_params(prune.target, sizes)
    least = align if lost is not None else narrowest(sizes.width, sizes.depth, align)
    for drop in _drops(prune, sizes) if lost is None else (lost,):
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
        fix=FURTHER,
    )


def _in_bytes(prune: PruneConfig, target: str, sizes: Sizes, lost: int | None) -> tuple[int, int]:
    """As for a share: neurons, and layers where neurons alone do not reach it."""
    if bytes_of(target) is None:
        raise OutOfReach(
            "only timing tells the shape of this target",
            value=target,
            valid="a share, a count, bytes, or {width, depth}",
            fix="`prunetune run` times shapes on its machine",
        )
    if sizes.cost is None:
        raise TypeError("a target in bytes needs the model's cost")
    enough = fits(target, sizes.cost, context=prune.context)
    whole = {"layers": sizes.depth, NEURONS: sizes.width, **sizes.others}
    if enough({}):
        raise OutOfReach("the model already fits into the target", value=target, valid="a smaller target")
    align = align_of(prune, sizes)
    least = align if lost is not None else narrowest(sizes.width, sizes.depth, align)
    for drop in _drops(prune, sizes) if lost is None else (lost,):
        depth = sizes.depth - drop
        found = frontier({**whole, "layers": depth}, {}, enough, least, align)
        if found:
            return depth, found[0][NEURONS]
    smallest = {**whole, "layers": 1 if lost is None else sizes.depth - lost, NEURONS: least}
    raise OutOfReach(
        "the target is smaller than neurons and layers alone can reach",
        value=target,
        valid=f"at least {units.size(bytes_at(sizes.cost, smallest, prune.context))}",
        fix=FURTHER,
    )


def _drops(prune: PruneConfig, sizes: Sizes) -> list[int]:
    """How many layers may go, whole periods first."""
    return [*range(0, sizes.depth, sizes.period if prune.whole_periods else 1), *range(sizes.depth)]


def period_in(prune: PruneConfig, sizes: Sizes) -> int:
    """How many layers go at a time: the family's period, where it divides what goes in all; else 1."""
    if not prune.whole_periods or sizes.period == 1 or prune.by_threshold or isinstance(prune.layers, list):
        return 1
    lost = sizes.depth - final_shape(prune, sizes)[0]
    return sizes.period if lost % sizes.period == 0 else 1


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
            f"a target of {target:g} is no share, which is at most 1, and no model has so few parameters",
            value=target,
            valid="a share between 0 and 1, or a parameter count",
            fix=f"for {target:g} %, write {target / 100:g} or {target:g}%",
        )
    if target <= 1 or target != int(target):
        raise OutOfReach(
            "this target means nothing",
            value=target,
            valid=f"a share between 0 and 1, or a parameter count below {sizes.original:,}",
        )
    return int(target)
