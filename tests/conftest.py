"""Offline, one thread a worker, shapes checked at run time."""

from __future__ import annotations

import os

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ["OMP_NUM_THREADS"] = "1"  # two workers on two cores: more threads would only wait for each other

import pytest
from jaxtyping import install_import_hook

# The modules whose functions take and return tensors: their annotations are checked on every call.
SHAPED = [
    f"pruning.{m}"
    for m in ("criteria", "scores", "ranking", "tap", "apply", "cut", "least_squares", "layerwise", "compensate")
]
SHAPED += ["pruning.gradients", "models.head_loss", "tune.training.kl", "baselines.slicegpt"]
install_import_hook([f"prunetune.{m}" for m in SHAPED], "beartype.beartype")

import torch


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
