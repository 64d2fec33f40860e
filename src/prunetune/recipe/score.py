"""`score`: how redundancy is measured, and on what."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from prunetune.data.stream import DataSource
from prunetune.errors import RecipeError
from prunetune.pruning.criteria import CRITERIA, LAYER_CRITERIA
from prunetune.recipe.one_of import OneOf
from prunetune.schedule.wanted import bytes_of


def _bytes(text: str) -> str:
    if bytes_of(text) is None:
        raise ValueError("must be bytes, such as 8GB or 500MB")
    return text


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
    samples: Annotated[int, Field(gt=0)] | Literal["auto"] = 256
    """Sequences scored in each round: the first of the data stream, which are not trained on. `auto`: as many as give
    least squares 100 tokens for each neuron that stays, within `memory` and a fourth of the data (or `score.data`)."""
    memory: Annotated[str, AfterValidator(_bytes)] = "8GB"
    """`samples: auto`: bytes that their hidden states may take (8GB, 500MB): on the device, in host memory, on disk."""
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

    @property
    def count(self) -> int:
        """`samples`, where it is a number: `auto` is one once data and model are read (`loop/context.py`)."""
        if self.samples == "auto":
            raise RecipeError("score.samples is not counted yet", value="auto", fix="give a number")
        return self.samples
