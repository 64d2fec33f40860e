"""Recovery methods: continual pre-training and others. One file a method; the pydantic config is the method.

Others take `TuneConfig`, any of them, in recipes and jobs.
To add one: its file with a `Method` whose `type` is its name, listed here, and a line in `training/trainers.py`.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, SerializeAsAny

from prunetune.common.plugins import plugged
from prunetune.tune.methods.base import Lora, Method, Replay
from prunetune.tune.methods.cpt import Cpt
from prunetune.tune.methods.distill import Distill
from prunetune.tune.methods.grpo import Grpo
from prunetune.tune.methods.local import Local
from prunetune.tune.methods.sft import Sft

METHODS: dict[str, type[Method]] = {"cpt": Cpt, "sft": Sft, "distill": Distill, "grpo": Grpo, "local": Local}

TuneConfig = Annotated[
    SerializeAsAny[Annotated[Cpt | Sft | Distill | Grpo | Local, Field(discriminator="type")]], plugged("method")
]
"""Any of them, or what a plugin adds; its `runner` of the same name runs it."""

__all__ = ["METHODS", "Cpt", "Distill", "Grpo", "Local", "Lora", "Method", "Replay", "Sft", "TuneConfig"]
