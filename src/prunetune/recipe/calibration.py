"""What `score.samples` means for a model and its data: tokens, bytes, and how many sequences `auto` is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunetune.models.calibration import Calibration, enough, of, token_bytes
from prunetune.schedule.sizes import Sizes
from prunetune.schedule.target import final_shape
from prunetune.schedule.wanted import bytes_of

if TYPE_CHECKING:
    from prunetune.recipe.schema import Recipe


def calibration_of(recipe: Recipe, sizes: Sizes, hidden: int, *, item: int, mean: float, most: int) -> Calibration:
    """The sequences that a run scores and compensates with.

    Args:
        recipe: Its settings.
        sizes: Of the untouched model.
        hidden: Its hidden size.
        item: Bytes of an element where layers run.
        mean: Tokens of a sequence.
        most: Sequences that `auto` may take.
    """
    unknown = recipe.prune.open or recipe.prune.by_threshold or recipe.prune.target is None
    unknown = unknown or recipe.prune.vocabulary is not None  # the data decide what it leaves to the other axes
    depth, width = (0, sizes.width) if unknown else final_shape(recipe.prune, sizes)
    shape = sizes.cost.shape if sizes.cost else None
    share = shape.active / shape.experts if shape and shape.experts else 1.0
    stream = recipe.compensate == "least-squares" and depth < sizes.depth and share == 1
    a_token = token_bytes(hidden, item, stream=stream)
    if recipe.score.samples != "auto":
        return of(recipe.score.samples, mean, width, a_token, share=share)
    return enough(mean, width, a_token, bytes_of(recipe.score.memory) or 0, most, share)


def counted(recipe: Recipe, samples: int) -> Recipe:
    """The recipe with a number in the place of `auto`."""
    return recipe.changed(score=recipe.score.model_copy(update={"samples": samples}))
