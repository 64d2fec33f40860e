"""Against values worked out by hand (binomial coefficients and z = 1.959964)."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunetune.common.stats import (
    Paired,
    kept_interval,
    kept_interval_apart,
    kept_share,
    mcnemar,
    mean_stderr,
    pair,
    paired_ratio,
    stderr,
    wilson,
)


def test_stderr_is_the_sample_one() -> None:
    assert stderr(80, 100) == pytest.approx(math.sqrt(0.8 * 0.2 / 99))
    assert stderr(1, 1) == stderr(0, 0) == 0.0


def test_stderr_equals_that_of_the_verdicts_themselves() -> None:
    verdicts = [1.0] * 7 + [0.0] * 5
    mean = sum(verdicts) / 12
    sample = math.sqrt(sum((v - mean) ** 2 for v in verdicts) / 11 / 12)
    assert stderr(7, 12) == pytest.approx(sample)


def test_wilson_by_hand() -> None:
    assert wilson(0, 10) == pytest.approx((0.0, 3.841459 / 13.841459), abs=1e-6)
    assert wilson(10, 10) == pytest.approx((10 / 13.841459, 1.0), abs=1e-6)
    assert wilson(5, 10) == pytest.approx((0.236593, 0.763407), abs=1e-6)
    assert wilson(0, 0) == (0.0, 1.0)


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share_and_stays_inside(case: tuple[int, int]) -> None:
    low, high = wilson(*case)
    assert 0 <= low <= case[0] / case[1] + 1e-12
    assert case[0] / case[1] - 1e-12 <= high <= 1
    assert low < high


def test_mcnemar_by_hand() -> None:
    # 13 disagreements: 2 (C(13,0) + C(13,1) + C(13,2) + C(13,3)) / 2^13 = 2 (1 + 13 + 78 + 286) / 8192
    assert mcnemar(10, 3) == pytest.approx(756 / 8192)
    assert mcnemar(3, 10) == pytest.approx(756 / 8192)
    assert mcnemar(10, 3, mid_p=True) == pytest.approx((756 - 286) / 8192)
    assert mcnemar(6, 0) == pytest.approx(2 / 64)
    assert mcnemar(5, 5) == 1.0
    assert mcnemar(5, 5, mid_p=True) == pytest.approx(1.0)
    assert mcnemar(0, 0) == mcnemar(0, 0, mid_p=True) == 1.0


def test_mcnemar_of_many_disagreements_stays_exact() -> None:
    assert mcnemar(3000, 3000) == 1.0
    assert 0 < mcnemar(2800, 3200) < 1e-6


def test_paired_difference_by_hand() -> None:
    p = Paired(both=70, lost=10, gained=3, neither=17)
    assert p.n == 100
    assert p.difference == pytest.approx(-0.07)
    # b = 10.5, c = 3.5, N = 102: -7/102 -+ 1.959964 sqrt(14 - 49/102) / 102
    assert p.interval() == pytest.approx((-0.1392806, 0.0020256), abs=1e-6)
    assert p.mcnemar() == mcnemar(10, 3)
    assert p.mcnemar(mid_p=True) == mcnemar(10, 3, mid_p=True)


def test_an_empty_pairing_says_nothing() -> None:
    nothing = Paired(0, 0, 0, 0)
    assert (nothing.difference, nothing.mcnemar()) == (0.0, 1.0)
    assert nothing.interval() == pytest.approx((-1.0, 1.0), abs=0.05)


def test_pair_counts_each_cell() -> None:
    assert pair([(True, True), (True, False), (True, False), (False, True), (False, False)]) == Paired(1, 2, 1, 1)


def test_kept_share_by_hand() -> None:
    verdicts = [(True, True)] * 70 + [(True, False)] * 10 + [(False, True)] * 3 + [(False, False)] * 17
    # cells 70, 10.5, 3.5, 17 of 101: p1 = 80.5/101, p2 = 73.5/101; residual y - 0.9 x: 0.1, -0.9, 1, 0
    kept, lower = kept_share(verdicts, 0.9, fresh=400)
    assert kept == pytest.approx(73.5 / 80.5)
    mean = (70 * 0.1 - 10.5 * 0.9 + 3.5) / 101
    variance = (70 * 0.01 + 10.5 * 0.81 + 3.5) / 101 - mean**2
    margin = 1.959964 * math.sqrt(variance) * (1 / math.sqrt(101) + 1 / 20)
    assert lower == pytest.approx((73.5 - 101 * margin) / 80.5, abs=1e-6)


def test_kept_share_of_equal_models_needs_enough_questions() -> None:
    same = [(True, True)] * 90 + [(False, False)] * 10
    assert kept_share(same, 0.98, fresh=2000)[1] < 0.98  # a hundred questions cannot promise it
    assert kept_share(same * 40, 0.98, fresh=2000)[1] > 0.98


def test_paired_ratio_by_hand() -> None:
    # 8 pairs: 1 - 2/256 = 99.2 % lies between the least and the largest; three looks ask for 98.3 %
    old, new = [2.0, 4.0, 3.0, 2.2, 1.8, 2.0, 2.0, 2.0], [1.0] * 8
    found = paired_ratio(old, new)
    assert (found.value, found.low, found.high, found.n) == pytest.approx((2.0, 1.8, 4.0, 8))
    assert paired_ratio(old[:6], new[:6]).low is None, "no interval of so many per cent comes of six"
    once = paired_ratio(old[:6], new[:6], looks=1)  # 1 - 2/64 = 96.9 %
    assert (once.low, once.high) == pytest.approx((1.8, 4.0))
    twelve = paired_ratio(
        [1.0, *[2.0] * 10, 9.0], [1.0] * 12
    )  # 1 - 2 (1 + 12)/4096 = 99.4 %: one at each end is left out
    assert (twelve.low, twelve.high) == pytest.approx((2.0, 2.0))
    mirrored = paired_ratio(new, old)
    assert (mirrored.low, mirrored.high) == pytest.approx((1 / 4, 1 / 1.8))
    with pytest.raises(ValueError, match="no pairs"):
        paired_ratio([], [])


def test_standard_error_of_a_mean() -> None:
    assert mean_stderr([1.0] * 7 + [0.0] * 5) == pytest.approx(stderr(7, 12)), "of shares it is the same formula"
    assert mean_stderr([3.0]) == mean_stderr([]) == 0.0


def test_the_share_kept_and_its_ends() -> None:
    same = kept_interval(Paired(both=90, lost=0, gained=0, neither=10))
    assert same[0] == pytest.approx(1 / same[1]) and 0.97 < same[0] < 1, "nothing differs: only the halves speak"
    low, high = kept_interval(Paired(both=80, lost=15, gained=5, neither=100))
    assert low < 85 / 95 < high
    apart = kept_interval_apart((95, 200), (85, 200))
    assert apart[0] < low and high < apart[1], "two models alone know less than the same questions do"
    assert kept_interval(Paired(both=0, lost=1, gained=0, neither=15)) == (0.0, None), "an original that may be at zero"
    assert kept_interval_apart((0, 20), (0, 20))[1] is None
    gone = kept_interval_apart((1000, 1000), (0, 1000))
    assert gone[0] == 0.0 and gone[1] < 0.01


@pytest.mark.parametrize("accuracy", [0.3, 0.9])
def test_the_ends_of_the_share_kept_hold_it(accuracy: float) -> None:
    """Paired answers drawn at random: 95 % of the intervals hold the true share (400: 91 % is four errors below)."""
    lot, share, held = random.Random(1), 0.8, 0
    for _ in range(400):
        drawn = [
            (a, (a and lot.random() < share) or lot.random() < 0.02)
            for a in (lot.random() < accuracy for _ in range(150))
        ]
        true = share + 0.02 * (1 - share) + 0.02 * (1 - accuracy) / accuracy
        low, high = kept_interval(pair(drawn))
        held += low <= true <= (high or math.inf)
    assert held >= 0.91 * 400, held
