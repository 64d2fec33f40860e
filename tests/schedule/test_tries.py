"""The search for the smallest shape: against simulated models whose limit is known."""

from __future__ import annotations

import itertools
import random

import pytest

from prunetune.schedule.tries import HOPELESS, MOST_TRIES, RESOLUTION, Over, Probing, Space, Tried, Try, next_try

VALUES = {"neurons": [*range(96, 5, -2)], "layers": [*range(12, 5, -1)]}


def params(shape):
    return 2000 + shape["layers"] * (200 + 10 * shape["neurons"])


SPACE = Space(VALUES, params)
ORIGINAL = {"neurons": 96, "layers": 12}


def search(kept, loss, *, space=SPACE, wanted=0.9, measured=True, bearable=0.3):
    """Run a search. `kept` and `loss` of a shape; what stands is recovered to a loss of 0, and is cut from there."""
    now, tried, probes, asked = ORIGINAL, [], (), []

    def losses(shapes):
        asked.extend(shapes)
        return [loss(s) - loss(now) for s in shapes]

    while True:
        found = next_try(space, now, tried, Probing(0.0, losses if measured else None, probes), bearable)
        if isinstance(found, Over):
            return now, tried, found.why, asked
        assert isinstance(found, Try)
        probes, share = found.probes, kept(found.shape)
        name = f"{len(tried) + 1}-{found.axis}"
        stood = share >= wanted
        damage = loss(found.shape) - loss(now) if measured else None
        tried.append(Tried(name, found.shape, found.axis, stood, share < HOPELESS * wanted, damage))
        if stood:
            now, probes = found.shape, ()


def of(limit, layers=12):
    """A model that keeps everything down to so many neurons and layers, and little below."""
    return lambda s: 1.0 if s["neurons"] >= limit and s["layers"] >= layers else 0.2


def steep(s):
    """Damage as it is measured: nothing for long, then ten times as much every few neurons; a layer is a lot."""
    return 1e-4 * 10 ** ((96 - s["neurons"]) / 20) + 2.0 * (12 - s["layers"])


@pytest.mark.parametrize("limit", [8, 20, 36, 50, 64, 82, 94])
@pytest.mark.parametrize("measured", [True, False])
def test_it_ends_within_the_resolution_of_the_limit(limit, measured):
    now, tried, why, _ = search(of(limit), steep, measured=measured)
    best = {"neurons": max(v for v in VALUES["neurons"] if v <= limit), "layers": 12}
    assert params(now) - params(best) < RESOLUTION * SPACE.original
    assert len(tried) <= 10, [t.name for t in tried]
    assert "neurons: less than 3%" in why
    if measured:  # no layer was tried: its probe says more than any neuron that failed
        assert all(t.axis == "neurons" for t in tried)


def test_probes_save_tries():
    """A limit where the damage rises is found sooner than by halving the size."""
    limits = range(10, 94, 4)
    counts = [
        sum(len(search(of(limit), lambda s, at=limit: 0.004 * 10 ** ((at - s["neurons"]) / 8), measured=m)[1])
            for limit in limits)
        for m in (True, False)
    ]  # fmt: skip
    assert counts[0] < 0.9 * counts[1], counts


def test_a_hopeless_layer_ends_the_layers():
    cheap = lambda s: 1e-4 * (96 - s["neurons"]) + 1e-5 * (12 - s["layers"])  # noqa: E731  # a probe that is wrong
    now, tried, why, _ = search(of(40), cheap)
    layers = [t for t in tried if t.axis == "layers"]
    assert len(layers) == 1 and layers[0].hopeless
    assert now["layers"] == 12
    assert f"layers: {layers[0].name} was hopeless" in why


def test_layers_that_may_go_do_go():
    cheap = lambda s: 1e-4 * (96 - s["neurons"]) + 1e-5 * (12 - s["layers"])  # noqa: E731
    now, *_ = search(of(40, layers=8), cheap, wanted=0.15)
    assert now["layers"] == 6 and now["neurons"] == 6  # all of it keeps 20 %
    now, *_ = search(lambda s: 0.6 if s["layers"] < 8 else of(40, 8)(s), cheap)
    assert now["layers"] == 8


def test_nothing_within_what_failed_is_tried_again():
    rng = random.Random(0)
    for _ in range(50):
        limit = rng.choice(VALUES["neurons"])
        _, tried, *_ = search(of(limit), lambda s: rng.random())
        for a, b in itertools.combinations(tried, 2):
            assert a.shape != b.shape
            if not a.stood:
                assert any(b.shape[x] > a.shape[x] for x in VALUES)
        assert len(tried) <= MOST_TRIES


def test_no_shape_is_smaller_than_the_least():
    least = params({"neurons": 50, "layers": 12})
    now, *_ = search(of(8), steep, space=Space(VALUES, params, least))
    assert params(now) >= least
    assert params(now) - least < RESOLUTION * SPACE.original


def test_what_is_known_is_not_probed_again():
    found = next_try(SPACE, ORIGINAL, [], Probing(0.0, lambda shapes: [steep(s) for s in shapes]), 0.3)
    again = next_try(SPACE, ORIGINAL, [], Probing(0.0, lambda shapes: pytest.fail("probed"), found.probes), 0.3)
    assert again == found
