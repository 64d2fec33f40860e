"""Every criterion against a direct computation on small tensors."""

from __future__ import annotations

import pytest
import torch

from prunetune.errors import UnknownName
from prunetune.pruning.criteria import CRITERIA, LAYER_CRITERIA, criterion, layer_criterion
from prunetune.pruning.statistics import (
    BLOCK,
    LayerChange,
    Neurons,
    Quantile,
    Vote,
    statistic,
    vote_scores,
)


@pytest.mark.parametrize(
    ("name", "direct"),
    [
        ("mean", lambda x: x.abs().mean(0)),
        ("rms", lambda x: x.square().mean(0).sqrt()),
        ("max", lambda x: x.abs().amax(0)),
    ],
)
def test_statistics_over_batches_equal_one_computation_over_all_tokens(name, direct):
    x = torch.randn(50, 7) - 0.5
    stat = statistic(name)
    for part in x.split([20, 25, 5]):
        stat.update(part)
    torch.testing.assert_close(stat.finish(), direct(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("q", [0.5, 0.9, 0.99, 0.999])
def test_quantile_is_never_below_the_true_one_and_at_most_a_bin_above(q):
    x = torch.randn(4000, 5) * torch.tensor([1e-3, 0.1, 1.0, 10.0, 1e3])
    stat = Quantile(q)
    for part in x.split(1000):
        stat.update(part)
    true = x.abs().kthvalue(-(-int(q * 4000) // 1), dim=0).values
    found = stat.finish()
    assert (found >= true * 0.999).all()
    assert (found <= true * 2 ** (1 / Quantile.PER_OCTAVE) * 1.001).all()


def test_quantile_memory_does_not_grow_with_tokens():
    stat = Quantile(0.9)
    stat.update(torch.randn(10, 3))
    before = stat.counts.numel()
    stat.update(torch.randn(1000, 3))
    assert stat.counts.numel() == before


@pytest.mark.parametrize("name", ["q0", "q100.5", "median", "q", "qx"])
def test_unknown_reduction_names_the_valid_ones(name):
    if name == "q0":
        assert isinstance(statistic(name), Quantile)
        return
    with pytest.raises(UnknownName, match="mean"):
        statistic(name)


def test_contribution_and_wanda_multiply_by_the_column_norm():
    weights = Neurons(torch.randn(6, 4), torch.randn(6, 4), torch.randn(4, 6))
    stat = torch.rand(6)
    expected = stat * torch.tensor([weights.down[:, j].norm() for j in range(6)])
    for name in ("contribution", "wanda"):
        torch.testing.assert_close(CRITERIA[name].finish(stat, weights, 0, 0), expected)
    assert CRITERIA["wanda"].reduce == "rms"
    assert CRITERIA["activation"].reduce == "max"
    torch.testing.assert_close(CRITERIA["activation"].finish(stat, weights, 0, 0), stat)


def test_magnitude_is_the_norm_of_the_three_vectors():
    w = Neurons(torch.randn(6, 4), torch.randn(6, 4), torch.randn(4, 6))
    expected = torch.stack([torch.cat([w.gate[j], w.up[j], w.down[:, j]]).norm() for j in range(6)])
    torch.testing.assert_close(CRITERIA["magnitude"].finish(None, w, 0, 0), expected)


def test_random_differs_by_layer_and_seed_but_repeats():
    w = Neurons(torch.zeros(64, 2), torch.zeros(64, 2), torch.zeros(2, 64))
    draw = CRITERIA["random"].finish
    assert torch.equal(draw(None, w, 1, 0), draw(None, w, 1, 0))
    assert not torch.equal(draw(None, w, 1, 0), draw(None, w, 2, 0))
    assert not torch.equal(draw(None, w, 1, 0), draw(None, w, 1, 1))


def test_ptl_vote_is_the_published_rule():
    """Per sample the k smallest signed values, intersected over samples; gate and up united; then the lowest indices."""
    samples, width, k = 5, 40, 20
    gate, up = torch.randn(samples, width), torch.randn(samples, width)

    def intersect(x):
        return set.intersection(*({int(j) for j in row.argsort()[:k]} for row in x))

    candidates = sorted(intersect(gate) | intersect(up))
    assert candidates  # else this test shows nothing
    votes = []
    for x in (gate, up):
        vote = Vote()
        vote.update(x[:2])
        vote.update(x[2:])
        votes.append(vote.finish())
    order = vote_scores(*votes, k / width).argsort(stable=True).tolist()
    assert order[: len(candidates)] == candidates


def test_layer_criteria_against_direct_formulas():
    h, out = torch.randn(9, 6), torch.randn(9, 6)
    direct = {
        "l2": torch.stack([(o - i).pow(2).sum().sqrt() for i, o in zip(h, out, strict=True)]),
        "relative": torch.stack([(o - i).norm() / i.norm() for i, o in zip(h, out, strict=True)]),
        "cosine": torch.stack([1 - (i @ o) / (i.norm() * o.norm()) for i, o in zip(h, out, strict=True)]),
    }
    assert set(direct) == set(LAYER_CRITERIA)
    for name, values in direct.items():
        change = LayerChange(layer_criterion(name))
        change.update(h[:4], out[:4])
        change.update(h[4:], out[4:])
        assert change.mean == pytest.approx(values.mean().item(), rel=1e-5)
        assert change.top == pytest.approx(values.max().item(), rel=1e-5)


def test_layer_change_counts_real_places_alone_over_several_blocks():
    h, out = torch.randn(2, BLOCK // 64 + 100, 64)
    real = torch.arange(0, len(h), 3)
    out[1] = 1e9  # a padded place: it must not be seen
    change, direct = LayerChange(layer_criterion("l2")), (out - h)[real].norm(dim=1)
    change.update(h.bfloat16(), out.bfloat16(), real)
    assert change.tokens == len(real)
    assert change.mean == pytest.approx(direct.mean().item(), rel=5e-3)
    assert change.top == pytest.approx(direct.max().item(), rel=2e-2)


def test_unknown_criteria_suggest_the_nearest():
    with pytest.raises(UnknownName, match="contribution"):
        criterion("contributions")
    with pytest.raises(UnknownName, match="cosine"):
        layer_criterion("cosin")
