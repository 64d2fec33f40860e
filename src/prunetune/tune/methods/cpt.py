"""Continual pre-training: next-token loss over the whole sequence (method, section 5; Algorithm 1, line 9)."""

from __future__ import annotations

from typing import Literal

from prunetune.tune.methods.base import Method


class Cpt(Method):
    """Continual pre-training on questions with written-out answers, or on plain text."""

    type: Literal["cpt"] = "cpt"
    completion_only: bool = False
    """Only the answer's tokens count in the loss; the paper counts all."""
    packing: bool = False
    """Fill each row with several examples that do not see each other, instead of grouping by length."""
