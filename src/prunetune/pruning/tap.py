"""What a layer's `down_proj` sees and gives while one layer is run (layerwise.py): a, and the FFN's output."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from prunetune.models.finite import is_finite, layer_overflow
from prunetune.pruning.layerwise import LayerSource, OneLayer, forward


class Tap:
    """Input and output of a layer's `down_proj`, for the batch in hand."""

    def __init__(self, one: OneLayer, source: LayerSource, layer: int) -> None:
        self.one, self.source, self.layer = one, source, layer
        self.down: Any = one.block.get_submodule(source.family.down)
        self.seen: tuple[Tensor, Tensor] | None = None
        self.handle = self.down.register_forward_hook(self._hook)

    def __enter__(self) -> Tap:
        return self

    def __exit__(self, *_: object) -> None:
        self.handle.remove()

    def _hook(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        self.seen = (args[0], output)

    def run(
        self, hidden: Float[Tensor, "batch places hidden"], real: Tensor
    ) -> tuple[
        Float[Tensor, "tokens width"],
        Float[Tensor, "tokens hidden"],
        Float[Tensor, "tokens 1"],
        Float[Tensor, "batch places hidden"],
    ]:
        """(activations, FFN output, the tokens' weights) of the real tokens in fp32, and the layer's whole output.

        Where a norm follows the FFN, activations and output are weighted already.
        """
        out = forward(self.one, hidden, real)
        if not is_finite(out[real]):
            raise layer_overflow(self.one.block, self.layer, "its second moments", hidden.dtype)
        if self.seen is None:
            raise RuntimeError("down_proj did not run")
        a, y = (x[real].float() for x in self.seen)
        self.seen = None
        weight = torch.ones_like(y[:, :1])
        if self.source.family.post_ffn_norm:
            weight = torch.rsqrt(y.square().mean(-1, keepdim=True) + self.source.config.rms_norm_eps)
        return a * weight, y * weight, weight, out
