"""Supervised fine-tuning: next-token loss on the answer alone, prompts in the model's own format."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from prunetune.tune.methods.base import Method

if TYPE_CHECKING:
    from prunetune.tune.stage import Stage, Trained


class Sft(Method):
    """Prompt and completion; only the completion counts in the loss."""

    type: Literal["sft"] = "sft"
    packing: bool = False
    """Fill each row with several examples that do not see each other, instead of grouping by length."""

    def train(self, stage: Stage) -> Trained:
        """Train on the stage's examples; see `trainer.fit`."""
        from prunetune.tune.training.trainer import fit

        return fit(stage, completion_only=True, packing=self.packing)
