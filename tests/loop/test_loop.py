"""Algorithm 1 on tiny models: the contract of the run folder, resuming after kills, deeper targets, thresholds."""

from __future__ import annotations

import itertools
import json
import re

import pytest
from safetensors.torch import load_file
from tests.tiny_run import rows, tiny_recipe
from transformers import AutoModelForCausalLM, AutoTokenizer

from prunetune.cli.preview import closing
from prunetune.common.progress import Watch
from prunetune.errors import Declined, NotWritable, OutOfReach, RecipeChanged, TaskError
from prunetune.loop.loop import prune_tune_loop
from prunetune.models.cost import cost_of
from prunetune.models.folders import load_config, model_sha
from prunetune.recipe.schema import Recipe
from prunetune.report.live import list_runs
from prunetune.runs.folder import RunFolder
from prunetune.runs.state import state_of
from prunetune.schedule.sizes import Sizes
from prunetune.schedule.steps import plan_ahead

QUIET = Watch(quiet=True)


def edited(recipe: Recipe, **prune) -> Recipe:
    value = recipe.model_dump(mode="json")
    value["prune"].update(prune)
    return Recipe.parse(value)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """One undisturbed run with its control."""
    at = tmp_path_factory.mktemp("run")
    recipe = tiny_recipe(at, control="once")
    summary = prune_tune_loop(recipe, at / "out", QUIET)
    return at, recipe, summary


def test_the_run_folder_keeps_its_contract(done):
    at, recipe, summary = done
    out = at / "out"
    names = [p.name for p in sorted(out.glob("[0-9]*"))]
    ahead = plan_ahead(recipe.prune, Sizes.of(load_config(at / "model")))
    assert names == [a.step.name for a in ahead]
    for name in names:
        for file in ("scores.safetensors", "plan.json", "stage.json", "eval/sums.jsonl"):
            assert (out / name / file).is_file(), (name, file)
        assert not (out / name / "pruned").exists()
    assert (out / names[-1] / "tuned").is_dir()
    for file in (
        "recipe.yaml",
        "original/stage.json",
        "summary.json",
        "report.md",
        "report.html",
        "final/config.json",
        "final/README.md",
    ):
        assert (out / file).is_file(), file
    on_disk = json.loads((out / "summary.json").read_text())
    assert on_disk == json.loads(json.dumps(summary.to_json()))
    wanted = {
        "original",
        "stages",
        "final",
        "params_ratio",
        "flops_ratio",
        "accuracy",
        "speedup",
        "recovery_tokens",
        "seconds",
    }
    assert wanted <= set(on_disk)
    assert set(on_disk["accuracy"]["sums"]) == {"original", "final", "original_stderr", "final_stderr", "n"}
    assert on_disk["accuracy"]["sums"]["n"] == 4  # all of them for original and final ...
    assert [s["evals"][0]["n"] for s in on_disk["stages"]][:-1] == [3] * (len(names) - 1)  # ... round_n in between
    assert set(on_disk["seconds"]) == {"score", "probe", "plan", "apply", "tune", "evaluate", "latency", "start"}
    assert {"question", "token"} == set(on_disk["speedup"]["sums"])


def test_sizes_are_what_the_schedule_promised(done):
    at, recipe, summary = done
    ahead = plan_ahead(recipe.prune, Sizes.of(load_config(at / "model")))
    for stage, promised in zip(summary["stages"], ahead, strict=True):
        assert (stage["depth"], stage["width"], stage["cost"]["params"]) == (
            promised.depth,
            promised.width,
            promised.params,
        )
    model = AutoModelForCausalLM.from_pretrained(at / "out" / "final")
    assert sum(p.numel() for p in model.parameters()) == summary["final"]["cost"]["params"]
    assert summary["params_ratio"] <= 0.75
    assert summary["final"]["model_sha"] == model_sha(at / "out" / "final")


def test_no_sample_is_trained_on_twice(done):
    _, recipe, summary = done
    ranges = [s["samples"] for s in summary["stages"]]
    assert ranges[0][0] == recipe.score.samples + recipe.score.held_out
    assert all(a[1] == b[0] for a, b in itertools.pairwise(ranges))
    assert len({b - a for a, b in ranges}) == 1  # equal parts
    assert summary["recovery_tokens"] == sum(s["tokens"] for s in summary["stages"]) > 0


