"""What a choice of the final shape has found: RUN/decisions/shape.json, written by the loop, read by the report."""

from __future__ import annotations

from prunetune.runs.records import Record

SHAPE = "shape.json"
"""In RUN/decisions."""


class Tried(Record):
    """One shape that meets the target.

    Attributes:
        shape: Units left, by axis.
        params: Parameters.
        predicted: Held-out loss by the surrogate (nats a token); None: nothing was cut.
        measured: The same, straight after the cut and compensation; None: it was not cut.
        ms: Milliseconds a token, predicted, where the target is one of time.
    """

    shape: dict[str, int]
    params: int
    predicted: float | None = None
    measured: float | None = None
    ms: float | None = None


class ShapeRecord(Record):
    """The shape that was chosen, and all that it was chosen from.

    Attributes:
        asked: The target as the recipe says it.
        shape: Units left, by axis.
        loss: Held-out loss of the untouched model.
        cuts: Shapes that were cut.
        candidates: Every shape that meets the target with as many neurons as it may have, the best first.
        seconds: What the choice took.
    """

    asked: float | int | str
    shape: dict[str, int]
    loss: float
    cuts: int
    candidates: tuple[Tried, ...]
    seconds: float = 0.0
