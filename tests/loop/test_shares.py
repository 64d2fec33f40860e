"""Methods of the last round alone, and methods with data of their own: what they get, and what they train on."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny_run import tiny_recipe

from prunetune.baselines.full_model import full_model_run
from prunetune.cli.commands import method_of
from prunetune.common.progress import Watch
from prunetune.data.stream import FileData
from prunetune.errors import RecipeError, TuneError
from prunetune.loop.loop import prune_tune_loop
from prunetune.loop.recovery.shares import used
from prunetune.runs.folder import RunFolder
from prunetune.runs.records import StageRecord, TuneRecord
from prunetune.tune.job import TuneJob
from prunetune.tune.methods import Cpt
from prunetune.tune.stage import run_job
from prunetune.tune.training.trainers import RUNNERS, Runner

QUIET = Watch(quiet=True)
SMALL = {"batch_size": 8, "learning_rate": 1e-3, "max_length": 64}
TWO = {"target": 0.75, "rounds": 2, "align": 4, "layers": 0}


def stages(out):
    return [json.loads(p.read_text()) for p in sorted(out.glob("[0-9]*-*/stage.json"))]


def own_rows(at, n=60):
    lines = [{"question": f"{i}*3", "answer": f"{i}*3={3 * i} #### {3 * i}"} for i in range(n)]
    (at / "own.jsonl").write_text("".join(json.dumps(r) + "\n" for r in lines))
    return {"type": "file", "path": str(at / "own.jsonl")}


def test_a_method_of_the_last_round_runs_there_alone_with_its_whole_budget(tmp_path):
    recover = [{"type": "cpt", "samples": 48, **SMALL}, {"type": "sft", "samples": 16, "when": "last", **SMALL}]
    prune_tune_loop(tiny_recipe(tmp_path, prune=TWO, recover=recover), tmp_path / "out", QUIET)
    first, last = stages(tmp_path / "out")
    assert [(t["method"], t["samples"]) for t in first["tune"]] == [("cpt", 24)]
    assert [(t["method"], t["samples"]) for t in last["tune"]] == [("cpt", 24), ("sft", 16)]
    assert last["samples"] == [first["samples"][1], first["samples"][1] + 40]


def test_the_control_gets_what_the_rounds_got(tmp_path):
    recover = [
        {"type": "cpt", "samples": 16, "per": "round", **SMALL},
        {"type": "sft", "samples": 16, "per": "round", "when": "last", **SMALL},
    ]
    prune_tune_loop(tiny_recipe(tmp_path, prune=TWO, recover=recover, control="once"), tmp_path / "out", QUIET)
    (once,) = stages(tmp_path / "out" / "control")
    assert [t["samples"] for t in once["tune"]] == [32, 16]
    full = full_model_run(tiny_recipe(tmp_path, prune=TWO, recover=recover), tmp_path / "full", QUIET)
    assert [[t["samples"] for t in s["tune"]] for s in full["stages"]] == [[16], [16, 16]]


def test_by_damage_too_the_budget_of_the_last_round_is_whole(tmp_path):
    recover = [{"type": "cpt", "samples": 48, **SMALL}, {"type": "sft", "samples": 16, "when": "last", **SMALL}]
    recipe = tiny_recipe(tmp_path, prune=TWO, recover=recover, budget="damage")
    prune_tune_loop(recipe, tmp_path / "out", QUIET)
    done = stages(tmp_path / "out")
    assert sum(s["tune"][0]["samples"] for s in done) == 48
    assert [len(s["tune"]) for s in done] == [1] * (len(done) - 1) + [2]
    assert done[-1]["tune"][1]["samples"] == 16


def test_own_data_go_on_from_round_to_round_beside_the_recipes(tmp_path):
    """The second round's model is what a job by hand makes of the second part of the method's own file."""
    own = own_rows(tmp_path)
    method = {"type": "cpt", "samples": 32, "data": [own], **SMALL}
    recipe = tiny_recipe(tmp_path, prune=TWO, recover=[method], keep="all")
    summary = prune_tune_loop(recipe, tmp_path / "out", QUIET)
    first, last = stages(tmp_path / "out")
    assert [s["tune"][0]["samples"] for s in (first, last)] == [16, 16]
    assert first["samples"] == last["samples"] == [12, 12]  # nothing of the recipe's own stream
    at = tmp_path / "out" / last["name"]
    job = TuneJob(
        model=at / "pruned", out=tmp_path / "hand", work=tmp_path / "work", method=Cpt(**SMALL),
        sources=(FileData(path=own["path"]),), start=16, end=32, device="cpu",
    )  # fmt: skip
    run_job(job)
    ours, theirs = (load_file(p / "model.safetensors") for p in (at / "tuned", tmp_path / "hand"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert summary["leaks"]["sums"]["normalised"] == 0  # the task's questions are in the recipe's rows, not in these


def test_own_data_are_looked_through_for_the_tasks_questions(tmp_path):
    same = [{"type": "file", "path": str(tmp_path / "rows.jsonl")}]
    recipe = tiny_recipe(tmp_path, prune=TWO, recover=[{"type": "cpt", "samples": 200, "data": same, **SMALL}])
    summary = prune_tune_loop(recipe, tmp_path / "out", QUIET)
    assert summary["leaks"]["sums"]["normalised"] == summary["leaks"]["sums"]["questions"] == 4


def test_a_killed_run_goes_on_with_the_same_parts(tmp_path, monkeypatch):
    recover = [
        {"type": "cpt", "samples": 32, **SMALL},
        {"type": "sft", "samples": 16, "when": "last", "data": [own_rows(tmp_path)], **SMALL},
    ]
    recipe = tiny_recipe(tmp_path, prune=TWO, recover=recover)
    whole = prune_tune_loop(recipe, tmp_path / "whole", QUIET)
    with monkeypatch.context() as patch:
        patch.setitem(RUNNERS, "sft", Runner(lambda stage: (_ for _ in ()).throw(KeyboardInterrupt)))
        with pytest.raises(KeyboardInterrupt):
            prune_tune_loop(recipe, tmp_path / "killed", QUIET)
    again = prune_tune_loop(recipe, tmp_path / "killed", QUIET)
    assert again["final"]["model_sha"] == whole["final"]["model_sha"]
    with RunFolder.open(tmp_path / "killed", recipe, tmp_path / "model") as run:
        assert [len(s.tune) for s in run.stages] == [1, 2]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"recover": [{"type": "cpt", "when": "last"}]}, "without recovery"),
        (
            {"recover": [{"type": "cpt"}, {"type": "sft", "when": "last"}], "stop_at": {"accuracy": 0.9}},
            "known to be the last",
        ),
        (
            {
                "recover": [{"type": "cpt"}, {"type": "sft", "when": "last"}],
                "prune": {"sigma_neuron": 0.1, "max_rounds": 2},
            },
            "known to be the last",
        ),
    ],
)
def test_a_last_round_that_cannot_be_known_is_refused(tmp_path, changes, said):
    with pytest.raises(RecipeError, match=said):
        tiny_recipe(tmp_path, **changes)


def test_outside_a_recipe_both_keys_are_refused(tmp_path):
    (tmp_path / "when.yaml").write_text("when: last\n")
    with pytest.raises(RecipeError, match="for recipes"):
        method_of("cpt", tmp_path / "when.yaml")
    job = {"model": "a", "out": "b", "work": "c", "method": {"type": "cpt", "when": "last"}}
    (tmp_path / "job.json").write_text(json.dumps({**job, "sources": [own_rows(tmp_path)]}))
    with pytest.raises(TuneError, match="for recipes"):
        TuneJob.read(tmp_path / "job.json")


def test_further_passes_over_the_same_data_are_no_further_data(tmp_path):
    """What is left of a budget is data: 300 trained tokens of three passes are 100 of it."""
    local = {"type": "local", "tokens": 500, "per": "run", **SMALL}
    recipe = tiny_recipe(tmp_path, recover=[{"type": "cpt", "tokens": 900, "epochs": 3, **SMALL}, local])
    tune = (
        TuneRecord(method="cpt", samples=10, tokens=300),
        TuneRecord(method="local", samples=7, tokens=4000, data_tokens=210),
    )
    stages = [StageRecord(index=1, name="01", tune=tune)]
    assert [used(recipe, stages, i) for i in range(2)] == [(10, 100), (7, 210)]


@pytest.mark.parametrize("budget", ["equal", "damage"])
@pytest.mark.parametrize("asked", [{"tokens": 10_000_000}, {"samples": 100_000}])
def test_where_data_are_fewer_than_the_budget_every_round_still_finds_some(tmp_path, asked, budget, capsys):
    """The first round took them all, and the second one stopped the run."""
    recipe = tiny_recipe(tmp_path, prune=TWO, recover=[{"type": "cpt", **asked, **SMALL}], budget=budget)
    prune_tune_loop(recipe, tmp_path / "out", Watch())
    taken = [s["tune"][0]["samples"] for s in stages(tmp_path / "out")]
    assert sum(taken) == pytest.approx(188, abs=1) and min(taken) > 0
    assert capsys.readouterr().err.count("cpt: the data hold 188 sequences") == 1


def test_a_search_on_few_data_has_more_than_one_try(tmp_path):
    """Each of six tries gets a sixth of what there is, not of a budget that is not there."""
    stop = {"accuracy": 0.99, "n": 60}
    recover = [{"type": "cpt", "tokens": 10_000_000, **SMALL}]
    recipe = tiny_recipe(tmp_path, prune={"target": 0.6, "align": 4, "layers": 0}, recover=recover, stop_at=stop)
    prune_tune_loop(recipe, tmp_path / "out", QUIET)
    assert stages(tmp_path / "out")[0]["tune"][0]["samples"] == 188 // 6
