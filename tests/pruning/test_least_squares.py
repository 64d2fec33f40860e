"""The algebra of compensation against float64 least squares and against brute force."""

from __future__ import annotations

import itertools
import weakref
from typing import Any

import pytest
import torch

from prunetune.common.device import WIDE, sum_dtype
from prunetune.pruning import least_squares
from prunetune.pruning.least_squares import (
    BLOCK,
    Gram,
    Residue,
    ResidueSum,
    fold,
    greedy,
    leverage,
    solve,
)


def tokens(n: int, width: int, seed: int = 0) -> torch.Tensor:
    """Correlated activations, like those of an FFN."""
    g = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=torch.Generator().manual_seed(99)) / width**0.5
    return torch.randn(n, width, generator=g) @ mix + 0.3 * torch.randn(n, width, generator=g)


def residue(a: torch.Tensor, kept: list[int], missing: torch.Tensor, whole: torch.Tensor) -> Residue:
    sums = ResidueSum(len(kept), missing.shape[1])
    for part in torch.arange(len(a)).split(37):
        sums.update(a[part][:, kept], missing[part], whole[part])
    return sums.finish()


@pytest.mark.parametrize("width", [5, BLOCK, BLOCK + 3, 2 * BLOCK + 1])
def test_gram_equals_the_direct_product(width: int) -> None:
    x = torch.randn(50, width)
    gram = Gram(width)
    for part in x.split(20):
        gram.update(part)
    assert gram.tokens == 50
    torch.testing.assert_close(gram.finish(), (x.double().T @ x.double()) / 50, atol=1e-5, rtol=1e-5)


def test_wide_sums_are_kept_in_fp32() -> None:
    assert (sum_dtype(WIDE), sum_dtype(WIDE + 1)) == (torch.float64, torch.float32)
    gram = Gram(4)
    gram.total = gram.total.float()  # the path of wide layers
    x = torch.randn(9, 4)
    gram.update(x)
    torch.testing.assert_close(gram.finish(), x.T @ x / 9)


