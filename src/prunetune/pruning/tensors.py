"""Scores and patches as safetensors files: tensors, and a note of what they are, both checked when read.

The note is JSON under `prunetune` in the file's metadata.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, StrictInt
from safetensors import SafetensorError, safe_open
from torch import Tensor

from prunetune.common.reading import parse_json, regular_file, validated
from prunetune.errors import BadCheckpoint, plain
from prunetune.models.axes import axes, axis_of
from prunetune.pruning.plan import MOST_LAYERS, MOST_NEURONS

N = TypeVar("N", bound=BaseModel)

Shapes = dict[str, tuple[int, ...]]
FLOATS = {"F64", "F32", "F16", "BF16"}


def read_tensors(
    path: Path, note: type[N], what: str, fix: str, check: Callable[[N, Shapes], str | None]
) -> tuple[N, dict[str, Tensor]]:
    """The note and the tensors of a file.

    Args:
        path: The file.
        note: What its note must be.
        what: What it is called in messages.
        fix: What to do about a file that is none.
        check: Called with note and shapes before any tensor is read; says what is wrong with them, or None.

    Raises:
        MissingPath: it is not there. BadCheckpoint: it is damaged, or something else.
    """

    def bad(told: str) -> BadCheckpoint:
        return BadCheckpoint(f"this is not a {what}: {told}", value=str(path), fix=fix)

    regular_file(path, what, fix=fix)
    try:
        with safe_open(path, framework="pt") as f:
            text = (f.metadata() or {}).get("prunetune")
            if text is None:
                raise bad("its metadata have no `prunetune`")
            found = validated(note, parse_json(text, path, f"{what}'s note", fix=fix), path, f"{what}'s note", fix=fix)
            slices = {name: f.get_slice(name) for name in f.keys()}  # noqa: SIM118 - no mapping
            for name, part in slices.items():
                if part.get_dtype() not in FLOATS:
                    raise bad(f"{plain(name, 80)} is stored as {part.get_dtype()}, not as floating-point numbers")
            if told := check(found, {name: tuple(part.get_shape()) for name, part in slices.items()}):
                raise bad(told)
            tensors = {name: f.get_tensor(name) for name in slices}
    except (SafetensorError, OSError) as e:
        raise bad(plain(str(e), 200)) from None
    return found, tensors


# ------------------------------------------------------------------------------------------------------- a scores file


class ScoresNote(BaseModel):
    """What is written beside the tensors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    criterion: str = Field(max_length=200)
    layer_criterion: str = Field(max_length=200)
    model_sha: str = Field(max_length=200)
    data_sha: str = Field(max_length=200)
    tokens: StrictInt = Field(ge=0)
    sizes: dict[str, StrictInt] = Field(default_factory=dict)


def check_shapes(note: ScoresNote, shapes: Shapes) -> str | None:
    """What is wrong with the tensors of a scores file; None: nothing."""
    own = {"neurons", "layers", "layers_max"}
    more = shapes.keys() & set(axes()) - own
    if shapes.keys() - more != own:
        return f"it holds {', '.join(sorted(shapes)) or 'no tensors'}, not neurons, layers and layers_max"
    rows, width = shapes["neurons"] if len(shapes["neurons"]) == 2 else (0, 0)
    if not 0 < rows <= MOST_LAYERS or not 0 < width <= MOST_NEURONS:
        return f"neurons is {list(shapes['neurons'])}, not [layers, width]"
    for name in ("layers", "layers_max"):
        if shapes[name] != (rows,):
            return f"{name} is {list(shapes[name])} beside neurons of {rows} layers"
    for name in more:
        axis = axis_of(name)
        if any(note.sizes.get(of, 0) <= 0 for of in axis.counts):
            return f"its note does not say how many {name} the model has"
        if shapes[name] != (rows, axis.places(note.sizes)):
            return f"{name} is {list(shapes[name])} beside neurons of {rows} layers and sizes {note.sizes}"
    return None
