"""The run folder's own rules: who is current, what is deleted, what survives."""

from __future__ import annotations

import pytest
from tests.tiny_run import tiny_recipe

from prunetune.common.files import write_json
from prunetune.errors import BadCheckpoint, RecipeChanged
from prunetune.pruning.plan import PrunePlan
from prunetune.runs import folder
from prunetune.runs.folder import RunFolder, Timed, layer_origins
from prunetune.runs.records import FULL, EvalRecord, FullRecord, StageRecord, read_stage
from prunetune.schedule.steps import Step


def stage(run, index, value, *, layers=(), neurons=8, accepted=True, attempt=1):
    name = Step(index, neurons, len(layers), attempt).name
    at = run.folder(name)
    for sub in ("pruned", "tuned", ".tuned-0"):
        (at / sub).mkdir(parents=True)
    PrunePlan(model_sha="m", depth=4 - len(layers) * (index - 1), width=48, drop_layers=tuple(layers)).write(
        at / "plan.json"
    )
    record = {
        "index": index, "name": name, "attempt": attempt, "step": {"index": index, "neurons": neurons, "layers": len(layers), "attempt": attempt},
        "depth": 4, "width": 48, "model_sha": f"sha{index}", "evals": [{"task": "t", "value": value}], "samples": [10 * index, 10 * index + 10],
        "removed": {"neurons": neurons, "layers": list(layers)}, "verdict": {"accepted": accepted},
    }  # fmt: skip
    run.record(StageRecord.model_validate(record))
    return at


@pytest.fixture
def run(tmp_path):
    with RunFolder.open(tmp_path / "run", tiny_recipe(tmp_path), tmp_path / "model") as opened:
        write_json(opened.path / "original" / "stage.json", {"index": 0, "name": "original", "depth": 4, "width": 48})
        yield opened


def test_before_any_round_the_original_is_current(run):
    assert (run.stages, run.accepted, run.original.name) == ([], [], "original")
    assert run.model_of(run.original) == run.source
    assert layer_origins(run) == [0, 1, 2, 3]


def test_newest_and_best_stay(run):
    folders = [stage(run, i + 1, v) for i, v in enumerate((0.5, 0.9, 0.7, 0.6))]
    run.tidy("best")
    assert [(f / "tuned").is_dir() for f in folders] == [False, True, False, True]
    assert not any((f / "pruned").exists() or (f / ".tuned-0").exists() for f in folders)
    assert run.model_of(run.accepted[-1]) == folders[-1] / "tuned"


def test_keep_all(run):
    folders = [stage(run, i + 1, 0.5) for i in range(2)]
    run.tidy("all")
    assert all((f / "tuned").is_dir() and (f / "pruned").is_dir() for f in folders)


def test_rejected_attempts_are_history_but_not_current(run):
    stage(run, 1, 0.9)
    stage(run, 2, 0.1, accepted=False)
    assert [s.index for s in run.accepted] == [1]
    assert [s.accepted for s in run.stages] == [True, False]


def test_layer_origins_follow_the_plans(run):
    stage(run, 1, 0.5, layers=(1,))
    stage(run, 2, 0.5, layers=(0,))
    assert layer_origins(run) == [2, 3]


def test_a_model_that_is_gone_is_said(run):
    at = stage(run, 1, 0.5)
    (at / "tuned").rmdir()
    with pytest.raises(BadCheckpoint, match="gone"):
        run.model_of(run.accepted[-1])


def test_unfinished_folders_of_another_schedule_go(run):
    (run.folder("01-neurons-16") / "pruned").mkdir(parents=True)
    kept = stage(run, 1, 0.5)
    run.clear_unfinished(Step(1, 24, 0))
    assert not run.folder("01-neurons-16").exists()
    assert kept.is_dir()


def test_adopting_another_recipe(run, tmp_path):
    recipe = tiny_recipe(tmp_path)
    run.adopt(recipe.changed(do_no_harm=True))  # nothing made depends on it: a corrected recipe is welcome
    with pytest.raises(RecipeChanged, match="nothing is thrown away"):
        run.adopt(recipe.changed(seed=3))  # the original was measured with these data
    run.adopt(recipe)
    stage(run, 1, 0.5)
    with pytest.raises(RecipeChanged):
        run.adopt(recipe.changed(seed=5))
    (run.path / "recipe.yaml").write_text("a: [")
    with pytest.raises(BadCheckpoint):
        run.adopt(recipe)


def test_seconds_survive_a_restart(tmp_path):
    Timed(tmp_path).once("x", "tune", 1, lambda tmp: tmp.write_text("x"))
    again = Timed(tmp_path)
    again.once("x", "tune", 1, lambda tmp: pytest.fail("made again"))
    assert again.seconds["tune"] >= 0


def test_a_high_perplexity_makes_no_stage_the_best():
    evals = [{"value": 0.25, "metric": "accuracy"}, {"value": 1e6, "metric": "perplexity"}, {"value": 0.75}]
    assert StageRecord(index=1, name="01", evals=[{"task": "t", **e} for e in evals]).mean_accuracy == 0.5


def test_a_file_is_read_once_until_it_changes(run, monkeypatch):
    reads = []
    monkeypatch.setattr(folder, "read_stage", lambda path: reads.append(path) or read_stage(path))
    stage(run, 1, 0.5)
    for _ in range(3):
        assert [s.mean_accuracy for s in run.stages] == [0.5]
    assert len(reads) == 1
    full = FullRecord(evals=(EvalRecord(task="t", value=0.75),), flops={})
    write_json(run.folder("01-neurons-8") / FULL, full.to_json())
    assert [s.mean_accuracy for s in (*run.stages, *run.accepted)] == [0.75, 0.75]
    assert len(reads) == 2