def test_flops_are_averages_over_the_questions(done):
    at, _, summary = done
    cost = cost_of(load_config(at / "out" / "final"))
    lines = (at / "out" / summary["final"]["name"] / "eval" / "sums.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    mean = sum(cost.flops(r["prompt_tokens"], r["new_tokens"]).total for r in rows) / len(rows)
    assert summary["final"]["cost"]["flops"]["sums"] == pytest.approx(mean)


def test_the_control_has_the_same_size_and_budget_in_one_round(done):
    at, _, summary = done
    control = json.loads((at / "out" / "control" / "summary.json").read_text())
    assert len(control["stages"]) == 1
    assert control["final"]["cost"]["params"] == summary["final"]["cost"]["params"]
    samples = [s["samples"][1] - s["samples"][0] for s in summary["stages"]]
    assert control["stages"][0]["samples"][1] - control["stages"][0]["samples"][0] == pytest.approx(
        sum(samples), abs=len(samples)
    )
    assert summary["control"]["accuracy"]["sums"]["n"] == 4


def test_final_is_a_plain_folder_with_tokenizer(done):
    at, *_ = done
    tokenizer = AutoTokenizer.from_pretrained(at / "out" / "final")
    assert tokenizer.decode(tokenizer("1+2").input_ids) == "1+2"
    assert "prunetune" not in (at / "out" / "final" / "config.json").read_text()


def test_running_again_changes_nothing(done):
    at, recipe, summary = done
    stamps = {p: p.stat().st_mtime_ns for p in (at / "out").rglob("stage.json")}
    again = prune_tune_loop(recipe, at / "out", QUIET)
    assert again["stages"] == summary["stages"]
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps


def test_a_recipe_that_would_change_bytes_is_refused_and_nothing_is_lost(done):
    at, recipe, _ = done
    before = sorted(p for p in (at / "out").rglob("*") if p.is_file())
    with pytest.raises(RecipeChanged, match="seed"):
        prune_tune_loop(Recipe.parse({**recipe.model_dump(mode="json"), "seed": 7}), at / "out", QUIET)
    assert sorted(p for p in (at / "out").rglob("*") if p.is_file()) == before


def test_two_processes_cannot_share_a_run_folder(tmp_path):
    recipe = tiny_recipe(tmp_path)
    with RunFolder.open(tmp_path / "out", recipe, tmp_path / "model"), pytest.raises(NotWritable, match="another prunetune process"), \
            RunFolder.open(tmp_path / "out", recipe, tmp_path / "model"):  # fmt: skip
        pass


def test_finished_stages_are_never_redone(tmp_path, monkeypatch):
    recipe = tiny_recipe(tmp_path)
    calls = []
    real = RunFolder.tidy

    def stop_after_one(self, keep):
        real(self, keep)
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "tidy", stop_after_one)
    with pytest.raises(KeyboardInterrupt):
        prune_tune_loop(recipe, tmp_path / "out", QUIET)
    stages = sorted((tmp_path / "out").glob("[0-9]*/stage.json"))
    stamps = [s.stat().st_mtime_ns for s in stages]
    assert len(stages) == 1
    prune_tune_loop(recipe, tmp_path / "out", QUIET)
    assert [s.stat().st_mtime_ns for s in stages] == stamps


def test_a_deeper_target_goes_on_from_the_end(tmp_path):
    recipe = tiny_recipe(tmp_path)
    first = prune_tune_loop(edited(recipe, target=0.85, layers=0), tmp_path / "out", QUIET)
    second = prune_tune_loop(edited(recipe, target=0.75, layers=0), tmp_path / "out", QUIET)
    n = len(first["stages"])
    assert [s["model_sha"] for s in second["stages"][:n]] == [s["model_sha"] for s in first["stages"]]
    assert len(second["stages"]) > n
    assert second["params_ratio"] <= 0.75 < first["params_ratio"]
    with pytest.raises(OutOfReach, match="already smaller"):
        prune_tune_loop(edited(recipe, target=0.85, layers=0), tmp_path / "out", QUIET)


def test_thresholds_and_protection(tmp_path, capsys):
    value = tiny_recipe(tmp_path).model_dump(mode="json")
    value["prune"] = {"sigma_neuron": 0.03, "max_rounds": 2, "align": 4}
    value["protect"] = {"data": value["data"], "share": 0.5, "samples": 4}
    summary = prune_tune_loop(Recipe.parse(value), tmp_path / "out", Watch())
    assert 1 <= len(summary["stages"]) <= 2
    assert f"protected: 24 of the {summary['stages'][0]['width']} neurons that stay" in capsys.readouterr().err
    first = tmp_path / "out" / "01-neurons-sigma"
    assert (first / "protect.safetensors").is_file()
    plan = json.loads((first / "plan.json").read_text())
    scores = load_file(first / "scores.safetensors")["neurons"]
    guard = load_file(first / "protect.safetensors")["neurons"]
    assert plan["drop_neurons"]
    for layer, gone in plan["drop_neurons"].items():
        assert (scores[int(layer)][list(gone)] <= 0.03).all()
        assert not set(guard[int(layer)].topk(24).indices.tolist()) & set(gone)


def test_a_threshold_that_finds_nothing_ends_the_run(tmp_path):
    value = tiny_recipe(tmp_path).model_dump(mode="json")
    value["prune"] = {"sigma_neuron": 0.0, "max_rounds": 3}
    summary = prune_tune_loop(Recipe.parse(value), tmp_path / "out", QUIET)
    assert len(summary["stages"]) == 1
    assert "below the thresholds" in summary["stages"][0]["verdict"]["why"]
    assert summary["params_ratio"] == 1.0
    assert model_sha(tmp_path / "out" / "final") == model_sha(tmp_path / "model")


