"""The schedule is arithmetic: every step, every target, every refusal."""

from __future__ import annotations

import contextlib
import itertools

import pytest
from pydantic import ValidationError
from tests.tiny import tiny_config

from prunetune.errors import OutOfReach, UnsupportedModel
from prunetune.models.axes import resized
from prunetune.models.cost import cost_of
from prunetune.schedule.sizes import Sizes
from prunetune.schedule.steps import Done, Step, check_protection, check_removes, next_step, once, plan_ahead
from prunetune.schedule.target import FinalShape, NeuronStep, PruneConfig, final_shape

SIZES = Sizes(depth=8, width=512, base=20_000, layer=60_000, neuron=384, hidden=128)


def run(**prune):
    return plan_ahead(PruneConfig(**prune), SIZES)


@pytest.mark.parametrize("order", ["neurons-then-layers", "layers-then-neurons", "alternating", "together"])
@pytest.mark.parametrize("layers", ["auto", 1, 3, [0, 5]])
@pytest.mark.parametrize("step", [0.05, 0.1, 0.2, 1.0, NeuronStep(neurons=50)])
def test_every_schedule_ends_at_the_target_and_never_grows(order, layers, step):
    ahead = run(target=0.6, order=order, layers=layers, step=step)
    assert ahead[-1].params <= 0.6 * SIZES.original
    assert SIZES.params(ahead[-1].depth, ahead[-1].width + 8) > 0.6 * SIZES.original  # the largest aligned width
    sizes = [SIZES.original, *(a.params for a in ahead)]
    assert all(a > b for a, b in itertools.pairwise(sizes))
    assert all(a.width % 8 == 0 for a in ahead)
    if layers != "auto":
        assert SIZES.depth - ahead[-1].depth == (layers if isinstance(layers, int) else len(layers))


