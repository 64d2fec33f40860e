from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from fake_run import DEPTH, WIDTH, fake_run
from prunetune.plan import PrunePlan
from prunetune.plots import CSS_NAMES, curve, plots, removed_map, themed
from prunetune.records import RunRecord, read_run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunRecord:
    return read_run(fake_run(tmp_path_factory.mktemp("run")))


def test_every_figure_of_a_finished_run(run) -> None:
    found = {p.name: p for p in plots(run)}
    assert list(found) == ["accuracy-size", "accuracy-round", "held-out-loss", "removed", "loss", "time"]
    for plot in found.values():
        assert ET.fromstring(plot.svg).tag.endswith("svg")
        assert ET.fromstring(themed(plot)).attrib["role"] == "img"
    assert "pruned once" in found["accuracy-size"].svg
    assert "gsm_symbolic" in found["accuracy-round"].svg


def test_a_themed_figure_has_the_pages_colours_and_its_own_ids(run) -> None:
    first, second = (themed(p) for p in plots(run)[:2])
    for svg in (first, second):
        assert not [c for c in CSS_NAMES if c in svg], "a colour that does not follow the theme"
        assert "DejaVu" not in svg
        assert "<style" not in svg

    def ids(svg: str) -> set[str]:
        return {e.attrib["id"] for e in ET.fromstring(svg).iter() if "id" in e.attrib}

    assert not ids(first) & ids(second)
    for svg in (first, second):
        targets = {v.lstrip("#") for e in ET.fromstring(svg).iter() for k, v in e.attrib.items() if k.endswith("href")}
        assert targets
        assert targets <= ids(svg)


def test_figures_are_the_same_every_time(run) -> None:
    assert [p.svg for p in plots(run)] == [p.svg for p in plots(run)]


def test_no_figure_of_what_is_not_recorded(tmp_path) -> None:
    at = tmp_path / "run/original"
    at.mkdir(parents=True)
    (at / "stage.json").write_text('{"index": 0, "name": "original"}')
    assert plots(read_run(tmp_path / "run")) == []


def _chain(path: Path, plans: list[PrunePlan]) -> RunRecord:
    for i, plan in enumerate(plans, 1):
        at = path / f"0{i}-x"
        at.mkdir(parents=True)
        (at / "plan.json").write_text(plan.model_dump_json())
        (at / "stage.json").write_text(json.dumps({"index": i, "name": at.name}))
    return read_run(path)


def test_plans_compose_to_places_in_the_original(tmp_path) -> None:
    first = PrunePlan(model_sha="a", depth=3, width=4, drop_layers=(1,), drop_neurons={0: (0,), 2: (3,)})
    second = PrunePlan(model_sha="b", depth=2, width=3, drop_neurons={0: (0,), 1: (2,)})
    found = removed_map(_chain(tmp_path, [first, second]))
    assert found is not None
    share, gone = found
    assert gone == {1: "01-x"}
    # layer 0 lost neuron 0, then the first of 1, 2, 3; layer 2 lost neuron 3, then the last of 0, 1, 2
    np.testing.assert_array_equal(share, [[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 1, 1]])


def test_plans_that_do_not_fit_each_other_are_not_drawn(tmp_path) -> None:
    first = PrunePlan(model_sha="a", depth=3, width=4, drop_layers=(1,))
    assert removed_map(_chain(tmp_path, [first, first])) is None


def test_removed_map_agrees_with_the_plans(run) -> None:
    found = removed_map(run)
    assert found is not None
    share, gone = found
    last = run.plans()[-1][1]
    assert len(gone) == DEPTH - last.new_depth
    cells = np.diff(np.linspace(0, WIDTH, share.shape[1] + 1).round().astype(int))
    kept = [round(float(((1 - row) * cells).sum())) for i, row in enumerate(share) if i not in gone]
    assert kept == [last.new_width] * last.new_depth


def test_the_loss_curve_counts_steps_over_the_run(run) -> None:
    found = curve(run, "loss")
    assert [name for name, _, _ in found] == [s.name for s in run.stages]
    assert [xs[0] for _, xs, _ in found] == [1, 41, 81, 121]
    assert found[0][2] == [row["loss"] for row in run.stages[0].tune[0].log]
    assert curve(run, "reward") == []
