"""Scores and patches as safetensors files: tensors, and a note of what they are, both checked when read.

The note is JSON under `prunetune` in the file's metadata.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, StrictInt
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from prunetune.common.reading import parse_json, regular_file, validated
from prunetune.errors import BadCheckpoint, NotFinite, plain
from prunetune.models.axes import axes, axis_of
from prunetune.models.finite import is_finite
from prunetune.pruning.blocks.choose import Others
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
    stays: tuple[StrictInt, ...] = Field(default=(), max_length=MOST_LAYERS)


def check_shapes(note: ScoresNote, shapes: Shapes) -> str | None:
    """What is wrong with the tensors of a scores file; None: nothing."""
    own = {"neurons", "layers", "layers_max"}
    more = shapes.keys() & set(axes()) - own
    if shapes.keys() - more != own:
        return f"it holds {', '.join(sorted(shapes)) or 'no tensors'}, not neurons, layers and layers_max"
    rows, width = shapes["neurons"] if len(shapes["neurons"]) == 2 else (0, 0)
    if not 0 < rows <= MOST_LAYERS or not 0 < width <= MOST_NEURONS:
        return f"neurons is {list(shapes['neurons'])}, not [layers, width]"
    if width % max(1, note.sizes.get("experts", 1)):
        return f"neurons is {list(shapes['neurons'])} beside sizes {note.sizes}"
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


@dataclass(frozen=True)
class Scores:
    """How redundant every neuron and layer of one model is; low = redundant.

    Attributes:
        neurons: One row a layer, fp32; of a mixture of experts those of all, expert after expert.
        layers: The layer criterion, mean over tokens (ranks the layers).
        layers_max: Its maximum over tokens (for the threshold of Eq. 6, "for all x").
        criterion: Neuron criterion, with its reduction over tokens.
        layer_criterion: Layer criterion.
        model_sha: `store.model_sha` of the model.
        data_sha: Hash of the sequences.
        tokens: Real tokens seen.
        blocks: Axis -> the same for its units, if it was asked for (heads, query_heads: all those of a layer).
        sizes: How many units the model has of those axes, and of those that they are in.
        stays: Layers that cannot go, whatever their score (`Family.last`).
    """

    neurons: Float[Tensor, "layers width"]
    layers: Float[Tensor, " layers"]
    layers_max: Float[Tensor, " layers"]
    criterion: str
    layer_criterion: str
    model_sha: str
    data_sha: str
    tokens: int
    blocks: Mapping[str, Float[Tensor, "layers units"]] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    stays: tuple[int, ...] = ()

    def write(self, path: Path) -> None:
        """Write as safetensors with the hashes as metadata."""
        tensors = {"neurons": self.neurons, "layers": self.layers, "layers_max": self.layers_max, **self.blocks}
        note = {k: getattr(self, k) for k in ("criterion", "layer_criterion", "model_sha", "data_sha", "tokens")}
        note |= {"sizes": dict(self.sizes)} if self.sizes else {}
        note |= {"stays": list(self.stays)} if self.stays else {}
        save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata={"prunetune": json.dumps(note)})

    @staticmethod
    def read(path: Path) -> Scores:
        """Read back; BadCheckpoint if it is not a scores file."""
        fix = "make it anew with `prunetune score`"
        note, tensors = read_tensors(path, ScoresNote, "scores file", fix, check_shapes)
        neurons, layers, layers_max = (tensors[name].float() for name in ("neurons", "layers", "layers_max"))
        blocks = {name: tensors[name].float() for name in tensors if name in axes()}
        del blocks["neurons"], blocks["layers"]
        found = Scores(neurons, layers, layers_max, **note.model_dump(), blocks=blocks)
        if (layer := found.not_finite()) is not None:
            raise NotFinite(
                f"the scores of layer {layer} are NaN or infinite, so no plan can be made from them",
                value=str(path),
                fix="make them anew with `prunetune score`, which says where the model overflows",
            )
        return found

    @property
    def experts(self) -> int:
        """How many experts a layer has, whose neurons stand one after another; 0: it has one FFN."""
        return self.sizes.get("experts", 0)

    def may_go(self, chosen: Collection[int] | None = None) -> list[int] | None:
        """Those of the chosen layers that can go, as `make_plan` takes them; None: of all layers all can."""
        if chosen is None and not self.stays:
            return None
        return [i for i in (range(len(self.layers)) if chosen is None else chosen) if i not in self.stays]

    def others(self, amounts: Mapping[str, int]) -> Others:
        """What is asked of other axes (`{"heads": 1}`), with their scores, as `make_plan` takes it."""
        return Others(amounts, {name: rows.tolist() for name, rows in self.blocks.items()}, self.sizes)

    def not_finite(self) -> int | None:
        """The first layer with a score that is NaN or infinite; None: all are numbers."""
        kinds = (self.neurons, self.layers, self.layers_max, *self.blocks.values())
        return next((i for i in range(len(self.layers)) if not all(is_finite(x[i]) for x in kinds)), None)
