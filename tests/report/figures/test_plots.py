from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
from tests.fake_run import add_perplexity, fake_run

from prunetune.report.figures.draw import themed
from prunetune.report.figures.plots import plots
from prunetune.runs.reading import RunRecord, read_run


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


def test_figures_are_the_same_every_time(run) -> None:
    assert [p.svg for p in plots(run)] == [p.svg for p in plots(run)]


def test_no_figure_of_what_is_not_recorded(tmp_path) -> None:
    at = tmp_path / "run/original"
    at.mkdir(parents=True)
    (at / "stage.json").write_text('{"index": 0, "name": "original"}')
    assert plots(read_run(tmp_path / "run")) == []


def test_a_perplexity_has_a_figure_of_its_own(run, tmp_path) -> None:
    also = {p.name: p for p in plots(read_run(add_perplexity(fake_run(tmp_path / "run"))))}
    assert "perplexity (original 1,234.0 ± 12.0)" in also["controls-round"].svg
    before = {p.name: p for p in plots(run)}
    for name in ("accuracy-size", "accuracy-round"):
        assert also[name].svg == before[name].svg, "accuracies alone share an axis in percent"
