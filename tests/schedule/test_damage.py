"""Steps and tokens by damage: every function against figures worked out by hand."""

from __future__ import annotations

import pytest

from prunetune.schedule.damage import (
    Probe,
    damages,
    equal_damage,
    places,
    rounds_for,
    step_to,
    target_params,
)
from prunetune.schedule.sizes import Sizes
from prunetune.schedule.steps import Step
from prunetune.schedule.target import FinalShape, PruneConfig
from prunetune.schedule.way import path

# 1000 outside the layers, 10 layers of 200 + 100 neurons of 8: 1000 + 10 * (200 + 800) = 11000
SIZES = Sizes(depth=10, width=100, base=1000, layer=200, neuron=8, hidden=64)


def prune(**values) -> PruneConfig:
    return PruneConfig.model_validate({"target": {"width": 60, "depth": 8}, "align": 20, **values})


def test_path_follows_the_order():
    assert path(prune(), SIZES, (10, 100)) == [(10, 80), (10, 60), (9, 60), (8, 60)]
    assert path(prune(order="layers-then-neurons"), SIZES, (10, 100)) == [(9, 100), (8, 100), (8, 80), (8, 60)]
    assert path(prune(order="together"), SIZES, (10, 100)) == [(9, 80), (8, 60)]
    assert path(prune(), SIZES, (10, 60)) == [(9, 60), (8, 60)]  # a later round
    assert path(prune(), SIZES, (10, 70)) == [(10, 60), (9, 60), (8, 60)]  # from a width that is not aligned


def test_together_removes_layers_where_no_neuron_goes():
    only_layers = prune(target={"width": 100, "depth": 8}, order="together")
    assert path(only_layers, SIZES, (10, 100)) == [(9, 100), (8, 100)]


def test_places_are_nearest_to_the_probed_shares():
    way = [(10, w) for w in range(99, 0, -1)]
    found = places(way, SIZES, (10, 100))
    assert [way[i][1] for i in found] == [41, 16, 1]  # 60, 85 and 100 % of 99
    assert places(way[:1], SIZES, (10, 100)) == [0]


def test_damages_are_linear_between_probes_and_never_fall():
    way = [(10, 80), (10, 60), (10, 40), (10, 20)]
    probes = [Probe(10, 60, SIZES.params(10, 60), 1.5), Probe(10, 20, SIZES.params(10, 20), 1.3)]
    assert damages(way, SIZES, (10, 100), 1.0, probes) == pytest.approx([0.25, 0.5, 0.5, 0.5])
    probes[1] = Probe(10, 20, SIZES.params(10, 20), 2.5)
    assert damages(way, SIZES, (10, 100), 1.0, probes) == pytest.approx([0.25, 0.5, 1.0, 1.5])


def test_a_cut_that_helps_is_no_negative_damage():
    way = [(10, 80), (10, 60)]
    probes = [Probe(10, 80, SIZES.params(10, 80), 0.9), Probe(10, 60, SIZES.params(10, 60), 1.2)]
    assert damages(way, SIZES, (10, 100), 1.0, probes) == pytest.approx([0.0, 0.2])


def test_equal_damage_stops_where_a_round_s_share_is_done():
    curve = [0.01, 0.05, 0.2, 0.6]
    assert equal_damage(curve, 1) == 3
    assert equal_damage(curve, 3) == 2  # 0.2 of 0.6
    assert equal_damage(curve, 12) == 1  # 0.05
    assert equal_damage([0.0, 0.0], 3) == 1  # nothing hurts: go all the way
    assert equal_damage([0.0, 0.0, 0.0, 1.0], 4) == 2  # of equals the farthest


def test_a_wished_number_of_rounds_is_made_also_where_nothing_hurts():
    assert equal_damage([0.0] * 7, 3, exact=True) == 2  # three of seven places, then two and two
    assert equal_damage([0.0, 0.0, 0.0, 0.0, 0.3], 4, exact=True) == 1  # else 3: one place left for three rounds
    assert equal_damage([0.01, 0.05, 0.2, 0.6], 3, exact=True) == 1
    assert equal_damage([0.0, 0.0], 3, exact=True) == 0
    made, left, at = [], 6, -1
    while left:  # all the way: six rounds, whatever the predictions
        rest = [0.0] * (7 - at - 1)
        at += 1 + equal_damage(rest, left, exact=True)
        made.append(at)
        left -= 1
    assert made == [1, 2, 3, 4, 5, 6]


def test_rounds_by_damage_tokens_and_limit():
    assert rounds_for(0.9, 0.3, 10, 6) == 3
    assert rounds_for(0.91, 0.3, 10, 6) == 4
    assert rounds_for(0.9, 0.3, 2, 6) == 2
    assert rounds_for(9.0, 0.3, 10, 6) == 6
    assert rounds_for(0.0, 0.3, 0, 6) == 1


def test_step_to_names_both_axes():
    assert step_to(2, (10, 100), (9, 80)) == Step(2, 20, 1)


@pytest.mark.parametrize(("target", "wanted"), [(0.6, 6600), (7000, 7000)])
def test_target_params(target, wanted):
    assert target_params(PruneConfig(target=target), SIZES) == wanted
    assert target_params(PruneConfig(target=FinalShape(width=50, depth=8), align=10), SIZES) == SIZES.params(8, 50)
