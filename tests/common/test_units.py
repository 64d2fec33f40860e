from __future__ import annotations

import pytest

from prunetune.common import units as human


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (human.count, 134_515_008, "135 M"),
        (human.count, 5_010_000_000, "5.01 B"),
        (human.count, 81_920, "81.9 k"),
        (human.count, 950, "950"),
        (human.count, 8_192, "8,192"),
        (human.flops, 6.1e12, "6.10 T"),
        (human.flops, 9.9e9, "9.90 G"),
        (human.size, 269_030_016, "269 MB"),
        (human.size, 512, "512 B"),
        (human.duration, 0.25, "0.2 s"),
        (human.duration, 59.4, "59 s"),
        (human.duration, 190, "3 min 10 s"),
        (human.duration, 7500, "2 h 05 min"),
        (human.percent, 0.5664, "56.6 %"),
        (human.times, 1.336, "1.34×"),
        (human.p_value, 0.0004, "p < 0.001"),
        (human.p_value, 0.0923, "p = 0.092"),
        (human.points, -0.0541, "−5.4"),
        (human.points, 0.017, "+1.7"),
        (human.points, -0.0001, "0.0"),
    ],
)
def test_numbers_as_people_read_them(function, value, text) -> None:
    assert function(value) == text


@pytest.mark.parametrize(
    "function", [human.count, human.flops, human.size, human.duration, human.percent, human.accuracy, human.times]
)
def test_what_was_not_recorded_is_a_dash(function) -> None:
    assert function(None) == human.DASH


def test_accuracy_with_and_without_error() -> None:
    assert human.accuracy(0.706, 0.0125) == "70.6 % ± 1.2"
    assert human.accuracy(0.706) == "70.6 %"


def test_ratio_of_what_is_missing_or_zero_is_none() -> None:
    assert human.ratio(3, 4) == 0.75
    assert human.ratio(None, 4) is None
    assert human.ratio(3, 0) is None
    assert human.ratio(3, None) is None


@pytest.mark.parametrize(
    ("metric", "share"),
    [
        ("accuracy", True), ("exact_match,strict-match", True), ("pass_at_1,none", True), ("pass@1,create_test", True),
        ("prompt_level_strict_acc,none", True), ("acc_norm,none", True), ("f1,none", True), ("math_verify,none", True),
        ("perplexity", False), ("word_perplexity,none", False), ("bits_per_byte,none", False), ("bleu,acc", False),
    ],
)  # fmt: skip
def test_shares_are_known_by_their_names(metric: str, share: bool) -> None:
    assert human.is_share(metric) is share


def test_a_perplexity_is_no_percentage() -> None:
    assert human.measured(1234.0, 12.0, "perplexity") == "1,234.0 ± 12.0"
    assert human.measured(12.345, 0.2, "word_perplexity,none") == "12.35 ± 0.20"
    assert human.measured(12.345, metric="perplexity") == "12.35"
    assert human.measured(0.706, 0.0125, "exact_match,strict-match") == "70.6 % ± 1.2"
    assert human.measured(None, metric="perplexity") == human.DASH
    assert human.metric("exact_match,strict-match") == "exact match"


def test_where_all_or_none_are_right_there_is_an_interval_and_no_error_of_zero() -> None:
    assert human.measured(0.0, 0.0, n=20) == "0.0 % (0.0 to 16.1)"
    assert human.measured(1.0, 0.0, n=20) == "100.0 % (83.9 to 100.0)"
    assert human.measured(1.0, 0.0, n=1) == "100.0 % (20.7 to 100.0)"
    assert human.measured(0.0, 0.0) == "0.0 %", "of how many is not known"
    assert human.measured(0.5, 0.1, n=20) == "50.0 % ± 10.0"
    assert human.measured(1.0, 0.02, "perplexity", n=400) == "1.00 ± 0.02"
