"""Local recovery: each layer of the cut model in turn learns to give what the original gives there, from its weights
after the cut (and after least squares) on. `training/local` says what is trained on what.

What global methods need stands in memory for one layer at a time: its fp32 weights, gradients and moments.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from prunetune.tune.methods.base import Method, Optimizer


class Local(Method):
    """Straight after the cut, before global methods: layers one by one, against the original's hidden states."""

    spreads: ClassVar[bool] = False

    type: Literal["local"] = "local"
    tokens: int | None = Field(default=50_000, gt=0)
    """Tokens of data; a fourth of them is held out and decides which weights stay. None: as many as the steps take."""
    per: Literal["run", "round"] = "round"
    """What the budget covers: each round, or the whole run, shared out over its rounds."""
    steps: int = Field(default=300, ge=0)
    """Optimiser steps of each block, at most; 0: every layer stays as it is."""
    epochs: int = Field(default=32, gt=0)
    """Passes over the data, at most; whichever of steps and epochs is met first ends a block."""
    block: int = Field(default=1, gt=0)
    """Layers that are trained together."""
    input: Literal["original", "current", "both"] = "current"
    """What a block is given: what the original gives it, what the cut and recovered layers before it give (so that it
    makes up for their errors too), or both in turn."""
    learning_rate: float = Field(default=3e-4, gt=0)
    """Peak learning rate."""
    batch_size: int = Field(default=8, gt=0)
    """Sequences of one optimiser step."""
    optimizer: Optimizer = "adamw"
    """Only `adamw`."""

    @model_validator(mode="after")
    def _fits(self) -> Local:
        if self.lora is not None or self.average:
            raise ValueError(
                "local takes neither lora nor average: it keeps the weights that are best on held-out rows"
            )
        if self.optimizer != "adamw":
            raise ValueError("local has one optimizer, adamw: one layer's moments are small")
        if self.precision == "bf16" or self.micro_batch_size is not None or self.gradient_checkpointing is not None:
            raise ValueError(
                "local trains one block in fp32: leave out precision, micro_batch_size, gradient_checkpointing"
            )
        return self

    def trained(self, tokens: float, a_sample: float, rounds: int = 1) -> float:
        """Tokens that each block trains."""
        return min(super().trained(tokens, a_sample, rounds), rounds * self.steps * self.batch_size * a_sample)
