"""What every recovery method shares: its settings. Defaults are the paper's for continual pre-training (method, 5), but
for the learning rate.

A method is one file of this folder, a pydantic model whose `type` names it, and a line in `training/trainers.py`, which
runs it. Nothing here imports torch, so that recipes are read quickly.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from prunetune.data.sources import Seed
from prunetune.data.stream import DataSource

Rate = Annotated[float, Field(gt=0)] | Literal["auto"]
Optimizer = Literal["adamw", "adamw_8bit", "paged_adamw_8bit", "paged_adamw", "adafactor", "sgd"]


PAPER = (8e9, 32, 8e-6)
"""The paper's largest setting: parameters, sequences of an optimiser step, learning rate."""
FALL = 0.57
"""The rate falls with this power of the parameters."""
OF_LORA = 10
"""Adapters want ten times the rate of all weights (https://thinkingmachines.ai/blog/lora)."""
HIGHEST = 3e-4
"""No rate of all weights is above what was best for models of one million parameters (studies/12-recovery)."""


def rate_for(parameters: int, batch_size: int, *, lora: bool = False) -> float:
    """Peak learning rate of recovery, to two digits: 8e-6 x (8e9 / parameters) ^ 0.57 x sqrt(batch_size / 32).

    That is the paper's rate at its 8 billion parameters, and near what was best at 94 million (docs/method.md).
    The root of the batch is Adam's scaling rule (Malladi et al. 2022, https://arxiv.org/abs/2205.10287).
    """
    size, sequences, rate = PAPER
    rate = min(HIGHEST, rate * (size / parameters) ** FALL * math.sqrt(batch_size / sequences))
    return float(f"{rate * (OF_LORA if lora else 1):.1e}")


class Lora(BaseModel):
    """Train low-rank adapters (peft) and merge them into the weights before the stage ends."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    rank: int = Field(default=16, gt=0)
    """Rank of every adapter."""
    alpha: int = Field(default=32, gt=0)
    """Scale: the adapter's product is multiplied by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input."""
    targets: tuple[str, ...] = ()
    """Names of the linear layers to adapt; empty: all of them except the head."""


class Replay(BaseModel):
    """General text mixed into the recovery data, against forgetting."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    share: float = Field(default=0.1, gt=0, lt=1)
    """Share of all examples of the stage that are replayed ones."""
    sources: tuple[DataSource, ...] = Field(min_length=1)
    """Where they come from; each is read once in a run, and again only after the last of them."""


class Method(BaseModel):
    """Settings common to all recovery methods."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    spreads: ClassVar[bool] = True
    """Whether a launcher can share a job out over devices; else it runs in the loop's own process."""

    type: str
    """Name of the method."""
    samples: int | None = Field(default=None, gt=0)
    """Budget in examples (prompts for `grpo`); None: all that the data hold."""
    tokens: int | None = Field(default=None, gt=0)
    """Budget in trained tokens; whichever of the two budgets is met first ends the stage."""
    per: Literal["run", "round"] = "run"
    """What the budget covers: the whole run, shared out over its rounds, or each round."""
    when: Literal["every", "last"] = "every"
    """`last`: only in the last round, with the whole budget, such as reinforcement learning at the final size. On a
    ladder: in the last round of each rung, with equal shares of it."""
    data: tuple[DataSource, ...] | None = Field(default=None, min_length=1)
    """A stream of its own, in place of the recipe's: other problems than those that are scored."""
    epochs: int = Field(default=1, gt=0)
    """Passes over the stage's own examples; the paper makes one."""

    learning_rate: Rate = "auto"
    """Peak learning rate; `auto`: by the parameters and `batch_size` (docs/method.md). The paper: 8e-6."""
    scheduler: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"
    """Shape of the learning rate after the warm-up."""
    average: float = Field(default=0.0, ge=0, lt=1)
    """Share of the steps, at the end, whose weights are averaged into the result; 0: the last step's weights."""
    warmup: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps during which the learning rate rises."""
    optimizer: Optimizer = "adamw"
    """`adamw` is fused where the device has it; the 8-bit and paged ones need bitsandbytes and a GPU."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay."""
    adam_beta2: float = Field(default=0.999, gt=0, lt=1)
    """Decay of the second moment."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Gradients are clipped to this norm; 0: never."""
    batch_size: int = Field(default=32, gt=0)
    """Sequences of one optimiser step, over all devices."""
    micro_batch_size: int | None = Field(default=None, gt=0)
    """Sequences of one forward pass on one device; None: what fits; always a divisor of the share of a device."""
    max_length: int = Field(default=1024, gt=1)
    """Tokens of an example; longer ones are cut, counted and reported."""

    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Compute type; the trained weights are fp32 in any case. auto: bf16 where the device is faster with it."""
    gradient_checkpointing: bool | None = None
    """Recompute activations in the backward pass; None: only where they would not fit into memory."""
    loss_head: Literal["auto", "bounded", "plain"] = "auto"
    """`bounded` never holds [tokens, vocabulary] logits; `plain` is the model's own loss; auto: docs/performance.md."""
    lora: Lora | None = None
    """Train adapters in place of all weights."""
    replay: Replay | None = None
    """General text mixed in."""
    seed: Seed | None = None
    """Seed of the order of batches and of sampling; None: the job's."""

    checkpoint_minutes: float = Field(default=10.0, gt=0)
    """A killed stage goes on from a checkpoint at most this old."""
    diverged_at: float = Field(default=3.0, gt=0)
    """Stop when the loss (mean of eight steps, nats) rises this far above its lowest."""

    @model_validator(mode="after")
    def _divides(self) -> Method:
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(f"micro_batch_size {self.micro_batch_size} does not divide batch_size {self.batch_size}")
        return self

    def trained(self, tokens: float, a_sample: float, rounds: int = 1) -> float:
        """Tokens that are trained, all passes.

        Args:
            tokens: Of the examples, each once.
            a_sample: Tokens of an example.
            rounds: Over which they are shared out.
        """
        return tokens * self.epochs

    def rate(self, parameters: int) -> float:
        """Peak learning rate for a model of so many parameters, the frozen ones among them."""
        if self.learning_rate == "auto":
            return rate_for(parameters, self.batch_size, lora=self.lora is not None)
        return self.learning_rate

    def changed(self, **values: Any) -> Self:
        """A validated copy with other values."""
        return type(self).model_validate({**self.model_dump(), **values})
