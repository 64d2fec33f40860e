"""`score`: how redundancy is measured, and on what."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from prunetune.data.stream import DataSource
from prunetune.pruning.criteria import CRITERIA, LAYER_CRITERIA
from prunetune.recipe.one_of import OneOf


class ScoreConfig(BaseModel):
    """How redundancy is measured (Eq. 2-6)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    criterion: Annotated[str, OneOf("criterion", tuple(CRITERIA))] = "greedy"
    """How redundant a neuron is; see `criteria.CRITERIA`. `greedy` and `leverage`: by the error left after least
    squares; the paper: `contribution` (Eq. 2) or `activation` (Eq. 4)."""
    reduce: str = "mean"
    """Reduction over tokens of `contribution`: mean, rms, max, or a quantile such as q99."""
    layer_criterion: Annotated[str, OneOf("layer_criterion", tuple(LAYER_CRITERIA))] = "l2"
    """How redundant a layer is; see `criteria.LAYER_CRITERIA`."""
    samples: int = Field(256, gt=0)
    """Sequences scored in each round: the first of the data stream, which are not trained on."""
    data: list[DataSource] | None = Field(None, min_length=1)
    """Sequences of their own to score and to compensate with, in place of the first of the recipe's data: own traces,
    for example. Where they are fewer than `samples`, all of them."""
    held_out: int = Field(64, gt=0)
    """Further sequences that are never trained on: the loss on them after pruning and after recovery is recorded."""
    max_length: int = Field(1024, gt=1)
    """Longer sequences are cut."""
    batch_tokens: int = Field(8192, gt=0)
    """Places of a scoring batch, padding included."""
    vote_share: float = Field(0.5, gt=0, le=1)
    """`ptl_vote`: how many neurons a sample votes for, as a share of the width."""
