"""Heads in rounds: named by `prune.cut` or found by the choice among axes, on a tiny model from recipe to report."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny_run import tiny_recipe

import prunetune
from prunetune.cli.about_model import description
from prunetune.common.progress import Watch
from prunetune.errors import OutOfReach, PrunetuneError, RecipeError, UnsupportedModel
from prunetune.loop import shapes
from prunetune.loop.context import prepare
from prunetune.loop.loop import prune_tune_loop
from prunetune.models.axes import AXES, shape_of
from prunetune.models.axes.heads import HEADS, attention
from prunetune.models.cost import cost_of
from prunetune.models.folders import load_config, load_model
from prunetune.pruning.apply import apply_in_memory
from prunetune.pruning.plan import make_plan
from prunetune.pruning.scores import score
from prunetune.runs.shapes import ShapeRecord
from prunetune.schedule.damage import Probe

QUIET = Watch(quiet=True)
QUICK = {"extends": "recommended", "recover": [{"type": "cpt", "samples": 8, "batch_size": 8, "max_length": 64}]}
BARE = {"recover": [], "compensate": "none", "budget": "equal"}


def recipe(at, prune, family="llama", **changes):
    return tiny_recipe(at, family, **{**QUICK, "prune": {"align": 4, **prune}, **changes})


def stages(run):
    return [json.loads(p.read_text()) for p in sorted(run.glob("[0-9]*/stage.json"))]


def test_a_named_cut_of_one_round_is_the_plan_of_the_same_amounts(tmp_path):
    """Against surgery in memory by the scores of the untouched model: the same tensors."""
    wanted = recipe(tmp_path, {"target": {"width": 32}, "cut": {"heads": 1}, "rounds": 1}, **BARE)
    summary = prune_tune_loop(wanted, tmp_path / "run", QUIET)
    context = prepare(wanted, tmp_path / "model", QUIET)
    model = load_model(tmp_path / "model")
    scores = score(model, context.scoring, neuron_criterion=wanted.score.criterion, more=("heads",))
    plan = make_plan(
        scores.neurons.tolist(), scores.layers.tolist(), "", n_neurons=16, others=scores.others({"heads": 1})
    )
    mine, found = apply_in_memory(model, plan).state_dict(), load_file(tmp_path / "run/final/model.safetensors")
    assert found and all(torch.equal(mine[name], tensor) for name, tensor in found.items())
    assert summary.shape == shape_of(mine_config := load_config(tmp_path / "run/final").to_dict()) | {
        "vocabulary": mine_config["vocab_size"]
    }
    (stage,) = stages(tmp_path / "run")
    assert (stage["name"], stage["removed"]["others"]) == ("01-neurons-16+heads-1", {"heads": 1})


@pytest.fixture(scope="module")
def rounds(tmp_path_factory):
    """Three rounds by damage to 60 %, a group of heads in the first."""
    at = tmp_path_factory.mktemp("rounds")
    wanted = recipe(at, {"target": 0.6, "cut": {"heads": 1}, "rounds": 3})
    prune_tune_loop(wanted, at / "run", QUIET)
    return at, wanted


def test_heads_go_in_the_first_round_and_sizes_count_against_the_untouched_model(rounds):
    at, _ = rounds
    whole, done = cost_of(load_config(at / "model")).params, stages(at / "run")
    assert [s["shape"]["heads"] for s in done] == [1, 1, 1] and len(done) == 3
    assert [s["step"].get("more") for s in done] == [{"heads": 1}, None, None]
    summary = json.loads((at / "run/summary.json").read_text())
    assert summary["params_ratio"] == done[-1]["cost"]["params"] / whole <= 0.6
    wider = {**done[-1]["shape"], "neurons": done[-1]["shape"]["neurons"] + 4}
    assert cost_of(load_config(at / "model"), shape=wider).params > 0.6 * whole, "no neuron goes that need not"
    assert summary["original"]["cost"]["params"] == whole


def test_probes_are_of_models_without_these_heads(rounds):
    at, _ = rounds
    first = json.loads((at / "run/decisions/01.json").read_text())
    for probe in first["probes"]:
        shape = {"layers": probe["depth"], "neurons": probe["width"], "heads": 1}
        assert probe["params"] == cost_of(load_config(at / "model"), shape=shape).params
    (done, *_) = stages(at / "run")
    same = [p["loss"] for p in first["probes"] if (p["depth"], p["width"]) == (done["depth"], done["width"])]
    assert all(loss == pytest.approx(done["pruned_loss"], abs=2e-3) for loss in same)


def test_a_second_start_makes_nothing_again(rounds):
    at, wanted = rounds
    times = {p: p.stat().st_mtime_ns for p in (at / "run").rglob("*.safetensors")}
    prune_tune_loop(wanted, at / "run", QUIET)
    assert {p: p.stat().st_mtime_ns for p in (at / "run").rglob("*.safetensors")} == times
    report = (at / "run/report.md").read_text()
    assert re.search(r"^\| heads \| 2 \| \*\*1\*\* \|", report, re.MULTILINE) and "query heads" not in report


@pytest.fixture
def one_entry(monkeypatch):
    """An axis that nobody names but its one entry in the registry."""
    alone = {"beside": (), "slices": lambda family, shape: attention(family, queries=2, keys=1)}  # of the tiny model
    monkeypatch.setitem(AXES, "kv_groups", replace(HEADS, name="kv_groups", **alone))


def test_an_axis_needs_nothing_but_its_entry(one_entry, tmp_path):
    """The same cut by another name: from the recipe over scores, plan, cut and cost to the same weights and a report."""
    for name in ("heads", "kv_groups"):
        wanted = recipe(
            tmp_path, {"target": 0.7, "cut": {name: 1}, "rounds": 1}, **{**BARE, "compensate": "least-squares"}
        )
        prune_tune_loop(wanted, tmp_path / name, QUIET)
    ours, theirs = (load_file(tmp_path / name / "final/model.safetensors") for name in ("kv_groups", "heads"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    (stage,) = stages(tmp_path / "kv_groups")
    assert stage["removed"]["others"] == {"kv_groups": 1} and stage["shape"]["kv_groups"] == 1
    assert "| kv groups |" in (tmp_path / "kv_groups/report.md").read_text()
    held = description(load_config(tmp_path / "model").to_dict(), target=0.5, step=0.1, gpu="L4", tokens=1)[0]["axes"]
    assert {row["axis"]: row["params"] for row in held}["kv_groups"] == {r["axis"]: r["params"] for r in held}["heads"]


def test_no_file_but_its_own_names_an_axis_in_blocks():
    """What docs/architecture.md claims of a new axis: its own file, its line in the registry, and no third."""
    root = Path(prunetune.__file__).parent
    for file in root.rglob("*.py"):
        if file.is_relative_to(root / "models" / "axes"):
            continue
        nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        named = {n.value for n in nodes if isinstance(n, ast.Constant) and n.value in ("heads", "query_heads")}
        assert not named - ({"heads"} if file.name == "shape.py" else set()), f"{file}: {named}"  # there: a field


def test_heads_alone_are_a_round(tmp_path):
    wanted = recipe(tmp_path, {"target": {"width": 48}, "cut": {"query_heads": 1}})
    prune_tune_loop(wanted, tmp_path / "run", QUIET)
    (stage,) = stages(tmp_path / "run")
    assert (stage["name"], stage["width"], stage["depth"]) == ("01-others-query_heads-1", 48, 4)
    assert load_config(tmp_path / "run/final").num_attention_heads == 2


@pytest.mark.parametrize("fake", [False, True], ids=["measured", "heads cost nothing"])
def test_the_choice_among_axes_takes_the_shape_of_least_loss_and_the_rounds_cut_it(fake, tmp_path, monkeypatch):
    if fake:
        losses = {True: 1.0, False: 2.0}
        monkeypatch.setattr(shapes, "losses", lambda *a: [Probe(*a[5][0], 0, losses[bool(a[6])])])
    prune_tune_loop(
        recipe(tmp_path, {"target": 0.85, "axes": ["neurons", "query_heads"], "rounds": 1}, **BARE),
        tmp_path / "run",
        QUIET,
    )
    record = ShapeRecord.read(tmp_path / "run/decisions/shape.json")
    measured = [c for c in record.candidates if c.measured is not None]
    assert {c.shape["query_heads"] for c in measured} == {1, 2}
    assert min(measured, key=lambda c: c.measured).shape == record.shape
    assert not fake or record.shape["query_heads"] == 1
    config = load_config(tmp_path / "run/final")
    assert (config.num_attention_heads, config.intermediate_size) == (
        2 * record.shape["query_heads"],
        record.shape["neurons"],
    )
    assert cost_of(config).params <= 0.85 * cost_of(load_config(tmp_path / "model")).params


def test_a_family_whose_heads_stay_is_refused_by_name_and_left_out_of_a_choice(tmp_path, capsys):
    with pytest.raises(UnsupportedModel, match="all heads together"):
        prepare(recipe(tmp_path, {"target": 0.7, "cut": {"heads": 1}}, "olmo2"), tmp_path / "model", QUIET)
    wanted = recipe(tmp_path, {"target": 0.8, "axes": ["neurons", "heads"]}, "olmo2")
    prune_tune_loop(wanted, tmp_path / "run")
    assert "heads: none can go" in capsys.readouterr().err
    assert (
        load_config(tmp_path / "run/final").num_key_value_heads == load_config(tmp_path / "model").num_key_value_heads
    )


def test_what_cannot_be_is_told_before_any_work(tmp_path):
    with pytest.raises(OutOfReach, match="this many key/value groups"):
        prepare(recipe(tmp_path, {"target": 0.7, "cut": {"heads": 2}}), tmp_path / "model", QUIET)
    refused = [
        {"prune": {"target": 0.7, "cut": {"width": 1}}},
        {"prune": {"target": 0.7, "cut": {"heads": 1}, "axes": ["neurons"]}},
        {"prune": {"target": 0.7, "cut": {"heads": 1}}, "stop_at": {"accuracy": 0.9}},
        {"prune": {"target": 0.7, "axes": ["neurons", "heads"]}, "score": {"criterion": "ptl_vote", "samples": 8}},
    ]
    for changes, said in zip(refused, ("cut has no 'width'", "no axes", "stop_at", "alone"), strict=True):
        with pytest.raises(RecipeError, match=said) as e:
            tiny_recipe(tmp_path, **{**QUICK, **changes})
        assert isinstance(e.value, PrunetuneError)
