from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.fake_run import TASKS, fake_run

from prunetune.errors import BadCheckpoint, MissingPath
from prunetune.runs.reading import read_run
from prunetune.runs.records import FULL, EvalRecord, FullRecord, StageRecord
from prunetune.runs.summary import Summary


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return fake_run(tmp_path_factory.mktemp("run"))


def test_a_finished_run(folder) -> None:
    run = read_run(folder)
    assert run.finished
    assert run.original is not None
    assert [s.name for s in run.stages] == ["01-neurons-16", "02-neurons-16", "03-neurons-16", "04-layers-2"]
    assert run.final is run.stages[-1]
    assert run.tasks == tuple(TASKS)
    assert run.control is not None
    assert run.control.final is not None
    assert run.recovery_tokens() == run.control.recovery_tokens() == 4 * 20480
    assert run.seconds()["score"] == 16.0
    assert [p.new_width for _, p in run.plans()] == [80, 64, 48, 48]


def test_half_a_run_is_read_too(tmp_path) -> None:
    run = read_run(fake_run(tmp_path / "half", finished=False))
    assert not run.finished
    assert run.control is None
    assert run.final is not None
    assert run.final.name == "02-neurons-16"


def test_final_is_the_newest_accepted_stage(tmp_path) -> None:
    at = fake_run(tmp_path / "run", finished=False)
    stage = json.loads((at / "02-neurons-16/stage.json").read_text())
    (at / "02-neurons-16/stage.json").write_text(json.dumps({**stage, "verdict": {"accepted": False, "why": "fell"}}))
    run = read_run(at)
    assert [s.name for s in run.accepted] == ["01-neurons-16"]
    assert run.final is run.stages[0]
    assert run.recovery_tokens() == 2 * 20480, "a rejected attempt's tokens were spent all the same"


def test_nulls_and_missing_keys_are_unknown_not_zero(tmp_path) -> None:
    at = tmp_path / "run/original"
    at.mkdir(parents=True)
    (at / "stage.json").write_text('{"index": 0, "name": "original", "cost": null, "evals": null, "tokens": null}')
    run = read_run(tmp_path / "run")
    assert run.original is not None
    assert (run.original.tokens, run.original.cost.params, run.tasks, run.final) == (None, None, (), None)
    assert run.recovery_tokens() is None


@pytest.mark.parametrize("content", ["[]", '{"index": "x", "name": "original"}', '{"name": "original"}', "{"])
def test_a_broken_record_is_named(tmp_path, content) -> None:
    at = tmp_path / "run/original"
    at.mkdir(parents=True)
    (at / "stage.json").write_text(content)
    with pytest.raises(BadCheckpoint, match=r"stage\.json"):
        read_run(tmp_path / "run")


def test_what_is_read_is_written_again(folder) -> None:
    """Nothing is lost and nothing is added: the same keys, the same nulls, keys of another version too."""
    for file in [*folder.glob("*/stage.json"), *folder.glob("control/*/stage.json")]:
        value = {**json.loads(file.read_text()), "of_a_newer_version": [1]}
        assert json.loads(json.dumps(StageRecord.model_validate(value).to_json())) == value
    value = json.loads((folder / "summary.json").read_text())
    del value["control"]["accuracy"]  # a bare number is read as the final figure
    assert json.loads(json.dumps(Summary.model_validate(value).to_json())) == value


def test_a_stage_that_does_not_say_what_is_needed_is_named() -> None:
    bare = StageRecord(index=0, name="original")
    assert (bare.accepted, bare.why, bare.mean_accuracy) == (True, "", -1.0)
    for needed in (lambda: bare.place, lambda: bare.loss):
        with pytest.raises(BadCheckpoint, match="does not say"):
            needed()


def test_the_final_models_figures_on_all_questions_take_the_place_of_the_rounds(tmp_path) -> None:
    at = fake_run(tmp_path / "run") / "04-layers-2"
    e = EvalRecord(task="demo", value=0.5, n=999)
    (at / FULL).write_text(json.dumps(FullRecord(evals=(e,), flops={"demo": 7.0}).to_json()))
    stage = read_run(tmp_path / "run").stages[-1]
    assert (stage.evals, stage.cost.flops, stage.cost.params) == ((e,), {"demo": 7.0}, stage.params)


def test_no_run(tmp_path) -> None:
    with pytest.raises(MissingPath, match="no such run folder"):
        read_run(tmp_path / "none")
    with pytest.raises(MissingPath, match="holds no run"):
        read_run(tmp_path)
