"""Distillation from a teacher, by default the original model: forward KL on the recovery data, or on own samples.

`kl.py` has the equations. The teacher's logits never exist as a whole: they are made for one chunk of tokens at a time
beside the student's, or read from a cache of the k most likely tokens of each position.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from prunetune.tune.methods.base import Method


class Distill(Method):
    """Loss = kl_weight * T^2 * KL(teacher || student at temperature T) + (1 - kl_weight) * next-token loss."""

    type: Literal["distill"] = "distill"
    mode: Literal["data", "on_policy"] = "data"
    """`data`: on the recovery data. `on_policy`: on the student's own samples (TRL's DistillationTrainer)."""
    teacher: str | None = None
    """Model reference of the teacher; None: the original model of the run."""
    kl_weight: float = Field(default=0.9, ge=0, le=1)
    """Share of the KL term; the rest is the next-token loss."""
    temperature: float = Field(default=1.0, gt=0)
    """Both distributions are softened by it; the KL is scaled by its square, so that gradients keep their size."""
    completion_only: bool = False
    """Only the answer's tokens count."""
    top_k: int | None = Field(default=None, gt=0)
    """Keep only the teacher's k most likely tokens of each position; the rest counts as one class."""
    cache: str | None = None
    """With `top_k`: folder in which the teacher's log-probabilities are kept, so that the same data need no teacher
    again. None: the job's own folder."""
    beta: float = Field(default=0.0, ge=0, le=1)
    """`on_policy` only: 0 is the forward KL, 1 the reverse one, between them the generalised Jensen-Shannon one."""
    max_new_tokens: int = Field(default=256, gt=0)
    """`on_policy` only: longest sample."""
    acceptance: float = Field(default=0.5, ge=0, le=1)
    """`on_policy` only: where the teacher would accept fewer of the student's tokens, the step is made on the data."""

    @model_validator(mode="after")
    def _fits(self) -> Distill:
        if self.cache is not None and self.top_k is None:
            raise ValueError("cache needs top_k")
        if self.mode == "on_policy" and (self.top_k is not None or self.lora is not None):
            raise ValueError("mode on_policy takes neither top_k nor lora")
        if self.mode == "on_policy" and self.average:
            raise ValueError("mode on_policy does not average weights")
        return self
