"""A run's figures: one look, their own ids, colours of the page, and what they draw is what the records say."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from tests.fake_run import DEPTH, WIDTH, add_perplexity, fake_run

from prunetune.pruning.plan import PrunePlan
from prunetune.report.figures.draw import CSS_NAMES, GONE, HEAT, INK, SERIES, Plot, blank, plot, themed
from prunetune.report.figures.heatmap import removed_map
from prunetune.report.figures.learning import PANELS, curve, rollouts
from prunetune.report.figures.plots import plots
from prunetune.report.write import write_report
from prunetune.runs.reading import RunRecord, read_run


def _draw(name: str) -> Plot:
    def draw():
        figure, axes = blank(2.0)
        for colour in (*SERIES, *HEAT, GONE):
            axes.errorbar([0, 1], [0, 1], yerr=0.1, color=colour, marker="o", label=colour[1:])
        axes.set_xlabel("what")
        return figure

    return plot(name, "A title", "How to read it.", draw)


def test_a_themed_figure_has_the_pages_colours_and_its_own_ids() -> None:
    first, second = themed(_draw("one")), themed(_draw("two"))
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


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("page", ["#ffffff", "#0d1117"])
def test_standalone_tones_read_on_light_and_dark(page) -> None:
    for tone in (INK, *SERIES):
        light, dark = sorted((_luminance(tone), _luminance(page)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 3.0, tone  # WCAG 1.4.11: graphics and large text


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunRecord:
    return read_run(fake_run(tmp_path_factory.mktemp("run")))


def test_every_figure_of_a_finished_run(run) -> None:
    found = {p.name: p for p in plots(run)}
    assert list(found) == ["accuracy-size", "accuracy-round", "held-out-loss", "removed", "loss", "time"]
    for made in found.values():
        assert ET.fromstring(made.svg).tag.endswith("svg")
        assert ET.fromstring(themed(made)).attrib["role"] == "img"
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


def test_removed_map_agrees_with_the_plans(tmp_path) -> None:
    run = read_run(fake_run(tmp_path / "run"))
    found = removed_map(run)
    assert found is not None
    share, gone = found
    last = run.plans()[-1][1]
    assert len(gone) == DEPTH - last.new_depth
    cells = np.diff(np.linspace(0, WIDTH, share.shape[1] + 1).round().astype(int))
    kept = [round(float(((1 - row) * cells).sum())) for i, row in enumerate(share) if i not in gone]
    assert kept == [last.new_width] * last.new_depth


def rewarded(path: Path, reward: float) -> Path:
    """A run whose rounds were pre-trained for 40 steps, then rewarded for 10; `reward`: whether it rises at all."""
    at = fake_run(path)
    for file in at.glob("0*/stage.json"):
        stage = json.loads(file.read_text())
        log = [
            {"step": s, "loss": 0.01 * s, "reward": reward * s / 10, "kl": 0.002 * s, "completion_tokens": 40.0 + s, "clipped": 0.1 / s}
            for s in range(1, 11)
        ]  # fmt: skip
        notes = (
            []
            if reward
            else ["the model never solved a single prompt: it was not recovered, and GRPO cannot do it from here"]
        )
        stage["tune"].append({**stage["tune"][0], "steps": 10, "log": log, "notes": notes})
        if not reward:
            stage["evals"] = [{**e, "correct": 0, "value": 0.0, "stderr": 0.0} for e in stage["evals"]]
        file.write_text(json.dumps(stage))
    return at


def test_the_loss_curve_counts_steps_over_the_run(run) -> None:
    found = curve(run, "loss")
    assert [name for name, _, _ in found] == [s.name for s in run.stages]
    assert [xs[0] for _, xs, _ in found] == [1, 41, 81, 121]
    assert found[0][2] == [row["loss"] for row in run.stages[0].tune[0].log]
    assert curve(run, "reward") == []
    assert rollouts(run) is None


def test_reinforcement_learning_has_its_curves_in_both_reports(tmp_path) -> None:
    at = rewarded(tmp_path / "run", 1.0)
    run = read_run(at)
    assert [xs[0] for _, xs, _ in curve(run, "reward")] == [41, 91, 141, 191], "after the pre-training of its round"
    assert [xs[0] for _, xs, _ in curve(run, "loss")] == [1, 51, 101, 151]
    assert curve(run, "kl")[0][2] == [0.002 * s for s in range(1, 11)]
    write_report(at)
    page, text, figure = ((at / f).read_text() for f in ("report.html", "report.md", "figures/reward.svg"))
    assert "figures/reward.svg" in text and "Reinforcement learning" in text
    assert "Reinforcement learning" in page and "hit the length limit" in page
    for _, label, _ in PANELS:
        assert label in figure and label in page


def test_a_model_that_never_scores_is_reported_as_such(tmp_path) -> None:
    at = rewarded(tmp_path / "run", 0.0)
    write_report(at)
    for name in ("report.html", "report.md"):
        text = (at / name).read_text()
        assert "never solved a single prompt: it was not recovered" in text
        assert "04-layers-2: accuracy on demo collapsed" in text and "no right answer at all" in text
    assert "collapsed" not in (_report(fake_run(tmp_path / "other")) / "report.md").read_text()


def _report(at: Path) -> Path:
    write_report(at)
    return at
