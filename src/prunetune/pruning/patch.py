"""A patch: tensors that surgery puts in place of the cut ones, and how well they fit. A safetensors file.

patch = Patch.read(at / "patch.safetensors")
apply_on_disk(source, plan, out, patch.tensors)
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, StrictInt
from safetensors.torch import save_file
from torch import Tensor

from prunetune.errors import NotFinite, PlanError
from prunetune.models.finite import broken_weights, is_finite
from prunetune.pruning.plan import MOST_LAYERS, PrunePlan
from prunetune.pruning.tensors import read_tensors


@dataclass(frozen=True)
class LayerFit:
    """What compensation did to one layer. Errors are held-out squared errors, relative to the FFN output's energy.

    Attributes:
        layer: Index in the source.
        ridge: The chosen one, relative to the mean of C_kk's diagonal; None: no ridge helped, the layer is only cut.
        before: Error of plain pruning.
        after: Error of what was done; never above `before`.
        readout: The matrix that was changed, by its name in the layer; empty: `down_proj`. Of `o_proj` the errors are
            relative to the attention's output.
        experts: Of a mixture: how many experts of the layer were changed, `ridge` being their middle one; the others
            are only cut. None: it has one FFN.
    """

    layer: int
    ridge: float | None
    before: float
    after: float
    readout: str = ""
    experts: int | None = None


@dataclass(frozen=True)
class Patch:
    """Replacement tensors for surgery, by their names in the model (`cut.patch_name`), and how well they fit."""

    tensors: dict[str, Tensor]
    fits: tuple[LayerFit, ...]
    tokens: int
    held_out_tokens: int
    plan_sha: str = ""

    def write(self, path: Path) -> None:
        """Write as safetensors with the fits as metadata; NotFinite if a tensor holds NaN or infinity."""
        self.check()
        note = {"fits": [asdict(f) for f in self.fits], "tokens": self.tokens, "held_out_tokens": self.held_out_tokens}
        note |= {"plan_sha": self.plan_sha} if self.plan_sha else {}
        save_file({k: v.contiguous() for k, v in self.tensors.items()}, path, {"prunetune": json.dumps(note)})

    @staticmethod
    def read(path: Path) -> Patch:
        """Read back; BadCheckpoint if it is not a patch."""
        note, tensors = read_tensors(path, _Note, "patch", "make it anew", lambda note, shapes: None)
        found = Patch(tensors, note.fits, note.tokens, note.held_out_tokens, note.plan_sha)
        found.check()
        return found

    def check_plan(self, plan: PrunePlan) -> None:
        """PlanError if the patch was made for another plan: shapes alone would not tell."""
        if self.plan_sha and self.plan_sha != plan.sha:
            raise PlanError(
                "this patch was made for another plan (their hashes differ)",
                value=f"patch: {self.plan_sha}, plan: {plan.sha}",
                fix="make the patch for this plan with `prunetune compensate`",
            )

    def check(self) -> None:
        """NotFinite unless every tensor of the patch and every error of its fits is a number."""
        for name, tensor in self.tensors.items():
            if not is_finite(tensor):
                raise broken_weights("the patch", name, tensor)
        for fit in self.fits:
            if not (math.isfinite(fit.before) and math.isfinite(fit.after)):
                raise NotFinite(f"the fit of layer {fit.layer} left an error of {fit.before}, then {fit.after}")


class _Note(BaseModel):
    """What is written beside the tensors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    fits: tuple[LayerFit, ...] = Field(max_length=MOST_LAYERS)
    tokens: StrictInt = Field(ge=0)
    held_out_tokens: StrictInt = Field(ge=0)
    plan_sha: str = Field("", max_length=200)
