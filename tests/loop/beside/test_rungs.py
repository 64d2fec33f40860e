"""A ladder on a tiny model: every rung a finished model, killed anywhere, made longer; and what its report says."""

from __future__ import annotations

import json

import pytest
from tests.tiny_run import tiny_recipe
from transformers import AutoModelForCausalLM

from prunetune.cli.preview import closing, preview
from prunetune.common.progress import Watch
from prunetune.errors import BadCheckpoint, OutOfReach
from prunetune.loop.beside import rungs as rungs_
from prunetune.loop.loop import prune_tune_loop
from prunetune.models.folders import model_sha
from prunetune.publish.inputs import final_of
from prunetune.publish.push import push
from prunetune.recipe.schema import Recipe
from prunetune.runs.state import state_of

QUIET = Watch(quiet=True)
FOLDERS = ["final-0.9", "final-0.8", "final-0.7"]


def laddered(at, *, keep: str | None = None, **changes) -> Recipe:
    """Three rungs, a round each; three questions after a round, four of a finished model."""
    value = tiny_recipe(at).model_dump(mode="json")
    value["prune"] = {"align": 4, "rounds": None, "step": 0.3}
    value |= {"ladder": [0.9, 0.8, 0.7], **changes}
    return Recipe.parse(value | ({"keep": keep} if keep else {}))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    at = tmp_path_factory.mktemp("ladder")
    recipe = laddered(at)
    return at, recipe, prune_tune_loop(recipe, at / "out", QUIET)


def test_every_rung_is_a_model_of_its_own_that_plain_transformers_loads(done):
    at, _recipe, summary = done
    assert [r.folder for r in summary.ladder] == FOLDERS
    for rung, stage in zip(summary.ladder, summary.stages, strict=True):
        model = AutoModelForCausalLM.from_pretrained(at / "out" / rung.folder)
        assert sum(p.numel() for p in model.parameters()) == rung.params == stage.params
        assert rung.params_ratio <= rung.share
        assert model_sha(at / "out" / rung.folder) == stage.model_sha
    assert model_sha(at / "out" / "final") == model_sha(at / "out" / "final-0.7")


def test_a_rung_is_asked_everything_and_paired_with_the_original(done):
    at, _, summary = done
    for rung in summary.ladder:
        assert rung.accuracy["sums"].n == 4, "after a round only three are asked"
        own = [json.loads(x)["correct"] for x in (at / "out" / rung.stage / "eval/sums.jsonl").read_text().splitlines()]
        first = [json.loads(x)["correct"] for x in (at / "out/original/eval/sums.jsonl").read_text().splitlines()]
        assert rung.against["sums"].n == 4
        assert rung.against["sums"].difference == pytest.approx((sum(own) - sum(first)) / 4)
        assert rung.latency is not None and rung.speedup["decode"] > 0
    spent = [s.tokens for s in summary.stages]
    assert [r.recovery_tokens for r in summary.ladder] == [sum(spent[: i + 1]) for i in range(3)]


def test_the_report_has_the_rungs_first_and_each_has_its_card(done):
    at, _, summary = done
    report = (at / "out/report.md").read_text()
    assert report.index("## Models") < report.index("## Headline")
    for rung in summary.ladder:
        assert f"| rung {rung.share:g} ({rung.folder}) |" in report
        card = (at / "out" / rung.folder / "README.md").read_text()
        assert f"| parameters | {summary.original.params / 1e3:.1f} k | **{rung.params / 1e3:.1f} k**" in card
    assert summary.recommended.why in report and summary.recommended.folder is None
    assert '<h2 id="models">' in (at / "out/report.html").read_text()
    assert "rung 0.9" in closing(summary, at / "out")


def test_a_rung_is_checked_and_pushed_as_a_run_is(done):
    at, _, summary = done
    folder, record = final_of(at / "out/final-0.8")
    assert folder.name == "final-0.8" and record.final.name == summary.stages[1].name
    assert len(record.accepted) == 2
    found = push(at / "out/final-0.8", "me/small")
    assert found.files["model.safetensors"] == (at / "out/final-0.8/model.safetensors").stat().st_size
    assert state_of(at / "out").rungs == FOLDERS


def test_a_changed_byte_of_a_rung_is_found(done, tmp_path):
    at, _recipe, _ = done
    weights = at / "out/final-0.9/config.json"
    good = weights.read_bytes()
    weights.write_bytes(good + b" ")
    try:
        with pytest.raises(BadCheckpoint):
            final_of(at / "out")
    finally:
        weights.write_bytes(good)


def test_running_again_changes_nothing(done):
    at, recipe, summary = done
    times = {p: p.stat().st_mtime_ns for p in (at / "out").rglob("*.safetensors")}
    assert prune_tune_loop(recipe, at / "out", QUIET).to_json() == summary.to_json()
    assert {p: p.stat().st_mtime_ns for p in (at / "out").rglob("*.safetensors")} == times


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_run_that_ends_at_a_rung_goes_on_to_the_same_models(done, tmp_path, monkeypatch, when):
    """Before the rung's folder is made, and after the answers to all questions."""
    at, recipe, summary = done
    real, seen = rungs_.finished, []

    def stops(context, run, stage, folder):
        if folder.name == "final-0.8" and not seen:
            seen.append(when == "before" or real(context, run, stage, folder))
            raise KeyboardInterrupt
        return real(context, run, stage, folder)

    monkeypatch.setattr(rungs_, "finished", stops)
    with pytest.raises(KeyboardInterrupt):
        prune_tune_loop(recipe, tmp_path / "out", QUIET)
    assert (tmp_path / "out/final-0.8").exists() == (when == "after")
    again = prune_tune_loop(recipe, tmp_path / "out", QUIET)
    for ours, theirs in zip(again.ladder, summary.ladder, strict=True):
        assert model_sha(tmp_path / "out" / ours.folder) == model_sha(at / "out" / theirs.folder)
        assert ours.accuracy == theirs.accuracy and ours.against == theirs.against


