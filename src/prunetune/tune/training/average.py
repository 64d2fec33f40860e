"""The mean of the weights over the end of a stage, in place of the last ones (Izmailov et al. 2018, arXiv 1803.05407).

The mean is kept in fp32 beside the trained weights, in checkpoints too, and takes their place when training ends. What
is saved before that, and what the optimiser works on, are the weights themselves.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import get_swa_multi_avg_fn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

FILE = "average.safetensors"
"""The mean so far, in a checkpoint's folder."""


class Average(TrainerCallback):
    """Averages the trained weights after each of the last steps.

    Args:
        steps: Optimiser steps of the stage.
        share: Share of them that the mean covers; at least the last step.
        work: Folder of the checkpoints.
        checkpoint: The one that is gone on from, if any.
    """

    def __init__(self, steps: int, share: float, work: Path, checkpoint: str | None) -> None:
        self.first = steps - covered(steps, share) + 1
        self.work, self.checkpoint = work, checkpoint
        self.add = get_swa_multi_avg_fn()
        self.mean: dict[str, torch.Tensor] = {}
        self.count = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Go on with the mean of the checkpoint."""
        self.count = max(0, state.global_step - self.first + 1)
        if self.count and self.checkpoint:
            stored = load_file(Path(self.checkpoint) / FILE)
            self.mean = {name: stored[name].to(p.device) for name, p in _trained(kwargs["model"]).items()}

    @torch.no_grad()
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Add the weights of this step."""
        if state.global_step < self.first:
            return
        now = _trained(kwargs["model"])
        if not self.count:
            self.mean = {name: p.detach().clone() for name, p in now.items()}
        else:
            self.add(list(self.mean.values()), [p.detach() for p in now.values()], self.count)
        self.count += 1

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Beside the checkpoint's other files, before it is marked as whole."""
        if self.count and state.is_world_process_zero:
            save_file(self.mean, self.work / f"checkpoint-{state.global_step}" / FILE)

    @torch.no_grad()
    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put the mean in the weights' place."""
        for name, parameter in _trained(kwargs["model"]).items():
            if self.count:
                parameter.copy_(self.mean[name])


def covered(steps: int, share: float) -> int:
    """How many of the last steps the mean covers: at least one."""
    return max(1, steps - round((1 - share) * steps))


def _trained(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Trained parameters by name, each once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
