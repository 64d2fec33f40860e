"""A prune plan: what goes, before anything goes. Frozen, validated, reviewable JSON.

Indices always mean the model that the plan was made for. Every kept layer loses the same number of neurons, so that
the result keeps one scalar `intermediate_size` and stays a stock architecture.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from prunetune.errors import MissingPath, PlanError
from prunetune.store import write_json


class PrunePlan(BaseModel):
    """Which layers and which neurons are removed from one model.

    Attributes:
        model_sha: `store.model_sha` of the model that the plan is for.
        depth: Layers of that model.
        width: FFN width (`intermediate_size`) of that model.
        drop_layers: Layers to remove, ascending.
        drop_neurons: Layer -> neurons to remove, ascending; the same number in every kept layer, or empty.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model_sha: str
    depth: int = Field(gt=0)
    width: int = Field(gt=0)
    drop_layers: tuple[int, ...] = ()
    drop_neurons: dict[int, tuple[int, ...]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> PrunePlan:
        _ascending("drop_layers", self.drop_layers, self.depth)
        if len(self.drop_layers) >= self.depth:
            raise ValueError("drop_layers leaves no layer")
        for layer, neurons in self.drop_neurons.items():
            if layer not in self.kept_layers:
                raise ValueError(f"drop_neurons names layer {layer}, which is not kept")
            _ascending(f"drop_neurons[{layer}]", neurons, self.width)
        counts = {len(self.drop_neurons.get(layer, ())) for layer in self.kept_layers}
        if len(counts) > 1:
            raise ValueError(f"every kept layer must lose the same number of neurons, not {sorted(counts)}")
        if counts == {self.width}:
            raise ValueError("drop_neurons leaves no neuron")
        return self

    @property
    def kept_layers(self) -> tuple[int, ...]:
        """The layers that stay, ascending, as numbered in the source."""
        gone = set(self.drop_layers)
        return tuple(i for i in range(self.depth) if i not in gone)

    def kept_neurons(self, layer: int) -> tuple[int, ...]:
        """The neurons of a kept source layer that stay, ascending."""
        gone = set(self.drop_neurons.get(layer, ()))
        return tuple(j for j in range(self.width) if j not in gone)

    @property
    def new_depth(self) -> int:
        """Layers of the result."""
        return self.depth - len(self.drop_layers)

    @property
    def new_width(self) -> int:
        """FFN width of the result."""
        return self.width - len(next(iter(self.drop_neurons.values()), ()))

    def write(self, path: Path) -> None:
        """Write as JSON, atomically."""
        write_json(path, self.model_dump(mode="json"))

    @staticmethod
    def read(path: Path) -> PrunePlan:
        """Read and validate; PlanError names what is wrong."""
        try:
            return PrunePlan.model_validate_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise MissingPath("no such plan", value=str(path), fix="make one with `prunetune plan`") from None
        except ValidationError as e:
            first = e.errors()[0]
            where = ".".join(str(p) for p in first["loc"]) or "plan"
            raise PlanError(f"this plan is not valid: {where}: {first['msg']}", value=str(path)) from None


def _ascending(name: str, indices: tuple[int, ...], size: int) -> None:
    if any(not 0 <= i < size for i in indices):
        raise ValueError(f"{name} has an index outside 0..{size - 1}")
    if any(a >= b for a, b in zip(indices, indices[1:], strict=False)):
        raise ValueError(f"{name} must be ascending, without repeats")