@pytest.mark.parametrize("step", [0.05, 0.1, 0.13, 0.2])
def test_rounds_are_equal_and_at_most_their_share_of_the_original_parameters(step):
    ahead = run(target=0.6, step=step, layers=0, align=1)
    sizes = [SIZES.original, *(a.params for a in ahead)]
    removed = [a - b for a, b in itertools.pairwise(sizes)]
    assert max(removed) - min(removed) <= 2 * SIZES.depth * SIZES.neuron  # rounding to whole neurons
    assert max(removed) <= 1.16 * step * SIZES.original
    assert len(removed) == -(-0.4 // step) or len(removed) == 0.4 // step


def test_neurons_a_layer_a_round():
    widths = [a.width for a in run(target=FinalShape(width=212), step=NeuronStep(neurons=100), align=1)]
    assert widths == [412, 312, 212]


def test_orders():
    axes = {
        o: [a.step.axis for a in run(target=0.6, layers=2, order=o)]
        for o in ("neurons-then-layers", "layers-then-neurons", "alternating", "together")
    }
    first = axes["neurons-then-layers"]
    assert first == sorted(first, key=["neurons", "layers"].index)
    last = axes["layers-then-neurons"]
    assert last == sorted(last, key=["layers", "neurons"].index)
    assert axes["alternating"][:4] == ["neurons", "layers", "neurons", "layers"]
    assert "both" in axes["together"]


def test_auto_takes_layers_only_where_neurons_cannot_do_it():
    assert final_shape(PruneConfig(target=0.6), SIZES)[0] == SIZES.depth
    assert final_shape(PruneConfig(target=0.3), SIZES)[0] < SIZES.depth


def test_target_as_a_count_and_as_a_shape():
    count = round(0.6 * SIZES.original)
    assert final_shape(PruneConfig(target=count), SIZES) == final_shape(PruneConfig(target=0.6), SIZES)
    assert final_shape(PruneConfig(target=FinalShape(width=256, depth=6)), SIZES) == (6, 256)
    assert final_shape(PruneConfig(target=FinalShape(width=256), layers=[6, 7]), SIZES) == (6, 256)


@pytest.mark.parametrize(
    ("prune", "says"),
    [
        ({"target": 1.5}, "share between 0 and 1"),
        ({"target": 10**9}, "no smaller than the model"),
        ({"target": 1.0}, None),
        ({"target": 0.01}, "at least"),
        ({"target": 0.2, "layers": 0}, "at least"),
        ({"target": 0.5, "layers": 8}, "no layer"),
        ({"target": 0.5, "layers": [9]}, "no such layer"),
        ({"target": FinalShape(width=1000)}, "larger than the model"),
        ({"target": FinalShape(width=255)}, "multiples of 8"),
    ],
)
def test_targets_out_of_reach_say_what_is_possible(prune, says):
    if says is None:
        assert run(**prune) == []
        return
    with pytest.raises(OutOfReach, match=says):
        run(**prune)


@pytest.mark.parametrize(
    ("prune", "refused"),
    [
        ({"target": 1.0}, True),
        ({"target": "100%"}, True),
        ({"target": FinalShape()}, True),
        ({"target": FinalShape(width=SIZES.width, depth=SIZES.depth)}, True),
        ({"target": 1.0, "axes": ["neurons", "layers"]}, True),
        ({"target": 1.0, "layers": 1}, False),
        ({"target": 1.0, "vocabulary": "task"}, False),
        ({"target": 1.0, "cut": {"heads": 1}}, False),
        ({"target": 0.999}, False),
        ({"sigma_neuron": 0.0, "max_rounds": 1}, False),
    ],
)
def test_a_target_that_removes_nothing_is_refused(prune, refused):
    with pytest.raises(OutOfReach, match="nothing would be removed") if refused else contextlib.nullcontext():
        check_removes(PruneConfig.model_validate(prune), SIZES)


def test_the_smallest_target_named_in_the_message_is_reachable():
    with pytest.raises(OutOfReach) as e:
        run(target=0.01, layers=2)
    share = float(e.value.valid.split()[2])
    assert run(target=share + 0.001, layers=2)


@pytest.mark.parametrize(
    "prune",
    [
        {}, {"target": 0.5, "sigma_neuron": 0.1, "max_rounds": 2}, {"sigma_neuron": 0.1}, {"target": -1.0},
        {"target": 0.5, "step": 0.0}, {"target": 0.5, "layers": -1}, {"target": 0.5, "layers": [3, 3]},
        {"target": FinalShape(depth=4), "layers": 2},
    ],
)  # fmt: skip
def test_contradictions_are_refused(prune):
    with pytest.raises(ValidationError):
        PruneConfig(**prune)


def test_next_step_follows_the_accepted_history_only():
    prune = PruneConfig(target=0.6, layers=0)
    first = next_step(prune, SIZES, [])
    refused = Done(first, SIZES.depth, SIZES.width - first.neurons, accepted=False)
    assert next_step(prune, SIZES, [refused]) == first
    taken = Done(first, SIZES.depth, SIZES.width - first.neurons)
    assert next_step(prune, SIZES, [refused, taken]).index == 2


def test_a_deeper_target_goes_on_from_the_end():
    history = [Done(a.step, a.depth, a.width) for a in run(target=0.7, layers=0)]
    assert next_step(PruneConfig(target=0.7, layers=0), SIZES, history) is None
    deeper = PruneConfig(target=0.6, layers=0)
    step = next_step(deeper, SIZES, history)
    assert step.index == len(history) + 1
    assert plan_ahead(deeper, SIZES, history)
    with pytest.raises(OutOfReach, match="already smaller"):
        next_step(PruneConfig(target=0.8, layers=0), SIZES, history)


def test_thresholds_leave_the_amounts_open_and_stop_when_nothing_goes():
    prune = PruneConfig(sigma_neuron=0.1, sigma_layer=0.2, max_rounds=3)
    assert plan_ahead(prune, SIZES) == []
    step = next_step(prune, SIZES, [])
    assert (step.neurons, step.layers, step.name) == (None, None, "01-both-sigma+sigma")
    went = Done(step, SIZES.depth, 400)
    assert next_step(prune, SIZES, [went]).index == 2
    assert next_step(prune, SIZES, [went, went]) is None  # the second removed nothing
    assert next_step(prune, SIZES, [Done(step, SIZES.depth, SIZES.width)]) is None
    assert next_step(prune, SIZES, [Done(step, 8, w) for w in (400, 300, 200)]) is None


def test_max_rounds_stops_early():
    assert len(run(target=0.6, layers=0, max_rounds=2)) == 2


@pytest.mark.parametrize("layers", ["auto", 2, [0, 5]])
def test_prune_once_reaches_the_same_shape_in_one_round(layers):
    prune = PruneConfig(target=0.5, layers=layers)
    alone = plan_ahead(once(prune, SIZES), SIZES)
    assert len(alone) == 1
    assert (alone[0].depth, alone[0].width) == final_shape(prune, SIZES)


def test_names_of_steps():
    assert Step(3, 64, 0).name == "03-neurons-64"
    assert Step(4, 0, 1).name == "04-layers-1"
    assert Step(2, 64, 1, attempt=2).name == "02-both-64+1-a2"


def test_protection_is_checked_before_round_one():
    ahead = run(target=0.6, layers=0, step=1.0)
    check_protection(ahead, SIZES.width, 0.1)
    with pytest.raises(OutOfReach, match="at most"):
        check_protection(ahead, SIZES.width, 0.9)
    gentle = run(target=0.6, layers=0, step=0.05)
    check_protection(gentle, SIZES.width, 0.7)  # small rounds fit beside a large protected share


@pytest.mark.parametrize("rounds", [1, 2, 3, 6])
@pytest.mark.parametrize("target", [0.9, 0.7, 0.5])
@pytest.mark.parametrize(("width", "align"), [(16, 4), (32, 8), (48, 4), (768, 8)])
def test_a_number_of_rounds_is_that_number(width, align, target, rounds):
    """However coarse the width: fewer only where it has fewer multiples of `align` to lose."""
    sizes = Sizes(2, width, base=64, layer=64, neuron=48, hidden=16)
    ahead = plan_ahead(PruneConfig(target=target, rounds=rounds, align=align, layers=0), sizes)
    assert len(ahead) == min(rounds, (width - ahead[-1].width) // align)
    gone = [a - b for a, b in itertools.pairwise([width, *(a.width for a in ahead)])]
    assert max(gone) - min(gone) <= 2 * align


def test_a_number_of_rounds_covers_both_axes():
    sizes = Sizes(6, 64, base=1600, layer=1024, neuron=48, hidden=16)
    for order in ("neurons-then-layers", "layers-then-neurons", "alternating"):
        prune = PruneConfig(target=0.5, rounds=4, align=4, layers=2, order=order)
        ahead = plan_ahead(prune, sizes)
        assert len(ahead) == 4
        assert {a.step.axis for a in ahead} == {"neurons", "layers"}
        assert (ahead[-1].depth, ahead[-1].width) == final_shape(prune, sizes)


@pytest.mark.parametrize("order", ["neurons-then-layers", "together", "layers-then-neurons"])
@pytest.mark.parametrize(
    ("cut", "rounds"), [({"heads": 1}, 1), ({"query_heads": 1}, 3), ({"heads": 1, "query_heads": 1}, 2)]
)
def test_other_axes_go_with_the_first_round_and_count_from_then_on(order, cut, rounds):
    """Sizes against the cost of each shape; steps against those of a model that never had these heads."""
    config = tiny_config("qwen3", num_attention_heads=8, num_key_value_heads=4)
    sizes, whole = Sizes.of(config, cut), cost_of(config)
    prune = PruneConfig(target=0.6, cut=cut, rounds=rounds, order=order, align=4, layers=1 if rounds > 1 else 0)
    ahead = plan_ahead(prune, sizes)
    assert [dict(a.step.more) for a in ahead] == [cut] + [{}] * (len(ahead) - 1)
    left = {"heads": 4 - cut.get("heads", 0), "query_heads": 2 - cut.get("query_heads", 0)}
    other = Sizes.of({**config.to_dict(), **resized(config.to_dict(), left)})
    end = FinalShape(depth=ahead[-1].depth, width=ahead[-1].width)
    same = plan_ahead(PruneConfig(target=end, rounds=rounds, order=order, align=4), other)
    assert [(a.step.neurons, a.step.layers) for a in ahead] == [(a.step.neurons, a.step.layers) for a in same]
    for a in ahead:
        assert a.params == cost_of(config, shape={"layers": a.depth, "neurons": a.width, **left}).params
    assert sizes.original == whole.params and ahead[-1].params <= 0.6 * whole.params
    wider = cost_of(config, shape={"layers": ahead[-1].depth, "neurons": ahead[-1].width + 4, **left})
    assert wider.params > 0.6 * whole.params


def test_what_no_model_can_lose_is_refused():
    with pytest.raises(OutOfReach, match="0 to 1"):
        Sizes.of(tiny_config(), {"heads": 2})
    with pytest.raises(UnsupportedModel, match="multiple of the attention heads"):
        Sizes.of(tiny_config(num_attention_heads=8, num_key_value_heads=4), {"heads": 1})
