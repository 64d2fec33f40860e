"""The bounded loss against plain cross entropy: every family, capped logits, partial labels, any chunk size."""

from __future__ import annotations

import pytest
import torch
from tests.tiny import tiny_model

from prunetune.models.families import FAMILIES
from prunetune.models.head import head_of
from prunetune.models.head_loss import IGNORED, chunk_tokens, counted, next_token_loss


def _grads(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_models_own_loss_and_gradients(family: str) -> None:
    model = tiny_model(family)
    ids = torch.randint(4, 100, (3, 20))
    labels = ids.clone()
    labels[0, :5], labels[1, 12:] = IGNORED, IGNORED
    want = model(input_ids=ids, labels=labels).loss
    want.backward()
    wanted = _grads(model)
    model.zero_grad()

    out = model(input_ids=ids, output_hidden_states=-1, logits_to_keep=1, use_cache=False)
    hidden, targets = counted(out.hidden_states[-1], labels)
    head = head_of(model)
    assert (head.softcap is not None) == (family in ("gemma2", "gemma4_text", "gemma4_unified_text"))
    assert (head.scale != 1) == (family in ("cohere", "cohere2", "granite"))
    loss = next_token_loss(head.reads(hidden), head.weight(), targets, softcap=head.softcap, chunk=7) / len(targets)
    loss.backward()
    torch.testing.assert_close(loss, want, rtol=1e-5, atol=0)
    got = _grads(model)
    assert got.keys() == wanted.keys()
    for name, grad in wanted.items():
        assert (got[name] - grad).norm() <= 1e-4 * grad.norm(), name


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("chunk", [1, 5, 64])
def test_chunks_change_nothing(softcap: float | None, chunk: int) -> None:
    hidden = torch.randn(17, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(31, 8, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 31, (17,))
    logits = hidden @ weight.T
    want = torch.nn.functional.cross_entropy(
        softcap * torch.tanh(logits / softcap) if softcap else logits, labels, reduction="sum"
    )
    want_h, want_w = torch.autograd.grad(3 * want, (hidden, weight))
    loss = next_token_loss(hidden.float(), weight.float(), labels, softcap=softcap, chunk=chunk)
    got_h, got_w = torch.autograd.grad(3 * loss, (hidden, weight))
    torch.testing.assert_close(loss.double(), want, rtol=1e-5, atol=0)
    torch.testing.assert_close(got_h, want_h, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got_w, want_w, rtol=1e-4, atol=1e-5)


def test_extreme_logits_stay_finite() -> None:
    hidden = (torch.eye(4) * 1e3).requires_grad_()
    weight = torch.eye(4) * 1e2
    loss = next_token_loss(hidden, weight, torch.tensor([0, 1, 2, 0]))
    loss.backward()
    assert loss.item() == pytest.approx(1e5, rel=1e-6)  # three are certain and right, one is certain and wrong
    assert torch.isfinite(hidden.grad).all()


def test_bf16_products_stay_near() -> None:
    hidden, weight = torch.randn(40, 16, requires_grad=True), torch.randn(50, 16, requires_grad=True)
    labels = torch.randint(0, 50, (40,))
    exact = next_token_loss(hidden, weight, labels)
    want = torch.autograd.grad(exact, (hidden, weight))
    rough = next_token_loss(hidden, weight, labels, compute=torch.bfloat16)
    got = torch.autograd.grad(rough, (hidden, weight))
    assert rough.dtype == torch.float32 and rough.item() == pytest.approx(exact.item(), rel=5e-3)
    for g, w in zip(got, want, strict=True):
        assert (g - w).norm() < 0.02 * w.norm()


def test_frozen_head_and_no_tokens() -> None:
    hidden, weight = torch.randn(0, 8, requires_grad=True), torch.randn(9, 8)
    loss = next_token_loss(hidden, weight, torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0 and hidden.grad.shape == (0, 8) and weight.grad is None


def test_chunk_bounds_the_memory() -> None:
    assert chunk_tokens(49152) * 49152 * 4 <= 128 * 1024 * 1024
    assert chunk_tokens(10**9) == 16