def test_explicit_layers_are_those_of_the_original(tmp_path):
    value = tiny_recipe(tmp_path).model_dump(mode="json")
    value["prune"] = {"target": {"width": 48}, "layers": [0, 2], "align": 4, "step": 0.1}
    summary = prune_tune_loop(Recipe.parse(value), tmp_path / "out", QUIET)
    assert sorted(i for s in summary["stages"] for i in s["removed"]["layers"]) == [0, 2]


def test_chained_methods_each_take_their_own_part(tmp_path):
    cpt = {"type": "cpt", "samples": 24, "batch_size": 8, "learning_rate": 1e-3, "max_length": 64}
    recipe = tiny_recipe(tmp_path, recover=[cpt, {**cpt, "samples": 48}])
    summary = prune_tune_loop(edited(recipe, target=0.9, layers=0, step=1.0), tmp_path / "out", QUIET)
    (stage,) = summary["stages"]
    assert [t["samples"] for t in stage["tune"]] == [24, 48]
    assert stage["samples"][1] - stage["samples"][0] == 72
    assert "| cpt 3, cpt 6 |" in (tmp_path / "out" / "report.md").read_text()  # steps


def test_fewer_tokens_than_asked_are_told_where_the_data_end(tmp_path):
    lines = []

    class Said(Watch):
        def line(self, text):
            lines.append(text)

    own = tmp_path / "own.jsonl"
    own.write_text("".join(f'{{"question": "{i} + 1", "answer": "{i + 1}"}}\n' for i in range(10)))
    cpt = {"type": "cpt", "samples": 24, "batch_size": 8, "learning_rate": 1e-3, "max_length": 64}
    short = {**cpt, "samples": None, "tokens": 5000, "data": [{"type": "file", "path": str(own)}]}
    recipe = tiny_recipe(tmp_path, recover=[cpt, short])
    summary = prune_tune_loop(edited(recipe, target=0.9, layers=0, step=1.0), tmp_path / "out", Said(quiet=True))
    enough, few = summary["stages"][0]["tune"]
    assert enough["notes"] == []
    assert few["samples"] == 10
    note = f"cpt: {few['tokens']:,} of 5,000 tokens: the data hold no more"
    assert few["notes"] == [note] and f"  {note}" in lines
    assert note in (tmp_path / "out" / "report.md").read_text()


def test_too_little_data_is_said_before_any_work(tmp_path):
    value = tiny_recipe(tmp_path).model_dump(mode="json")
    value["score"]["samples"] = 500
    with pytest.raises(OutOfReach, match="use up all the data"):
        prune_tune_loop(Recipe.parse(value), tmp_path / "out", QUIET)
    assert not list((tmp_path / "out").glob("original/*"))


def test_a_useless_original_is_told_and_asked_about_before_any_work(tmp_path, capsys):
    """A random model solves none of four sums: nobody will know what is lost. A script is told, and goes on."""
    recipe, asked = tiny_recipe(tmp_path, prune={"target": 0.9, "rounds": 1}, control="none"), []
    with pytest.raises(Declined, match="stopped before any work") as e:
        prune_tune_loop(recipe, tmp_path / "run", Watch(), go_on=lambda: bool(asked.append(1)))
    assert asked == [1] and "solves 0 of 4 problems of sums" in str(e.value.value)
    assert "warning: the original solves 0 of 4" in " ".join(capsys.readouterr().err.split())
    assert not list((tmp_path / "run").glob("0*")), "nothing was scored"
    assert (state_of(tmp_path / "run").state, state_of(tmp_path / "run").why) == ("stopped", "you answered no")
    assert ": you answered no" in list_runs([state_of(tmp_path / "run")], width=500)
    summary = prune_tune_loop(recipe, tmp_path / "run", Watch(quiet=True))
    said = closing(summary, tmp_path / "run")
    assert "cannot tell: 4 of the original's 4 answers to sums" in said.splitlines()[1]
    assert re.search(r"parameters +share +sums, n = 4\n", said)
    prune_tune_loop(recipe, tmp_path / "run", Watch(quiet=True), go_on=lambda: pytest.fail("asked once more"))


def test_an_answer_that_is_no_number_stops_a_run_with_grpo_before_any_work(tmp_path):
    bad = rows(tmp_path / "bad.jsonl", 60)
    bad.write_text(bad.read_text() + json.dumps({"question": "when?", "answer": "3:30"}) + "\n")
    recover = [{"type": "cpt", "samples": 16}, {"type": "grpo", "samples": 8, "group": 2}]
    recipe = tiny_recipe(tmp_path, recover=recover, data=[{"type": "file", "path": str(bad)}])
    with pytest.raises(TaskError, match=r"bad.jsonl, row 61: this reference is no single number"):
        prune_tune_loop(recipe, tmp_path / "out", QUIET)
    assert not list((tmp_path / "out").glob("original/stage.json"))
