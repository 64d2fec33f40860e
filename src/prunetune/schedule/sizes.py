"""A model's parameters by depth and width: what the schedule counts with.

sizes = Sizes.of(config)          # parameters are affine in depth and width
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prunetune.models.cost import Cost, layer_params, neuron_params, params
from prunetune.models.families import family_of
from prunetune.models.families.pattern import period_of
from prunetune.models.shape import Shape
from prunetune.schedule.fitting import stored_bytes
from prunetune.schedule.reach import left


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
        period: Layers of the family's pattern that should go together; 1: each may go alone.
        stays: How many of the last layers cannot go (`Family.last`).
        cost: The untouched model's, for targets in bytes; None: unknown.
        others: What is left of other axes after the first round; depth and width are counted at that.
        whole: Parameters of the untouched model, where it has more of those; None: it has not.
    """

    depth: int
    width: int
    base: int
    layer: int
    neuron: int
    hidden: int
    period: int = 1
    cost: Cost | None = None
    others: Mapping[str, int] = field(default_factory=dict)
    whole: int | None = None
    stays: int = 0

    @staticmethod
    def of(config: Any, cut: Mapping[str, int] | None = None, rows: int | None = None) -> Sizes:
        """Of a model, from its config.

        Args:
            config: A `PretrainedConfig` or a config.json dict.
            cut: The units of other axes that go in the first round.
            rows: Those of the vocabulary that are left before it; None: all.

        Raises:
            OutOfReach, UnsupportedModel: See `reach.left`.
        """
        whole, values = Shape.of(config), config if isinstance(config, dict) else config.to_dict()
        others = left(whole.counts(), cut, family_of(config), {**values, **whole.values()}) if cut else {}
        others |= {"vocabulary": rows} if rows is not None else {}
        shape, cost = whole.resized(others), Cost(whole, stored_bytes(config))
        return Sizes(
            shape.depth,
            shape.width,
            params(shape, 0),
            layer_params(shape, 0),
            neuron_params(shape),
            shape.hidden,
            period_of(config),
            cost,
            others,
            cost.params if others else None,
            1 if family_of(config).last else 0,
        )

    def params(self, depth: int, width: int) -> int:
        """Parameters at this depth and width."""
        return self.base + depth * (self.layer + width * self.neuron)

    @property
    def original(self) -> int:
        """Parameters of the untouched model."""
        return self.whole or self.params(self.depth, self.width)

    def start(self, depth: int, width: int) -> int:
        """Parameters before a round that starts from this shape: the first one's still has all of the other axes."""
        return self.original if (depth, width) == (self.depth, self.width) else self.params(depth, width)
