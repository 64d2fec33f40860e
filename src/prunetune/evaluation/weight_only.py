"""Weight-only quantisation by rounding to the nearest step, in plain torch: a model's accuracy at 8 and 4 bits.

    stored = round_weights(model, 4)      # in place; bytes as they would be stored

Symmetric, a group of 32 weights of a row with one fp16 scale, the scheme of GGUF's Q8_0 and Q4_0 (github.com/ggml-org/
ggml, ggml-quants.c). The rounded values go back into the model's own dtype, so accuracy is what a kernel of that format
gives, but neither speed nor memory is. Linear layers alone are rounded: embedding and head stay, as in torchao,
bitsandbytes and llm-compressor. (torchao 0.18 has no int4 for the CPU: one arithmetic serves both widths everywhere.)
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

GROUP = 32
"""Weights with one scale."""


def rounded(weight: Float[Tensor, "out inputs"], bits: int) -> Float[Tensor, "out inputs"]:
    """The matrix as it is read back after rounding, in its own dtype.

    Args:
        weight: Of a linear layer.
        bits: Of a weight, 2 to 8. The largest of a group by size is -2^(bits-1) steps, the others the nearest step.
    """
    rows, width = weight.shape
    low = -(2 ** (bits - 1))
    padded = torch.nn.functional.pad(weight.detach().float(), (0, -width % GROUP)).view(rows, -1, GROUP)
    extreme = padded.gather(-1, padded.abs().argmax(-1, keepdim=True))
    scale = (extreme / low).half().float()
    steps = torch.where(scale == 0, 0.0, padded / scale).round().clamp(low, -low - 1)
    back: Tensor = (steps * scale).view(rows, -1)[:, :width].to(weight.dtype)
    return back


def stored_bytes(rows: int, width: int, bits: int) -> int:
    """Bytes of a rounded matrix: its weights and an fp16 scale a group."""
    groups = -(-width // GROUP)
    return (rows * groups * GROUP * bits) // 8 + 2 * rows * groups


@torch.no_grad()
def round_weights(model: PreTrainedModel, bits: int) -> int:
    """Round every linear layer but the head, in place; the bytes of all weights then, 16 bits for what stays.

    Args:
        model: A causal language model.
        bits: Of a weight.
    """
    head = model.get_output_embeddings()
    rest, total = sum(p.numel() for p in model.parameters()), 0
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and module is not head:
            module.weight.copy_(rounded(module.weight, bits))
            rest -= module.weight.numel()
            total += stored_bytes(module.out_features, module.in_features, bits)
    return total + 2 * rest
