"""Losses over a large vocabulary in bounded memory: logits live only for one chunk of tokens at a time.

Plain cross entropy keeps [tokens, vocabulary] logits several times over (in bf16 and in fp32, forward and backward).
Here the forward pass takes a chunk of tokens, makes its logits, its loss and at once its gradients with respect to the
hidden states and the head; the backward pass only scales what is there. Per token:

    z = h W^T;  z' = cap * tanh(z / cap) where the family caps its logits (Gemma2);  loss = logsumexp(z') - z'[label]
    dloss/dz = (softmax(z') - onehot(label)) * (1 - (z'/cap)^2)

Only positions whose label counts enter. Sums, softmax and the head's gradient are fp32 whatever the compute type is.
Training, distillation (tune/training/kl.py adds its term) and scores by gradients (pruning/scores.py) share it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

IGNORED = -100
"""Label of a position that does not count (PyTorch's and Hugging Face's convention)."""

CHUNK_BYTES = 128 * 1024 * 1024
"""Size of one chunk of fp32 logits on CPU; see studies/speed/loss_head.py."""

Term = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""(capped fp32 logits of a chunk, its first token) -> (sum of the loss, its gradient with respect to those logits)."""


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
    return chunked(hidden, weight, cross_entropy(labels), softcap=softcap, compute=compute, chunk=chunk)


def cross_entropy(labels: Int[Tensor, " tokens"]) -> Term:
    """The next-token term. Where a model is sure, p - 1 is all rounding: it is torch's own softmax, so as to agree."""

    def term(logits: Tensor, start: int) -> tuple[Tensor, Tensor]:
        target = labels[start : start + len(logits), None]
        grad = torch.log_softmax(logits, -1)
        loss = -grad.gather(1, target).sum()
        grad.exp_()
        grad.scatter_add_(1, target, grad.new_full(target.shape, -1.0))
        return loss, grad

    return term


def chunked(
    hidden: Float[Tensor, "tokens width"],
    weight: Float[Tensor, "vocabulary width"],
    term: Term,
    *,
    softcap: float | None = None,
    compute: torch.dtype = torch.float32,
    chunk: int | None = None,
) -> Float[Tensor, ""]:
    """Sum of a term of the logits over all tokens, chunk by chunk; arguments as in `next_token_loss`."""
    size = chunk or chunk_tokens(len(weight), hidden.device)
    total: Tensor = _Chunked.apply(hidden, weight, term, softcap, compute, size)  # type: ignore[no-untyped-call]  # torch's
    return total


class _Chunked(torch.autograd.Function):
    """A term and both its gradients in one pass over chunks."""

    @staticmethod
    def forward(  # a Function takes no keywords
        ctx: Any, hidden: Tensor, weight: Tensor, term: Term, softcap: float | None, compute: torch.dtype, chunk: int
    ) -> Tensor:
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        head = weight.detach().to(compute)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if need_weight else None
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(hidden), chunk):
                h = hidden[start : start + chunk].detach().to(compute)
                logits = capped(h @ head.T, softcap)
                slope = 1 - (logits / softcap) ** 2 if softcap else None
                loss, grad = term(logits, start)
                total += loss
                if not (need_hidden or need_weight):
                    continue
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


def on_logits(logits: Float[Tensor, "tokens vocabulary"], term: Term, chunk: int | None = None) -> Float[Tensor, ""]:
    """Sum of a term over logits that the model itself made (a sharded head, which cannot be read from outside)."""
    size = chunk or chunk_tokens(logits.shape[-1], logits.device)
    total: Tensor = _OnLogits.apply(logits, term, size)  # type: ignore[no-untyped-call]  # torch's
    return total


class _OnLogits(torch.autograd.Function):
    """A term and its gradient with respect to given logits."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, term: Term, chunk: int) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=logits.device)
        grads = torch.empty_like(logits)
        for start in range(0, len(logits), chunk):
            part = logits[start : start + chunk].detach()
            loss, grad = term(part.float() if part.dtype != torch.float32 else part.clone(), start)
            total += loss
            grads[start : start + chunk] = grad
        ctx.save_for_backward(grads)
        return total

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        return ctx.saved_tensors[0] * upstream, None, None


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
