"""Intervals and verdicts against tables of Student's t, binomial quantiles and arithmetic by hand."""

from __future__ import annotations

import math
import random
from statistics import fmean

import paired
import pytest
from cells import GridError
from paired import Interval, average, difference, interval, pooled_sd, recovered_share, t_interval, t_quantile
from results import Results
from tables import decide, points, readme
from tests.studies.study import invented_study


@pytest.mark.parametrize(
    ("df", "quantile"),
    [(1, 12.7062), (2, 4.30265), (3, 3.18245), (4, 2.77645), (5, 2.57058), (6, 2.44691), (18, 2.10092), (120, 1.97993)],
)
def test_quantiles_of_t_are_those_of_the_tables(df, quantile):
    assert t_quantile(0.975, df) == pytest.approx(quantile, abs=1e-5)


def test_an_interval_over_three_seeds_by_hand():
    low, high = t_interval([0.1, 0.2, 0.3])  # mean 0.2, sd 0.1: half = 4.302653 * 0.1 / sqrt(3) = 0.248414
    assert (low, high) == (pytest.approx(-0.048414, abs=1e-6), pytest.approx(0.448414, abs=1e-6))
    same = [{f"q{i}": m for i in range(50)} for m in (0.1, 0.2, 0.3)]  # no spread between questions: t is the wider
    found = interval(same)
    assert (found.mean, found.low, found.high) == (pytest.approx(0.2), pytest.approx(low), pytest.approx(high))


def test_pooled_spread_by_hand():
    sd, df = pooled_sd([[0.0, 0.2], [0.5, 0.5, 0.8]])  # squares: 2 * 0.01, then 0.01 + 0.01 + 0.04; df 1 + 2
    assert (sd, df) == (pytest.approx(math.sqrt(0.08 / 3)), 3)
    low, high = t_interval([0.0, 0.2], (sd, df))
    assert high - low == pytest.approx(2 * 3.182446 * sd / math.sqrt(2), rel=1e-6)


def test_the_bootstrap_of_one_seed_is_binomial():
    n, right = 400, 280
    found = interval([{f"q{i}": float(i < right) for i in range(n)}])
    half = 1.959964 * math.sqrt(0.7 * 0.3 / n)
    assert found.seeds == 1
    assert found.high - found.low == pytest.approx(2 * half, rel=0.06)
    assert found.mean == pytest.approx(0.7)


def test_seeds_asked_the_same_questions_do_not_count_as_more_questions():
    draw = random.Random(0)
    values = {f"q{i}": float(draw.random() < 0.5) for i in range(400)}
    same = paired.bootstrap([values] * 3)
    own = paired.bootstrap([{f"{s}{q}": v for q, v in values.items()} for s in range(3)])
    assert same[1] - same[0] == pytest.approx(2 * 1.96 * 0.025, rel=0.06)
    assert own[1] - own[0] == pytest.approx(
        2 * 1.96 * 0.025 / math.sqrt(3) * math.sqrt(1 + 2 / 3), rel=0.12
    )  # seeds drawn with replacement


def test_differences_and_averages_are_question_by_question():
    assert difference({"a": 1.0, "b": 0.0}, {"b": 1.0, "a": 1.0}) == {"a": 0.0, "b": -1.0}
    assert average([{"a": 1.0, "b": -1.0}, {"a": 0.0, "b": -1.0}]) == {"a": 0.5, "b": -1.0}
    with pytest.raises(ValueError, match="not the same questions"):
        difference({"a": 1.0}, {"b": 1.0})
    with pytest.raises(ValueError, match="not asked the same"):
        average([{"a": 1.0}, {"b": 1.0}])


def test_verdicts_follow_the_interval():
    found = Interval(0.02, -0.005, 0.045, 3)
    assert [found.verdict(b) for b in (-0.01, -0.005, 0.0, 0.045, 0.05)] == [
        "held",
        "held",
        "undecided",
        "undecided",
        "did not hold",
    ]
    same = Interval(0.0, 0.0, 0.0, 3)  # a method compared with itself
    assert (same.verdict(0.0), same.verdict(0.0, above=True)) == ("held", "did not hold")
    assert paired.all_of(["held", "held"]) == "held"
    assert paired.all_of(["held", "undecided"]) == "undecided"
    assert paired.all_of(["undecided", "did not hold"]) == "did not hold"
    assert recovered_share(original=0.2, pruned=1.2, compensated=0.7) == pytest.approx(0.5)


RATES = {"default": 0.8, "once": 0.5, "ptl": 0.3}


