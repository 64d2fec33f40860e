from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from fake_run import fake_run
from prunetune.draw import CSS_NAMES, themed
from prunetune.plots import curve, plots
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


def test_the_loss_curve_counts_steps_over_the_run(run) -> None:
    found = curve(run, "loss")
    assert [name for name, _, _ in found] == [s.name for s in run.stages]
    assert [xs[0] for _, xs, _ in found] == [1, 41, 81, 121]
    assert found[0][2] == [row["loss"] for row in run.stages[0].tune[0].log]
    assert curve(run, "reward") == []