def test_a_ladder_is_made_longer_but_never_filled_up(tmp_path):
    value = laddered(tmp_path).model_dump(mode="json")
    value["prune"] |= {"ladder": [0.9, 0.7], "target": 0.7}
    first = prune_tune_loop(Recipe.parse(value), tmp_path / "out", QUIET)
    longer = {**value, "prune": {**value["prune"], "ladder": [0.9, 0.7, 0.65], "target": 0.65}}
    second = prune_tune_loop(Recipe.parse(longer), tmp_path / "out", QUIET)
    assert [r.folder for r in second.ladder] == ["final-0.9", "final-0.7", "final-0.65"]
    assert [s.model_sha for s in second.stages[: len(first.stages)]] == [s.model_sha for s in first.stages]
    assert model_sha(tmp_path / "out/final") == model_sha(tmp_path / "out/final-0.65")
    filled = {**value, "prune": {**value["prune"], "ladder": [0.9, 0.8, 0.7, 0.65], "target": 0.65}}
    with pytest.raises(OutOfReach, match="gone past a rung of its ladder"):
        prune_tune_loop(Recipe.parse(filled), tmp_path / "out", QUIET)


def test_by_damage_each_rung_gets_an_equal_share_of_the_tokens(tmp_path):
    recipe = laddered(tmp_path, budget="damage", prune={"align": 4, "rounds": 5}, compensate="least-squares")
    summary = prune_tune_loop(recipe, tmp_path / "out", QUIET)
    samples, ends = [], [r.stage for r in summary.ladder]
    for stage in summary.stages:
        samples.append(stage.tune[0].samples)
    whole, at, each = 48, 0, []
    for end in ends:
        last = [s.name for s in summary.stages].index(end)
        each.append(sum(samples[at : last + 1]))
        at = last + 1
    assert sum(each) == whole and all(abs(n - whole / 3) <= 1 for n in each)
    assert len(summary.stages) > 3, "a rung of two rounds"
    assert summary.stages[0].rounds == 5 and len(summary.stages) <= 5


def test_a_method_of_the_last_round_runs_at_every_rung_with_an_equal_share(tmp_path):
    cpt = {"type": "cpt", "samples": 24, "batch_size": 8, "learning_rate": 1e-3, "max_length": 64}
    recipe = laddered(tmp_path, recover=[cpt, {**cpt, "type": "sft", "samples": 30, "when": "last"}])
    recipe = Recipe.parse({**recipe.model_dump(mode="json"), "prune": {"ladder": [0.9, 0.7], "align": 4, "step": 0.15}})
    summary = prune_tune_loop(recipe, tmp_path / "out", QUIET)
    late = [[t.samples for t in s.tune if t.method == "sft"] for s in summary.stages]
    assert [x for x in late if x] == [[15], [15]] and late[-1] == [15]


def test_with_keep_nothing_is_searched_and_the_report_says_which_rung_keeps_it(done, tmp_path):
    at, _, _ = done
    recipe = laddered(at, keep="95%")
    assert not recipe.searches and recipe.stop is None and recipe.stop_at.accuracy == 0.95
    assert "the smallest that keeps 95.0% is recommended" in preview(recipe)[1]
    assert "[= 0.9" not in preview(recipe)[1] and " = 0.9" in preview(recipe)[1]


def test_a_control_of_a_ladder_has_none(tmp_path):
    recipe = laddered(tmp_path, control="once")
    prune_tune_loop(recipe, tmp_path / "out", QUIET)
    control = json.loads((tmp_path / "out/control/summary.json").read_text())
    assert len(control["stages"]) == 1 and not list((tmp_path / "out/control").glob("final-*"))
    assert control["recipe"]["prune"]["ladder"] is None


def test_rounds_of_before_there_were_ladders_are_not_decided_again(tmp_path):
    """The decision's key says no ladder where there is none, as older versions had it."""
    from prunetune.common.files import json_sha
    from prunetune.common.notes import read_note

    recipe = tiny_recipe(tmp_path, prune={"target": 0.9, "align": 4, "rounds": 1}, budget="damage")
    prune_tune_loop(recipe, tmp_path / "out", QUIET)
    prune = recipe.prune.model_dump(mode="json")
    del prune["ladder"]
    original = json.loads((tmp_path / "out/original/stage.json").read_text())
    data = json.loads((tmp_path / "out/decisions/01.json").read_text())
    assert data["index"] == 1
    from prunetune.loop.context import prepare

    stream = prepare(recipe, tmp_path / "model", QUIET).stream
    key = {"model": original["model_sha"], "prune": prune, "compensate": recipe.compensate, "data": stream.sha}
    assert read_note(tmp_path / "out/decisions/01.json").key == json_sha(key)