def test_tables_equal_direct_computation(tmp_path):
    study = invented_study(tmp_path / "s", RATES)
    results = Results.read(study)
    place = (0.6, 100)

    def right(method, place, seed):
        return study.record(study.cell(method, *place, seed))["final"]["verdicts"]["sums"]["right"]

    def mean(method, place, seed):
        return right(method, place, seed).count("1") / 60

    accuracies = [mean("once", place, s) for s in range(3)]
    assert results.accuracy("once", place).mean == pytest.approx(fmean(accuracies))
    gaps = [mean("default", place, s) - mean("once", place, s) for s in range(3)]
    one = results.paired("default", "once", place)
    assert one.mean == pytest.approx(fmean(gaps))
    half = 4.302653 * math.sqrt(sum((g - fmean(gaps)) ** 2 for g in gaps) / 2) / math.sqrt(3)
    assert one.low <= fmean(gaps) - half + 1e-6 and one.high >= fmean(gaps) + half - 1e-6
    everywhere = [fmean(mean("default", p, s) - mean("once", p, s) for p in results.places) for s in range(3)]
    whole = results.mean_paired("default", "once", results.places)
    assert whole.mean == pytest.approx(fmean(everywhere))
    page = readme(results)
    assert f"{100 * one.mean:+.1f} [{100 * one.low:+.1f}, {100 * one.high:+.1f}]" in page
    assert f"| 60% | 100 | {100 * fmean(mean('default', place, s) for s in range(3)):.1f} [" in page
    assert f"| mean |  | {100 * whole.mean:+.1f} [" in page


def claim(of, over, bound, scope, **more):
    return {"of": of, "over": over, "bound": bound, "scope": scope, **more}


def test_claims_are_decided_by_the_rule(tmp_path):
    results = Results.read(invented_study(tmp_path / "s", RATES))
    verdicts = {
        "held": claim("default", "ptl", 0.05, "mean"),
        "did not hold": claim("ptl", "default", 0.0, "each"),
        "undecided": claim("default", "once", results.mean_paired("default", "once", results.places).mean, "mean"),
    }
    assert decide(results, {"of": "once", "over": "once", "above": 0.0, "scope": "mean"}).verdict == "did not hold"
    for verdict, c in verdicts.items():
        assert decide(results, c).verdict == verdict, c
    loss = decide(results, claim("default", "ptl", 0.5, "loss"))  # (1.4 - 0.4) / 1.4
    assert (loss.measured, loss.verdict) == ("71% (from 71% to 71%, 12 cells)", "held")


def test_against_next_compares_with_the_larger_budget(tmp_path):
    study = invented_study(tmp_path / "s", RATES)
    results = Results.read(study)
    found = decide(results, claim("default", "ptl", 0.0, "mean", against="next"))
    gaps = [
        fmean(results.right(results.records["default", size, 100, s]).values())
        - fmean(results.right(results.records["ptl", size, 400, s]).values())
        for size in study.sizes
        for s in study.seeds
    ]
    assert found.measured.startswith(f"{100 * fmean(gaps):+.1f} [")


def test_nothing_is_decided_while_a_seed_is_missing(tmp_path):
    results = Results.read(invented_study(tmp_path / "s", RATES, leave_out="default-0.4-400-s2"))
    assert decide(results, claim("default", "ptl", 0.05, "mean")).verdict == "undecided: 2 of 3 seeds"
    assert decide(results, claim("default", "ptl", -0.9, "each")).verdict == "undecided: not all cells are there"
    assert "35 of 36 cells" in readme(results)
    empty = Results(results.grid, {})
    assert decide(empty, claim("default", "ptl", 0.05, "mean")).verdict == "not measured"
    assert "0 of 36 cells" in readme(empty)


def test_further_seeds_count_where_both_methods_have_them(tmp_path):
    more = [{"methods": ["default", "ptl"], "tokens": [400], "seeds": [3, 4]}]
    study = invented_study(tmp_path / "s", RATES, more=more)
    results = Results.read(study)
    assert len(study.cells()) == 36 + 2 * 2 * 2  # methods, sizes, seeds
    assert results.paired("default", "ptl", (0.6, 400)).seeds == 5
    assert (
        results.paired("default", "ptl", (0.6, 100)).seeds == results.paired("default", "once", (0.6, 400)).seeds == 3
    )
    assert results.mean_paired("default", "ptl", results.places).seeds == 3
    assert decide(results, claim("default", "ptl", 0.05, "mean")).verdict == "held"
    one = decide(results, claim("default", "ptl", 0.05, "mean", tokens=400))
    assert one.verdict == "held" and one.measured == points(
        results.mean_paired("default", "ptl", [(0.6, 400), (0.4, 400)])
    )
    study.records.drop("ptl-0.6-400-s4")
    fewer = Results.read(study)
    assert decide(fewer, claim("default", "ptl", 0.05, "mean", tokens=400)).verdict == "undecided: 4 of 5 seeds"
    assert "seeds 0, 1, 2 (and 3, 4: default, ptl at 400 tokens)" in readme(fewer)


def test_further_seeds_of_an_unknown_method_are_refused(tmp_path):
    with pytest.raises(GridError, match="more"):
        invented_study(tmp_path / "s", RATES, more=[{"methods": ["nobody"], "tokens": [400], "seeds": [3]}])
