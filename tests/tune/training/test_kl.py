"""The distillation term against a direct computation, for whole teachers and for their k most likely tokens."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from prunetune.models.head_loss import chunked, next_token_loss, on_logits
from prunetune.tune.training.kl import Whole, distillation, top_k


def _case(tokens: int = 23, vocabulary: int = 37) -> tuple[torch.Tensor, ...]:
    hidden = torch.randn(tokens, 8, requires_grad=True)
    weight = torch.randn(vocabulary, 8, requires_grad=True)
    return hidden, weight, torch.randint(0, vocabulary, (tokens,)), torch.randn(tokens, 12), torch.randn(vocabulary, 12)


def _cap(logits: torch.Tensor, softcap: float | None) -> torch.Tensor:
    return softcap * torch.tanh(logits / softcap) if softcap else logits


@pytest.mark.parametrize("softcap", [None, 2.5])
@pytest.mark.parametrize(("share", "temperature"), [(1.0, 1.0), (0.7, 2.0), (0.0, 1.0)])
def test_equals_a_direct_computation(share: float, temperature: float, softcap: float | None) -> None:
    hidden, weight, labels, other, head = _case()
    z, u = _cap(hidden @ weight.T, softcap), _cap(other @ head.T, softcap)
    kl = functional.kl_div(
        torch.log_softmax(z / temperature, -1), torch.log_softmax(u / temperature, -1), reduction="sum", log_target=True
    )
    want = share * temperature**2 * kl + (1 - share) * functional.cross_entropy(z, labels, reduction="sum")
    wanted = torch.autograd.grad(want, (hidden, weight))
    teacher = Whole(other, head, softcap, torch.float32)
    term = distillation(labels, teacher, share=share, temperature=temperature)
    got = chunked(hidden, weight, term, softcap=softcap, chunk=5)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    for g, w in zip(torch.autograd.grad(got, (hidden, weight)), wanted, strict=True):
        assert (g - w).norm() <= 1e-5 * w.norm()


def test_all_classes_kept_is_the_whole_teacher() -> None:
    hidden, weight, labels, other, head = _case()
    whole = Whole(other, head, None, torch.float32)
    kept = top_k(whole, 37, 2.0, chunk=4)
    assert kept.indices.shape == (23, 37)
    a, b = (
        chunked(hidden, weight, distillation(labels, teacher, share=0.8, temperature=2.0), chunk=6)
        for teacher in (whole, kept)
    )
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    for g, w in zip(torch.autograd.grad(a, (hidden, weight)), torch.autograd.grad(b, (hidden, weight)), strict=True):
        torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-5)


def test_top_k_with_a_rest_class_against_autograd() -> None:
    hidden, weight, labels, other, head = _case()
    kept = top_k(Whole(other, head, None, torch.float32), 5, 1.0, chunk=100)
    q = torch.softmax(hidden @ weight.T, -1)
    p = kept.log_probs.exp()
    q_top, p_rest = q.gather(1, kept.indices.long()), 1 - p.sum(-1)
    want = (p * (p / q_top).log()).sum() + (p_rest * (p_rest / (1 - q_top.sum(-1))).log()).sum()
    wanted = torch.autograd.grad(want, (hidden, weight))
    got = chunked(hidden, weight, distillation(labels, kept, share=1.0, temperature=1.0), chunk=7)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    for g, w in zip(torch.autograd.grad(got, (hidden, weight)), wanted, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-3, atol=1e-4)


def test_a_student_equal_to_its_teacher_has_no_gradient() -> None:
    hidden, weight, labels, _, _ = _case()
    teacher = Whole(hidden.detach(), weight.detach(), None, torch.float32)
    loss = chunked(hidden, weight, distillation(labels, teacher, share=1.0, temperature=3.0))
    assert loss.item() == pytest.approx(0, abs=1e-4)
    assert torch.autograd.grad(loss, weight)[0].abs().max() < 1e-5


def test_on_given_logits() -> None:
    hidden, weight, labels, other, head = _case()
    term = distillation(labels, Whole(other, head, None, torch.float32), share=0.5, temperature=1.5)
    a, b = chunked(hidden, weight, term), on_logits(hidden @ weight.T, term, chunk=4)
    torch.testing.assert_close(a, b)
    for g, w in zip(torch.autograd.grad(a, (hidden, weight)), torch.autograd.grad(b, (hidden, weight)), strict=True):
        torch.testing.assert_close(g, w)
    plain = next_token_loss(hidden, weight, labels)
    term = distillation(labels, Whole(other, head, None, torch.float32), share=0.0, temperature=1.0)
    torch.testing.assert_close(chunked(hidden, weight, term), plain)
