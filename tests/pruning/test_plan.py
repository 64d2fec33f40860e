"""Plans: the lowest scores go, the protected stay, and an invalid plan is refused by name."""

from __future__ import annotations

import json
import tracemalloc

import pytest
from pydantic import ValidationError

from prunetune.errors import MissingPath, OutOfReach, PlanError
from prunetune.pruning.plan import PrunePlan, make_plan, threshold_counts

NEURONS = [[5.0, 1.0, 4.0, 2.0], [0.0, 3.0, 0.0, 1.0], [9.0, 8.0, 7.0, 6.0]]
LAYERS = [0.5, 0.1, 0.9]


def test_the_lowest_scores_go_ties_by_index():
    plan = make_plan(NEURONS, LAYERS, "m", n_neurons=2)
    assert plan.drop_neurons == {0: (1, 3), 1: (0, 2), 2: (2, 3)}
    assert (plan.new_depth, plan.new_width, plan.removes_nothing) == (3, 2, False)
    assert plan.kept("neurons", 0) == (0, 2)


def test_layers_go_first_and_lose_no_neurons():
    plan = make_plan(NEURONS, LAYERS, "m", n_neurons=1, n_layers=1)
    assert plan.drop_layers == (1,)
    assert set(plan.drop_neurons) == {0, 2}
    assert make_plan(NEURONS, LAYERS, "m", n_layers=1, which_layers=[0, 2]).drop_layers == (0,)


def test_the_protected_share_stays():
    protected = [[0.0, 9.0, 1.0, 2.0]] * 3
    plan = make_plan(NEURONS, LAYERS, "m", n_neurons=2, protected=protected, protect_share=0.25)
    assert all(1 not in gone for gone in plan.drop_neurons.values())
    with pytest.raises(OutOfReach, match="at most 2 of 4"):
        make_plan(NEURONS, LAYERS, "m", n_neurons=3, protected=protected, protect_share=0.5)


def test_thresholds_remove_the_smallest_common_count():
    """Eq. 4 and 6: 2, 4 and 0 neurons lie below 2.5 in the three layers; without layer 2, two go everywhere."""
    counts = threshold_counts(NEURONS, LAYERS, sigma_neuron=2.5, sigma_layer=None, align=1)
    assert counts == (0, ())
    assert threshold_counts(NEURONS[:2], LAYERS[:2], sigma_neuron=2.5, sigma_layer=None, align=1) == (2, ())
    assert threshold_counts(NEURONS[:2], LAYERS[:2], sigma_neuron=1.5, sigma_layer=None, align=2) == (0, ())
    assert threshold_counts(NEURONS, LAYERS, sigma_neuron=None, sigma_layer=0.5, align=1) == (0, (0, 1))
    assert threshold_counts(NEURONS, LAYERS, sigma_neuron=100, sigma_layer=100, align=1)[1] == (0, 1)  # one layer stays
    assert threshold_counts(NEURONS[:1], LAYERS[:1], sigma_neuron=100, sigma_layer=None, align=1) == (
        3,
        (),
    )  # and a neuron


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"drop_layers": (3,)}, "outside 0..2"),
        ({"drop_layers": (1, 0)}, "ascending"),
        ({"drop_layers": (0, 1, 2)}, "no layer"),
        ({"drop_neurons": {0: (0,)}}, "same number"),
        ({"drop_neurons": {0: (4,), 1: (0,), 2: (0,)}}, "outside 0..3"),
        ({"drop_neurons": {i: (0, 1, 2, 3) for i in range(3)}}, "no neuron"),
        ({"drop_layers": (0,), "drop_neurons": {0: (0,), 1: (0,), 2: (0,)}}, "not kept"),
        ({"speed": 3}, "Extra"),
        ({"sizes": {"wings": 2}}, "'wings' is no axis"),
        ({"sizes": {"neurons": 4}}, "keys of their own"),
    ],
)
def test_plans_that_make_no_sense_are_refused(changes, says, tmp_path):
    value = {"model_sha": "m", "depth": 3, "width": 4, **changes}
    with pytest.raises(ValidationError, match=says):
        PrunePlan(**value)
    (tmp_path / "p.json").write_text(json.dumps(value, default=list))
    with pytest.raises(PlanError, match=r"p\.json"):
        PrunePlan.read(tmp_path / "p.json")


def test_a_plan_of_the_first_two_axes_is_written_and_hashed_as_in_version_0_1():
    """Run folders and patches of 0.1 name this hash: new axes are written only where they are used."""
    plan = PrunePlan(model_sha="m", depth=3, width=4, drop_layers=(1,), drop_neurons={0: (0, 2), 2: (1, 3)})
    assert plan.sha == "38340c3aa104a6d2"
    assert list(plan.model_dump(mode="json")) == ["model_sha", "depth", "width", "drop_layers", "drop_neurons"]


def test_round_trip_through_json(tmp_path):
    plan = make_plan(NEURONS, LAYERS, "m", n_neurons=1, n_layers=1)
    plan.write(tmp_path / "plan.json")
    assert PrunePlan.read(tmp_path / "plan.json") == plan
    with pytest.raises(MissingPath):
        PrunePlan.read(tmp_path / "other.json")


def test_too_many_layers():
    with pytest.raises(OutOfReach, match="0 to 2"):
        make_plan(NEURONS, LAYERS, "m", n_layers=3)


@pytest.mark.parametrize(
    ("changes", "says"),
    {
        "depth": ({"depth": 10**9, "width": 10**9}, "depth: input should be less than or equal to"),
        "width": ({"width": 10**12}, "width: input should be less"),
        "deep but empty": ({"depth": 10_000, "drop_neurons": {"0": [0]}}, "same number of neurons"),
        "text": ({"depth": "4"}, "depth: input should be a valid integer"),
        "truth": ({"drop_layers": [True]}, "drop_layers.0: input should be a valid integer"),
        "fraction": ({"drop_layers": [1.0]}, "drop_layers.0: input should be a valid integer"),
        "layer": ({"drop_neurons": {"01": [1]}}, "'01' is not the number of a layer"),
        "a layer with a sign": ({"drop_neurons": {"-1": [1]}}, "is not the number of a layer"),
        "a list of layers": ({"drop_neurons": [[1]]}, "drop_neurons: input should be a valid dictionary"),
        "hash": ({"model_sha": 5}, "model_sha: input should be a valid string"),
        "key": ({"widht": 5}, "widht: extra inputs are not permitted"),
    }.values(),
)
def test_a_plan_that_is_none_is_told_with_field_and_value(tmp_path, changes, says):
    file = tmp_path / "p.json"
    file.write_text(json.dumps({"model_sha": "x", "depth": 4, "width": 8} | changes))
    tracemalloc.start()
    with pytest.raises(PlanError) as told:
        PrunePlan.read(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert says in str(told.value) and str(file) in str(told.value)
    assert peak < 2**20, "nothing of a claimed size is made"
