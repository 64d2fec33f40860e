"""Next-token loss over a large vocabulary in bounded memory: logits live only for one chunk of tokens at a time.

Plain cross entropy keeps [tokens, vocabulary] logits several times over (in bf16 and in fp32, forward and backward).
Here the forward pass takes a chunk of tokens, makes its logits, its loss and at once its gradients with respect to the
hidden states and the head; the backward pass only scales what is there. Per token:

    z = h W^T;  z' = cap * tanh(z / cap) where the family caps its logits (Gemma2);  loss = logsumexp(z') - z'[label]
    dloss/dz = (softmax(z') - onehot(label)) * (1 - (z'/cap)^2)

Only positions whose label counts enter. Sums, softmax and the head's gradient are fp32 whatever the compute type is.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

IGNORED = -100
"""Label of a position that does not count (PyTorch's and Hugging Face's convention)."""

CHUNK_BYTES = 128 * 1024 * 1024
"""Size of one chunk of fp32 logits on CPU; measured in studies/performance/loss_head.py."""


def chunk_tokens(vocabulary: int, device: torch.device | str = "cpu") -> int:
    """Tokens whose fp32 logits are held at a time."""
    budget = CHUNK_BYTES if torch.device(device).type == "cpu" else 4 * CHUNK_BYTES
    return max(16, budget // (4 * vocabulary))


def counted(
    hidden: Float[Tensor, "batch length width"], labels: Int[Tensor, "batch length"]
) -> tuple[Float[Tensor, "tokens width"], Int[Tensor, " tokens"]]:
    """The hidden states that predict a label that counts, and those labels: position i predicts label i + 1."""
    targets = labels[:, 1:]
    at = targets != IGNORED
    return hidden[:, :-1][at], targets[at]


def next_token_loss(
    hidden: Float[Tensor, "tokens width"],
    weight: Float[Tensor, "vocabulary width"],
    labels: Int[Tensor, " tokens"],
    *,
    softcap: float | None = None,
    compute: torch.dtype = torch.float32,
    chunk: int | None = None,
) -> Float[Tensor, ""]:
    """Sum (not mean) of the cross entropy over the tokens, in nats.

    Args:
        hidden: What the head reads (after the final norm).
        weight: The head, without a bias; tied or not.
        labels: One a token, none ignored.
        softcap: Gemma2's `final_logit_softcapping`.
        compute: Type of the matrix products.
        chunk: Tokens at a time; None: `chunk_tokens`.

    Returns:
        The sum; differentiable once with respect to hidden and weight.
    """
    total: Tensor = _NextTokenLoss.apply(
        hidden, weight, labels, softcap, compute, chunk or chunk_tokens(len(weight), hidden.device)
    )
    return total


class _NextTokenLoss(torch.autograd.Function):
    """Loss and both gradients in one pass over chunks."""

    @staticmethod
    def forward(  # noqa: PLR0917  # a Function takes no keywords
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        softcap: float | None,
        compute: torch.dtype,
        chunk: int,
    ) -> Tensor:
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        head = weight.detach().to(compute)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if need_weight else None
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(labels), chunk):
                h, target = hidden[start : start + chunk].detach().to(compute), labels[start : start + chunk, None]
                logits = capped(h @ head.T, softcap)
                peak = logits.amax(-1, keepdim=True)
                at_target = logits.gather(1, target)
                slope = 1 - (logits / softcap) ** 2 if softcap else None
                p = logits.sub_(peak).exp_()
                mass = p.sum(-1, keepdim=True)
                total += (peak + mass.log() - at_target).sum()
                if not (need_hidden or need_weight):
                    continue
                grad = p.div_(mass)
                grad.scatter_add_(1, target, grad.new_full(target.shape, -1.0))
                if slope is not None:
                    grad.mul_(slope)
                grad = grad.to(compute)
                if grad_hidden is not None:
                    grad_hidden[start : start + chunk] = grad @ head
                if grad_weight is not None:
                    add_product(grad_weight, grad.T, h)
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.types = hidden.dtype, weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        grad_hidden, grad_weight = ctx.saved_tensors
        return (
            None if grad_hidden is None else (grad_hidden * upstream).to(ctx.types[0]),
            None if grad_weight is None else grad_weight.mul_(upstream).to(ctx.types[1]),
            None, None, None, None,
        )  # fmt: skip


def capped(logits: Tensor, softcap: float | None) -> Float[Tensor, "tokens vocabulary"]:
    """Logits in fp32, softly capped where the family does so (Gemma2: cap * tanh(z / cap))."""
    logits = logits.float()
    return logits.div_(softcap).tanh_().mul_(softcap) if softcap else logits


def add_product(total: Float[Tensor, "m n"], a: Float[Tensor, "m k"], b: Float[Tensor, "k n"]) -> None:
    """Add a @ b to `total`, which is fp32."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b
