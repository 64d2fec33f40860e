"""Sizes of a sliced model (`sliced.py`), from the source's config alone: parameters, FLOPs, the width for a target."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from prunetune.errors import OutOfReach, UnsupportedModel
from prunetune.models.cost import Cost, params
from prunetune.models.families import family_of
from prunetune.models.shape import Shape

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Families whose layers are norm, attention, norm, FFN, each norm at a block's entrance or inside its heads."""

ALIGN = 8
"""The kept width is a multiple of this, as in the authors' program."""


@dataclass(frozen=True)
class SlicedCost(Cost):
    """What a sliced model costs: a stock model's formula at the kept width, and the two residual matrices a layer."""

    @property
    def params(self) -> int:
        """Parameters; there is no final norm's vector."""
        return params(self.shape) - self.shape.hidden

    def forward_flops(self, tokens: int, past: int = 0, head_tokens: int | None = None) -> int:
        """FLOPs of a forward pass, the residual paths' products included (see `cost.Cost`)."""
        shortcuts = 2 * self.shape.depth * self.shape.hidden**2
        return super().forward_flops(tokens, past, head_tokens) + 2 * tokens * shortcuts


def sliced_cost(config: Any, kept: int, dtype_bytes: int = 2) -> SlicedCost:
    """The cost of this model with `kept` places in its residual stream; UnsupportedModel for other families.

    Args:
        config: The source's config.
        kept: Width of the sliced stream.
        dtype_bytes: Bytes of one element of weights and cache.
    """
    check_family(config)
    full, family = Shape.of(config), family_of(config)
    extra = full.layer_extra - len(family.norms) * full.hidden + 2 * kept * kept
    shape = replace(full, hidden=kept, tied=False, layer_extra=extra, model_extra=kept)
    return SlicedCost(shape, dtype_bytes)


def kept_for(config: Any, target_share: float, align: int = ALIGN) -> int:
    """The largest width of the residual stream, a multiple of `align`, that keeps the model within its target.

    Args:
        config: The source's config.
        target_share: Share of the source's parameters (tied embeddings counted once), above 0 and at most 1.
        align: The width is a multiple of this.

    Raises:
        OutOfReach: No such width; the message has the smallest share that there is.
    """
    if not 0 < target_share <= 1:
        raise OutOfReach("this target means nothing", value=target_share, valid="a share between 0 and 1")
    original = params(config)
    for kept in range(config.hidden_size // align * align, 0, -align):
        if sliced_cost(config, kept).params <= target_share * original:
            return kept
    least = sliced_cost(config, align).params / original
    raise OutOfReach(
        "slicing cannot make this model so small", value=target_share, valid=f"a share of at least {least:.3f}"
    )


def check_family(config: Any) -> None:
    """UnsupportedModel unless every norm of the residual stream can be folded into the matrices behind it."""
    name = family_of(config).model_type
    if name not in FAMILIES:
        raise UnsupportedModel(
            "SliceGPT needs layers whose only norms stand before attention and FFN",
            value=name,
            valid=", ".join(FAMILIES),
            fix="use another baseline for this family (recipes under baselines/)",
        )
