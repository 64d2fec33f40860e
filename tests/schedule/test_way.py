"""The rungs of a ladder: their shapes against a search by brute force, and that every schedule stops at each."""

from __future__ import annotations

import itertools

import pytest
from pydantic import ValidationError

from prunetune.errors import OutOfReach
from prunetune.schedule.sizes import Sizes
from prunetune.schedule.steps import Done, next_step, once, plan_ahead
from prunetune.schedule.target import PruneConfig, final_shape
from prunetune.schedule.wanted import read_ladder
from prunetune.schedule.way import path, rungs, rungs_left, stops

# SmolLM2-135M: 30 layers of width 1536
SIZES = Sizes(depth=30, width=1536, base=28_312_512, layer=885_888, neuron=1728, hidden=576)
LADDER = [0.8, 0.7, 0.6, 0.5]


def prune(**values) -> PruneConfig:
    return PruneConfig.model_validate({"ladder": LADDER, **values})


def test_a_rung_is_the_largest_width_that_its_share_allows():
    found = rungs(prune(layers=0), SIZES)
    for share, (depth, width) in zip(LADDER, found, strict=True):
        most = max(w for w in range(8, 1537, 8) if SIZES.params(30, w) <= share * SIZES.original)
        assert (depth, width) == (30, most) == final_shape(PruneConfig(target=share, layers=0), SIZES)


def test_rungs_lie_on_one_way_where_layers_go_too():
    """Each rung holds what the next one is cut from: neither layers nor neurons ever come back."""
    for order in ("neurons-then-layers", "layers-then-neurons", "together"):
        wanted = prune(order=order, layers=6)
        found = rungs(wanted, SIZES)
        assert found[-1] == final_shape(wanted, SIZES)
        for (d, w), (e, v) in itertools.pairwise([(30, 1536), *found]):
            assert e <= d and v <= w and (e, v) != (d, w)
        whole = path(wanted, SIZES, (30, 1536))
        for share, at in zip(LADDER, found, strict=True):
            assert SIZES.params(*at) <= share * SIZES.original
            if at != found[-1]:
                assert SIZES.params(*whole[whole.index(at) - 1]) > share * SIZES.original, (
                    "the first one that is no larger"
                )


@pytest.mark.parametrize("order", ["neurons-then-layers", "layers-then-neurons", "together"])
@pytest.mark.parametrize(
    "how", [{"rounds": 4}, {"rounds": 7}, {"step": 0.05}, {"step": 0.3}, {"step": {"neurons": 200}}]
)
@pytest.mark.parametrize("layers", [0, 6, [3, 5, 7, 9]])
def test_every_schedule_stops_at_each_rung(order, how, layers):
    wanted = prune(order=order, layers=layers, **how)
    ahead = plan_ahead(wanted, SIZES)
    shapes = [(a.depth, a.width) for a in ahead]
    assert [at for at in shapes if at in rungs(wanted, SIZES)] == rungs(wanted, SIZES)
    assert [a.step.index for a in ahead] == list(range(1, len(ahead) + 1))
    if layers == 0 and "rounds" in how:
        assert len(ahead) == how["rounds"]
    if layers == 0 and isinstance(how.get("step"), float):
        gone = itertools.pairwise([SIZES.original, *(a.params for a in ahead)])
        assert max(a - b for a, b in gone) <= 1.16 * how["step"] * SIZES.original + 8 * 30 * 1728


def test_rounds_beyond_the_rungs_go_where_most_parameters_go():
    ahead = plan_ahead(PruneConfig(ladder=[0.9, 0.5], layers=0, rounds=5), SIZES)
    assert [a.width for a in ahead].index(rungs(PruneConfig(ladder=[0.9, 0.5], layers=0), SIZES)[0][1]) == 0


def test_a_ladder_that_is_made_longer_goes_on_from_the_end():
    done = [Done(a.step, a.depth, a.width) for a in plan_ahead(prune(rounds=4, layers=0), SIZES)]
    longer = prune(ladder=[*LADDER, 0.45], rounds=5, layers=0)
    step = next_step(longer, SIZES, done)
    assert step.index == 5 and rungs_left(longer, SIZES, (done[-1].depth, done[-1].width)) == 1
    assert next_step(prune(rounds=4, layers=0), SIZES, done) is None


def test_two_rungs_of_one_shape_are_refused():
    with pytest.raises(OutOfReach, match="two rungs of this ladder are the same shape") as e:
        plan_ahead(PruneConfig(ladder=[0.8, 0.799, 0.6], align=64, rounds=3), SIZES)
    assert "0.8 and 0.799" in str(e.value)


def test_a_rung_below_what_can_go_is_refused():
    with pytest.raises(OutOfReach, match="smaller than neurons and layers alone can reach"):
        plan_ahead(PruneConfig(ladder=[0.5, 0.01], rounds=2), SIZES)


def test_without_a_ladder_the_target_is_the_only_stop():
    plain = PruneConfig(target=0.5)
    way = path(plain, SIZES, (30, 1536))
    assert stops(plain, SIZES, (30, 1536), way) == [len(way) - 1]
    assert (rungs_left(plain, SIZES, (30, 1536)), rungs_left(plain, SIZES, way[-1])) == (1, 0)
    assert once(prune(), SIZES).ladder is None


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ([0.6, 0.8], "falls from rung to rung, and 0.8 comes after 0.6"),
        ([0.8, 0.8], "falls from rung to rung"),
        ([1.0, 0.5], "above 0 and below 1, not 1.0"),
        ([0.8, 0], "above 0 and below 1, not 0"),
        (["4GB"], "above 0 and below 1, not '4GB'"),
        ([], "a ladder is a list of shares"),
        (0.5, "a ladder is a list of shares"),
        ([float("nan")], "above 0 and below 1"),
    ],
)
def test_what_is_no_ladder_is_told(said, told):
    with pytest.raises(ValidationError, match=told):
        PruneConfig(ladder=said)


def test_shares_may_be_said_in_percent():
    assert read_ladder("80%, 0.65,50 %") == [0.8, 0.65, 0.5]
    assert prune(target="50%").target == prune().target == 0.5


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"target": 0.4}, "ends at 0.5, but the target is 0.4"),
        ({"target": {"width": 64}}, "ends at 0.5, but the target is a shape"),
        ({"axes": ["neurons"], "rounds": "auto"}, "leave out axes"),
        ({"order": "alternating"}, "order: alternating"),
        ({"rounds": 3}, "rounds must be 4 at least"),
        ({"max_rounds": 2}, "max_rounds must be 4 at least"),
    ],
)
def test_what_contradicts_a_ladder_is_told(more, told):
    with pytest.raises(ValidationError, match=told):
        prune(**more)
