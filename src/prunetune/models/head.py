"""The head of a model as one matrix product, whatever its family does to the logits: z' = cap(scale * (W h + b)).

    head = head_of(model)
    loss = next_token_loss(head.reads(hidden), head.weight(), labels, softcap=head.softcap)

A scale of the logits (Granite, Cohere) is one of the states; a bias (Phi) is the weight of one more state that is 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from prunetune.models.families import families


@dataclass(frozen=True)
class Head:
    """The head's module, what multiplies its logits, and Gemma 2's and 4's `final_logit_softcapping`."""

    module: nn.Module
    scale: float
    softcap: float | None

    def reads(self, hidden: Float[Tensor, "... width"]) -> Float[Tensor, "... inputs"]:
        """What `weight` is multiplied with, from the hidden states after the final norm."""
        hidden = hidden if self.scale == 1 else hidden * self.scale
        if self._bias() is None:
            return hidden
        return torch.cat([hidden, torch.full_like(hidden[..., :1], self.scale)], dim=-1)

    def weight(self) -> Float[Tensor, "vocabulary inputs"]:
        """The head's own matrix, with its bias as one more column if it has one."""
        weight: Tensor = self.module.weight  # type: ignore[assignment]  # a linear module
        bias = self._bias()
        return weight if bias is None else torch.cat([weight, bias[:, None]], dim=1)

    def _bias(self) -> Tensor | None:
        return getattr(self.module, "bias", None)


def head_of(model: nn.Module) -> Head:
    """The head of a causal language model, adapters or not; of a family without an entry as if it scaled no logits."""
    whole: Any = model
    config, module = whole.config, whole.get_output_embeddings()
    family = families().get(config.model_type)
    scale = family.number(family.logit_scale, config) / family.number(family.logit_divisor, config) if family else 1.0
    return Head(module, scale, getattr(config, "final_logit_softcapping", None))
