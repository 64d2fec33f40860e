"""The search for a shape, against brute force over every shape of a grid whose damage is known."""

from __future__ import annotations

import random

import pytest

from prunetune.schedule.search import MOST, Surrogate, first_shapes, frontier, search

UNITS = {"layers": 12, "heads": 4, "neurons": 96}
LEVELS = {"layers": range(12, 5, -1), "heads": (4, 3, 2)}


def size(shape):
    return 40 + shape["layers"] * (10 * shape["heads"] + shape["neurons"])


def shapes(share):
    return frontier(UNITS, LEVELS, lambda s: size(s) <= share * size(UNITS), least=8, grain=8)


def additive(seed):
    """A damage that adds up over the axes, each growing faster than its cut, with random weights."""
    rng = random.Random(seed)
    neurons, power = rng.uniform(0.2, 4), rng.uniform(1, 3)
    others = {"layers": (rng.uniform(0.01, 0.6), rng.uniform(1, 2)), "heads": (rng.uniform(0.01, 0.6), 1.5)}

    def loss(shape):
        cut = {name: UNITS[name] - shape[name] for name in others}
        damage = neurons * (1 - shape["neurons"] / UNITS["neurons"]) ** power
        return 1.5 + damage + sum(weight * cut[name] ** p for name, (weight, p) in others.items())

    return loss


def counted(loss):
    calls = []

    def lost(shape):
        assert shape not in calls, "a shape is cut once"
        calls.append(dict(shape))
        return loss(shape)

    return lost, calls


def test_the_frontier_is_what_brute_force_leaves():
    fits = [
        {"layers": d, "heads": h, "neurons": w}
        for d in LEVELS["layers"]
        for h in LEVELS["heads"]
        for w in range(8, 97, 8)
        if size({"layers": d, "heads": h, "neurons": w}) <= 0.6 * size(UNITS)
    ]
    best = {}
    for shape in fits:
        at = shape["layers"], shape["heads"]
        best[at] = max(best.get(at, 0), shape["neurons"])
    assert {(s["layers"], s["heads"]): s["neurons"] for s in shapes(0.6)} == best


@pytest.mark.parametrize("share", [0.8, 0.6, 0.45])
def test_the_least_damage_of_all_shapes_is_found_within_twelve_cuts(share):
    missed = []
    for seed in range(40):
        loss = additive(seed)
        lost, calls = counted(loss)
        found = search(shapes(share), UNITS, 1.5, lost)
        best = min(map(loss, shapes(share)))
        assert len(calls) <= MOST
        assert loss(found.shape) == min(loss(c) for c in calls if size(c) <= share * size(UNITS))
        missed.append(loss(found.shape) / best - 1)
    assert max(missed) < 0.03
    assert sum(gap < 1e-9 for gap in missed) >= 30


def test_neurons_alone_are_always_cut_so_that_the_choice_is_never_worse():
    alone = next(s for s in shapes(0.8) if s["layers"] == 12 and s["heads"] == 4)
    assert first_shapes(shapes(0.8), UNITS)[0] == alone


def test_an_axis_that_hurts_more_with_another_is_seen_through():
    """Each axis alone looks free, both together are ruin: what was measured of both holds for all deeper shapes."""

    def loss(shape):
        both = (12 - shape["layers"]) * (4 - shape["heads"])
        return 1.5 + 2 * (1 - shape["neurons"] / 96) ** 2 + (3.0 if both else 0.0)

    lost, calls = counted(loss)
    found = search(shapes(0.6), UNITS, 1.5, lost)
    assert found.shape["layers"] == 12 or found.shape["heads"] == 4
    assert sum(c["layers"] < 12 and c["heads"] < 4 for c in calls) <= 2


def test_fewer_cuts_where_fewer_are_allowed_and_every_candidate_has_its_figure():
    lost, calls = counted(additive(3))
    found = search(shapes(0.6), UNITS, 1.5, lost, most=3)
    assert len(calls) == 3
    assert len(found.candidates) == len(shapes(0.6))
    assert sum(c.measured is not None for c in found.candidates) == 2  # half of the way is no candidate
    losses = [c.measured for c in found.candidates if c.measured is not None]
    assert losses == sorted(losses)
    assert found.shape == found.candidates[0].shape


def test_the_surrogate_is_what_was_measured_where_it_was_measured():
    loss = additive(1)
    known = {(4, 12, 48): loss({"layers": 12, "heads": 4, "neurons": 48})}
    surrogate = Surrogate.of(known, ["heads", "layers", "neurons"], UNITS, 1.5)
    assert surrogate.loss({"layers": 12, "heads": 4, "neurons": 48}) == known[4, 12, 48]


def test_a_single_shape_needs_no_cut():
    lost, calls = counted(additive(1))
    only = frontier(UNITS, {}, lambda s: size(s) <= 0.6 * size(UNITS), least=8, grain=8)
    assert search(only, UNITS, 1.5, lost).shape == only[0]
    assert not calls
