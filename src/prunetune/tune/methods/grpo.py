"""GRPO on verifiable rewards (method, section 5; Algorithm 1, line 10), by TRL's GRPOTrainer.

For each prompt a group of answers is sampled; an answer's advantage is its reward less the group's mean, over the
group's deviation; the policy follows it with a KL to this step's own input. Where the published scripts and TRL's
defaults differ, the scripts' values stand: beta 0.01 and loss type `grpo` (TRL: 0 and `dapo`).
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from prunetune.tune.methods.base import Method


class Grpo(Method):
    """Group-relative policy optimisation with the task's own verifier as reward."""

    type: Literal["grpo"] = "grpo"
    learning_rate: float = Field(default=1e-6, gt=0)
    """Peak learning rate; the paper's scripts."""
    scheduler: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "constant"
    """Shape of the learning rate after the warm-up; the scripts keep it constant."""
    warmup: float = Field(default=0.0, ge=0, lt=1)
    """Share of the steps during which the learning rate rises."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled weight decay; the paper's scripts."""
    batch_size: int = Field(default=128, gt=0)
    """Prompts of one optimiser step, over all devices; each is answered `group` times."""
    micro_batch_size: int | None = Field(default=None, gt=0)
    """Answers of one forward pass on one device; None: what fits."""
    max_length: int = Field(default=2048, gt=1)
    """Longest prompt in tokens; longer ones are left out, counted and reported."""
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
    epsilon: float = Field(default=0.2, gt=0)
    """Clipping range of the probability ratio."""
    max_new_tokens: int | None = Field(default=None, gt=0)
    """Longest sampled answer; None: the task's."""
    accuracy_weight: float = Field(default=0.9, ge=0)
    """Reward of a right answer."""
    format_weight: float = Field(default=0.1, ge=0)
    """Reward of an answer in the right form."""
    answer_format: Literal["auto", "hashes", "boxed", "think"] = "auto"
    """The right form: `#### n`, `\\boxed{...}`, or `<think>...</think>` before the answer. auto: the one that the
    data's own answers have, else whatever the verifier can read."""
    rollouts: Literal["batched", "continuous", "vllm"] = "batched"
    """How answers are sampled: transformers' generate, its continuous batching, or vLLM."""
    vllm: dict[str, Any] = Field(default_factory=dict)
    """TRL's vllm_* settings without their prefix: `{mode: server, server_base_url: ...}`."""

    @model_validator(mode="after")
    def _divides(self) -> Grpo:
        if self.micro_batch_size and (self.batch_size * self.group) % self.micro_batch_size:
            answers = self.batch_size * self.group
            raise ValueError(
                f"micro_batch_size {self.micro_batch_size} does not divide the {answers} answers of a step"
            )
        if self.replay is not None:
            raise ValueError("grpo takes no replay: it trains on its own samples")
        if self.average:
            raise ValueError("grpo does not average weights: the policy that earned the rewards is the result")
        if self.epochs != 1:
            raise ValueError("grpo makes one pass over its prompts")
        return self
