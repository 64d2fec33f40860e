"""The term of distillation (Hinton et al. 2015): forward KL to a teacher, mixed with the next-token loss, in chunks.

With student logits z, teacher logits u, temperature T and the KL's share a, a token's loss is

    a * T^2 * sum_v p_v (log p_v - log q_v) + (1 - a) * CE(z, label),    p = softmax(u / T), q = softmax(z / T)

and its gradient with respect to z is a * T * (q - p) + (1 - a) * (softmax(z) - onehot). A teacher of which only the k
largest log-probabilities are kept enters as k + 1 classes: those, and all the rest together.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prunetune.models.head_loss import Term, capped, cross_entropy


@dataclass(frozen=True)
class Whole:
    """A teacher at hand: its hidden states at the tokens that count, and its head."""

    hidden: Float[Tensor, "tokens teacher_width"]
    weight: Float[Tensor, "vocabulary teacher_width"]
    softcap: float | None
    compute: torch.dtype

    def log_probs(self, start: int, count: int, temperature: float) -> Float[Tensor, "chunk vocabulary"]:
        """Log-probabilities of a chunk of tokens at a temperature."""
        logits = capped(
            self.hidden[start : start + count].to(self.compute) @ self.weight.to(self.compute).T, self.softcap
        )
        return torch.log_softmax(logits / temperature, -1)


@dataclass(frozen=True)
class TopK:
    """A teacher of which only the k most likely tokens are kept, at the temperature of the loss."""

    indices: Int[Tensor, "tokens k"]
    log_probs: Float[Tensor, "tokens k"]


def distillation(labels: Int[Tensor, " tokens"], teacher: Whole | TopK, *, share: float, temperature: float) -> Term:
    """The mixed term, for `loss.chunked`.

    Args:
        labels: One a token, none ignored.
        teacher: Its distributions at the same tokens.
        share: Share a of the KL.
        temperature: T.
    """
    next_token = cross_entropy(labels)

    def term(logits: Tensor, start: int) -> tuple[Tensor, Tensor]:
        log_q = torch.log_softmax(logits / temperature, -1)
        if isinstance(teacher, Whole):
            kl, grad = _full(log_q, teacher.log_probs(start, len(logits), temperature))
        else:
            at = slice(start, start + len(logits))
            kl, grad = _top(log_q, teacher.indices[at].long(), teacher.log_probs[at].float())
        loss = share * temperature**2 * kl
        grad.mul_(share * temperature)
        if share < 1:
            plain, plain_grad = next_token(logits, start)
            loss = loss + (1 - share) * plain
            grad.add_(plain_grad, alpha=1 - share)
        return loss, grad

    return term


def _full(
    log_q: Float[Tensor, "chunk vocabulary"], log_p: Float[Tensor, "chunk vocabulary"]
) -> tuple[Tensor, Float[Tensor, "chunk vocabulary"]]:
    """KL(p || q) summed over the tokens, and its gradient with respect to q's logits: q - p."""
    p = log_p.exp()
    kl = (p * (log_p - log_q)).sum()
    return kl, log_q.exp_().sub_(p)


def _top(
    log_q: Float[Tensor, "chunk vocabulary"], indices: Int[Tensor, "chunk k"], log_p: Float[Tensor, "chunk k"]
) -> tuple[Tensor, Float[Tensor, "chunk vocabulary"]]:
    """The same over k + 1 classes. With rest masses P, Q the gradient is q_v - p_v on the k, else q_v (1 - P / Q)."""
    tiny = 1e-8
    p, q = log_p.exp(), log_q.exp()
    q_top = q.gather(1, indices)
    p_rest = (1 - p.sum(-1, keepdim=True)).clamp_min(0)
    q_rest = (1 - q_top.sum(-1, keepdim=True)).clamp_min(tiny)
    kl = (p * (log_p - log_q.gather(1, indices))).sum()
    kl = kl + torch.where(p_rest > tiny, p_rest * (p_rest.clamp_min(tiny) / q_rest).log(), 0.0).sum()
    grad = q * (1 - p_rest / q_rest)
    return kl, grad.scatter_(1, indices, q_top - p)


def top_k(teacher: Whole, k: int, temperature: float, chunk: int) -> TopK:
    """Keep the k most likely tokens of each position (log-probabilities in fp32)."""
    values, indices = [], []
    for start in range(0, len(teacher.hidden), chunk):
        best = teacher.log_probs(start, chunk, temperature).topk(k, -1)
        values.append(best.values)
        indices.append(best.indices.int())
    return TopK(torch.cat(indices), torch.cat(values))
