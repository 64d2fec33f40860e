"""The choice of the final shape, and targets in bytes and in time, on a tiny model from recipe to report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.tiny_run import tiny_recipe

import prunetune.loop.shapes as module
from prunetune.common.progress import Watch
from prunetune.errors import OutOfReach
from prunetune.loop import probe
from prunetune.loop.context import prepare
from prunetune.loop.loop import prune_tune_loop
from prunetune.models.axes import shape_of
from prunetune.models.cost import cost_of
from prunetune.models.folders import load_config
from prunetune.runs.shapes import ShapeRecord

QUICK = {"extends": "recommended", "recover": [{"type": "cpt", "samples": 8, "batch_size": 8, "max_length": 64}]}


def recipe(at: Path, prune: dict, **changes):
    return tiny_recipe(at, **{**QUICK, "prune": {"align": 4, **prune}, **changes})


@pytest.fixture(scope="module")
def chosen(tmp_path_factory):
    """A run whose shape was chosen among neurons and layers."""
    at = tmp_path_factory.mktemp("chosen")
    prune_tune_loop(recipe(at, {"target": 0.7, "axes": ["neurons", "layers"]}), at / "run")
    return at


def record_of(run: Path) -> ShapeRecord:
    return ShapeRecord.read(run / "decisions" / "shape.json")


def test_the_chosen_shape_is_the_least_loss_of_those_that_were_cut_and_meets_the_target(chosen):
    record, config = record_of(chosen / "run"), load_config(chosen / "run" / "final")
    whole = load_config(chosen / "model")
    assert {"layers": config.num_hidden_layers, "neurons": config.intermediate_size}.items() <= record.shape.items()
    measured = [c for c in record.candidates if c.measured is not None]
    assert 2 <= len(measured) <= 12
    assert min(measured, key=lambda c: c.measured).shape == record.shape
    assert all(c.params <= 0.7 * cost_of(whole).params for c in record.candidates)
    for c in record.candidates:
        assert c.params == cost_of(whole, shape=c.shape).params


def test_the_report_shows_every_shape_that_was_cut_and_what_was_asked(chosen):
    text, record = (chosen / "run" / "report.md").read_text(), record_of(chosen / "run")
    assert "## Shapes that were tried" in text
    for c in record.candidates:
        if c.measured is not None:
            assert f"{c.measured:.3f}" in text.split("## Shapes that were tried")[1]
    assert "asked 70.0 % of the parameters, reached" in text
    summary = json.loads((chosen / "run" / "summary.json").read_text())
    assert (summary["asked"], summary["recipe"]["prune"]["axes"]) == (0.7, ["neurons", "layers"])


def test_a_second_start_cuts_nothing_again(chosen, monkeypatch):
    monkeypatch.setattr(probe, "held_out_loss", lambda *a: pytest.fail("measured again"))
    prune_tune_loop(recipe(chosen, {"target": 0.7, "axes": ["neurons", "layers"]}), chosen / "run")


def test_a_killed_search_goes_on_with_the_next_cut(chosen, tmp_path, monkeypatch):
    """The third cut raises; the second start makes only those that were not made, and finds the same shape."""
    real, cuts = probe.apply_in_memory, []

    def counted(model, plan, patch):
        cuts.append((plan.new_depth, plan.new_width))
        if len(cuts) == 3:
            raise KeyboardInterrupt
        return real(model, plan, patch)

    monkeypatch.setattr(probe, "apply_in_memory", counted)
    wanted = recipe(tmp_path, {"target": 0.7, "axes": ["neurons", "layers"]})
    with pytest.raises(KeyboardInterrupt):
        prune_tune_loop(wanted, tmp_path / "run")
    prune_tune_loop(wanted, tmp_path / "run")
    done = cuts[:2] + cuts[3:]
    assert len(set(done)) == len(done), "a shape is cut once, by the search and the round's decision together"
    assert record_of(tmp_path / "run").candidates == record_of(chosen / "run").candidates
    assert not list((tmp_path / "run").rglob("*.half"))


def test_a_target_in_bytes_counts_the_weights_as_stored_and_the_cache(tmp_path):
    wanted = recipe(tmp_path, {"target": "90kB", "context": 100})
    whole = load_config(tmp_path / "model")
    prune_tune_loop(wanted, tmp_path / "run")
    config = load_config(tmp_path / "run" / "final")
    stored = sum(f.stat().st_size for f in (tmp_path / "run" / "final").glob("*.safetensors"))
    cache = cost_of(config, dtype_bytes=4).kv_bytes(100)
    assert stored - 8192 < cost_of(config).params * 4 <= stored
    assert cost_of(config).params * 4 + cache <= 90_000
    wider = {"layers": config.num_hidden_layers, "neurons": config.intermediate_size + 4}
    assert cost_of(whole, shape=wider).params * 4 + cache > 90_000
    assert "asked 90kB, reached" in (tmp_path / "run" / "report.md").read_text()


def test_a_target_in_time_is_met_by_the_timed_shapes(tmp_path, monkeypatch):
    """With a clock that counts layers alone, twice as fast is half of the layers, with all the neurons."""
    monkeypatch.setattr(module, "_clock", lambda *a: type("", (), {"ms": staticmethod(lambda s: float(s["layers"]))}))
    prune_tune_loop(recipe(tmp_path, {"target": "2x"}), tmp_path / "run")
    config = load_config(tmp_path / "run" / "final")
    assert (config.num_hidden_layers, config.intermediate_size) == (2, 48)
    assert "asked 2x, reached" in (tmp_path / "run" / "report.md").read_text()


def test_shapes_are_timed_on_models_of_those_shapes(chosen, monkeypatch):
    """What the clock times has the shape that it is told, and the parameters of a cut to it."""
    timed = []
    monkeypatch.setattr("prunetune.evaluation.speed.decode_ms", lambda model: float(timed.append(model.config) or 1.0))
    context = prepare(recipe(chosen, {"target": "2x"}), chosen / "model", Watch(quiet=True))
    units = shape_of(context.config.to_dict())
    module._clock(context, chosen / "model", "sha", units, ("neurons", "layers"))
    assert [(c.num_hidden_layers, c.intermediate_size) for c in timed] == [(4, 48), (2, 48), (4, 24)]


def test_an_impossible_target_is_told_with_what_is_possible(tmp_path):
    with pytest.raises(OutOfReach, match="no shape of these axes") as e:
        prune_tune_loop(recipe(tmp_path, {"target": 0.05, "axes": ["neurons", "layers"]}), tmp_path / "run")
    assert "at least" in str(e.value)
    assert "prune.axes" in str(e.value)
