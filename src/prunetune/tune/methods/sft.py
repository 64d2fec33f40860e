"""Supervised fine-tuning: next-token loss on the answer alone, prompts in the model's own format."""

from __future__ import annotations

from typing import Literal

from prunetune.tune.methods.base import Method


class Sft(Method):
    """Prompt and completion; only the completion counts in the loss."""

    type: Literal["sft"] = "sft"
    packing: bool = False
    """Fill each row with several examples that do not see each other, instead of grouping by length."""
