"""The modules whose functions take and return tensors: in tests their annotations are checked on every call."""

from __future__ import annotations

SHAPED = (
    "prunetune.pruning.statistics", "prunetune.pruning.scores", "prunetune.pruning.tensors", "prunetune.pruning.experts", "prunetune.pruning.ranking", "prunetune.pruning.tap",
    "prunetune.pruning.blocks", "prunetune.pruning.folding", "prunetune.pruning.apply", "prunetune.pruning.cut", "prunetune.pruning.least_squares",
    "prunetune.pruning.layerwise", "prunetune.pruning.scoring", "prunetune.pruning.compensate", "prunetune.pruning.gradients", "prunetune.models.head_loss", "prunetune.models.head",
    "prunetune.tune.training.kl", "prunetune.baselines.slicegpt", "prunetune.evaluation.weight_only",
)  # fmt: skip

UNCHECKED = ("prunetune.baselines.sliced",)
"""Names shapes too, but the hook would rewrite its config, which transformers makes a dataclass of."""
