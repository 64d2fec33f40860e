"""The axis `layers`: whole decoder layers. Their tensors go with them, those of the others are renumbered."""

from __future__ import annotations

from prunetune.models.axes.axis import Axis
from prunetune.models.families.pattern import period_of

LAYERS = Axis(
    name="layers",
    units=lambda values: int(values["num_hidden_layers"]),
    resized=lambda values, count: {"num_hidden_layers": count},
    slices=lambda family, shape: (),
    called=("layer", "layers"),
    grain=period_of,
)
