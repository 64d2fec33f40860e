"""Distillation: forward KL to a teacher's next-token distribution, mixed with the next-token loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from prunetune.tune.base import Method

if TYPE_CHECKING:
    from prunetune.tune.stage import Stage, Trained


class Distill(Method):
    """Loss = kl_weight * T^2 * KL(teacher || student at temperature T) + (1 - kl_weight) * next-token loss."""

    type: Literal["distill"] = "distill"
    teacher: str | None = None
    """Model reference of the teacher; None: the original model of the run."""
    kl_weight: float = Field(default=0.9, ge=0, le=1)
    """Share of the KL term; the rest is the next-token loss."""
    temperature: float = Field(default=1.0, gt=0)
    """Both distributions are softened by it; the KL is scaled by its square, so that gradients keep their size."""
    completion_only: bool = False
    """Only the answer's tokens count."""

    def train(self, stage: Stage) -> Trained:
        """Train on the stage's examples beside the teacher."""
        raise NotImplementedError("distill")
