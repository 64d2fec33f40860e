from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.fake_run import fake_run

from prunetune.report.figures.learning import PANELS, curve, rollouts
from prunetune.report.write import write_report
from prunetune.runs.reading import RunRecord, read_run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunRecord:
    return read_run(fake_run(tmp_path_factory.mktemp("run")))


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
