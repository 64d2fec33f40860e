"""GRPO on verifiable rewards (method, section 5; Algorithm 1, line 10), by TRL's GRPOTrainer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from prunetune.tune.base import Method

if TYPE_CHECKING:
    from prunetune.tune.stage import Stage, Trained


class Grpo(Method):
    """Group-relative policy optimisation with the task's own verifier as reward."""

    type: Literal["grpo"] = "grpo"
    learning_rate: float = Field(default=1e-6, gt=0)
    """Peak learning rate; the paper's scripts."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled weight decay; the paper's scripts."""
    batch_size: int = Field(default=128, gt=0)
    """Prompts of one optimiser step, over all devices; each is answered `group` times."""
    group: int = Field(default=8, gt=1)
    """Answers sampled for each prompt."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature."""
    top_p: float = Field(default=0.99, gt=0, le=1)
    """Nucleus sampling."""
    beta: float = Field(default=0.01, ge=0)
    """Weight of the KL (low-variance estimator) against this step's own input."""
    loss_type: Literal["grpo", "bnpo", "dr_grpo", "dapo"] = "grpo"
    """How token losses are averaged; TRL's names."""
    max_new_tokens: int | None = Field(default=None, gt=0)
    """Longest sampled answer; None: the task's."""
    accuracy_weight: float = Field(default=0.9, ge=0)
    """Reward of a right answer."""
    format_weight: float = Field(default=0.1, ge=0)
    """Reward of an answer from which a result can be extracted."""

    def train(self, stage: Stage) -> Trained:
        """Sample, reward, update."""
        raise NotImplementedError("grpo")