def test_bf16_tokens_are_multiplied_in_fp32() -> None:
    x = torch.randn(400, 6).bfloat16()
    gram = Gram(6)
    gram.update(x)
    torch.testing.assert_close(gram.finish(), x.double().T @ x.double() / 400, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("ridge", [0.0, 1e-3, 0.5])
def test_formula_equals_float64_least_squares(ridge: float) -> None:
    """min ||W a - W' a_k||^2 + ridge ||W' - W_k||^2, solved by lstsq on the stacked rows."""
    a, weight = tokens(300, 24), torch.randn(10, 24)
    kept = [j for j in range(24) if j % 3]
    gone = [j for j in range(24) if j % 3 == 0]
    missing = a[:, gone] @ weight[:, gone].T
    r = residue(a, kept, missing, a @ weight.T)
    change = solve(r.kept, r.cross, ridge)
    assert change is not None

    ad, wd = a.double(), weight.double()
    rows = torch.cat([ad[:, kept], (ridge * 300) ** 0.5 * torch.eye(len(kept), dtype=torch.float64)])
    goal = torch.cat([ad @ wd.T - ad[:, kept] @ wd[:, kept].T, torch.zeros(len(kept), 10, dtype=torch.float64)])
    expected = torch.linalg.lstsq(rows, goal).solution.T
    torch.testing.assert_close(change, expected, atol=1e-5, rtol=1e-5)
    # The formula of the issue: W_r C_rk (C_kk + ridge)^-1.
    c = ad.T @ ad / 300
    by_hand = wd[:, gone] @ c[gone][:, kept] @ torch.linalg.inv(c[kept][:, kept] + ridge * torch.eye(16))
    torch.testing.assert_close(change, by_hand, atol=1e-5, rtol=1e-5)


def test_error_equals_the_direct_one() -> None:
    a, weight = tokens(200, 12), torch.randn(7, 12)
    kept, gone = list(range(8)), list(range(8, 12))
    missing, whole = a[:, gone] @ weight[:, gone].T, a @ weight.T
    r = residue(a, kept, missing, whole)
    change = torch.randn(7, 8).double()
    direct = (missing - a[:, kept] @ change.float().T).square().sum() / whole.square().sum()
    assert r.error(change) == pytest.approx(float(direct), rel=1e-5)
    assert r.error(None) == pytest.approx(float(missing.square().sum() / whole.square().sum()), rel=1e-6)
    assert r.tokens == 200


def test_one_change_is_held_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the one in hand: each is as large as the matrix, and the ladder has ten ridges."""
    made: list[weakref.ref[torch.Tensor]] = []

    def watched(*given: Any) -> torch.Tensor | None:
        assert sum(one() is not None for one in made) <= 1
        change = solve(*given)
        assert change is not None
        made.append(weakref.ref(change))
        return change

    monkeypatch.setattr(least_squares, "solve", watched)
    a = torch.randn(400, 12, generator=torch.Generator().manual_seed(1))
    c = (a.T @ a / 400).double()
    r = Residue(c[:8, :8], torch.randn(5, 4, dtype=torch.float64) @ c[8:, :8], 10.0, 10.0, 400)
    assert (fold(r, r, [10.0**-i for i in range(10)], start=1.0).ridge or 1) < 1e-6  # all the way down
    assert len(made) > 5


def test_ridge_is_the_best_on_held_out_tokens() -> None:
    weight, kept, gone = torch.randn(5, 40), list(range(30)), list(range(30, 40))

    def of(n: int, seed: int) -> Residue:
        a = tokens(n, 40, seed)
        return residue(a, kept, a[:, gone] @ weight[:, gone].T, a @ weight.T)

    few, held = of(35, 1), of(4000, 2)
    found = fold(few, held, (1e-6, 1e-2, 1.0, 100.0))
    errors = {r: fold(few, held, (r,)).after for r in (1e-6, 1e-2, 1.0, 100.0)}
    assert found.after == min(errors.values()) < found.before
    assert found.ridge == min(errors, key=errors.__getitem__) > 1e-6  # 35 tokens for 30 neurons overfit without a ridge
    many = fold(of(4000, 3), held, (1e-6, 1e-2, 1.0, 100.0))
    assert many.after < found.after


def test_held_out_error_never_rises() -> None:
    """Calibration that tells nothing about the held-out tokens: better not to compensate."""
    a, noise = torch.randn(30, 20), torch.randn(30, 4)
    kept = list(range(20))
    fit = residue(a, kept, noise, noise)
    held = residue(torch.randn(500, 20), kept, torch.randn(500, 4), torch.randn(500, 4))
    found = fold(fit, held, (1e-6,))
    assert (found.change, found.ridge) == (None, None)
    assert found.after == found.before


def test_dead_neurons_and_singular_moments() -> None:
    dead = residue(torch.zeros(10, 4), [0, 1, 2], torch.randn(10, 2), torch.randn(10, 2))
    assert fold(dead, dead, (1e-3,)).change is None
    a = torch.randn(50, 1).expand(50, 3)  # rank one
    twin = residue(a, [0, 1], a[:, :1], a[:, :1])
    assert solve(-torch.eye(2), torch.ones(1, 2), 0.0) is None
    assert fold(twin, twin, (1e-6,)).after < 1e-6
    assert residue(a, [0], torch.zeros(50, 1), torch.zeros(50, 1)).error(None) == 0


def refit_error(second: torch.Tensor, weight: torch.Tensor, gone: tuple[int, ...], ridge: float) -> float:
    """min over the kept columns of tr(D (C + ridge) D^T), D being the change of W, -W_r on the removed."""
    c = second + ridge * second.diagonal().mean() * torch.eye(len(second))
    kept = [j for j in range(len(second)) if j not in gone]
    r = list(gone)
    change = weight[:, r] @ c[r][:, kept] @ torch.linalg.inv(c[kept][:, kept])
    d = torch.zeros_like(weight)
    d[:, kept], d[:, r] = change, -weight[:, r]
    return float(((d @ c) * d).sum())


def second_moments(width: int) -> tuple[torch.Tensor, torch.Tensor]:
    a = tokens(400, width).double()
    return a.T @ a / 400, torch.randn(6, width).double()


def test_leverage_is_the_error_of_one_neuron_after_refitting() -> None:
    second, weight = second_moments(12)
    expected = torch.tensor([refit_error(second, weight, (j,), 1e-3) for j in range(12)])
    torch.testing.assert_close(leverage(second, weight, 1e-3), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("block", [1, 3, 16])
def test_greedy_takes_the_cheapest_each_time_and_adds_up_the_joint_error(block: int) -> None:
    second, weight = second_moments(12)
    score = greedy(second, weight, count=8, block=block)
    order = score.argsort().tolist()
    gone: tuple[int, ...] = ()
    for j in order[:8]:
        costs = {i: refit_error(second, weight, (*gone, i), 1e-3) for i in range(12) if i not in gone}
        assert j == min(costs, key=costs.__getitem__)
        assert float(score[j]) == pytest.approx(costs[j], rel=1e-4)
        gone = (*gone, j)
    rest = [refit_error(second, weight, (*gone, j), 1e-3) for j in order[8:]]
    assert score[order[8:]].tolist() == pytest.approx(rest, rel=1e-4)
    assert rest == sorted(rest)


def test_greedy_keeps_one_of_twins_and_leverage_does_not() -> None:
    """Neuron 1 is a copy of neuron 0, both loud; neuron 2 is alone and of middling effect."""
    a = torch.randn(500, 4).double()
    a[:, 1] = a[:, 0] + 1e-4 * torch.randn(500)
    second, weight = a.T @ a / 500, torch.diag(torch.tensor([3.0, 3.0, 1.0, 2.0])).double()
    assert set(leverage(second, weight, 1e-6).argsort()[:2].tolist()) == {0, 1}
    first = greedy(second, weight, count=3, ridge=1e-6).argsort().tolist()
    assert first[0] in (0, 1)
    assert first[1] == 2
    best = min(itertools.combinations(range(4), 2), key=lambda pair: refit_error(second, weight, pair, 1e-6))
    assert set(first[:2]) == set(best)


def test_greedy_of_a_wide_layer_is_close_to_exact() -> None:
    second, weight = second_moments(150)
    exact, fast = greedy(second, weight, count=100, block=1), greedy(second, weight, count=100, block=8)
    gone = [tuple(s.argsort()[:75].tolist()) for s in (exact, fast)]
    errors = [refit_error(second, weight, g, 1e-3) for g in gone]
    assert errors[1] < 1.02 * errors[0]
    plain = tuple((second.diagonal() * weight.square().sum(0)).argsort()[:75].tolist())
    assert errors[1] < refit_error(second, weight, plain, 1e-3)
