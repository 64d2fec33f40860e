"""A finished run that is asked for something else: what cannot be done is told before anything is written."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.tiny_run import Lines, rows, tiny_recipe

from prunetune.common.progress import Watch
from prunetune.errors import OutOfReach, PrunetuneError, RecipeChanged
from prunetune.loop.loop import prune_tune_loop
from prunetune.loop.pacing.rehearsal import rehearsed
from prunetune.loop.sampling.traces import once_sampled
from prunetune.loop.start.again import check_again
from prunetune.recipe.schema import Recipe
from prunetune.recipe.traces import traces_of
from prunetune.runs.folder import RunFolder
from prunetune.runs.state import state_of

QUIET = Watch(quiet=True)


def with_target(recipe: Recipe, target: float, **recover: object) -> Recipe:
    value = recipe.model_dump(mode="json")
    value["prune"]["target"] = target
    value["recover"][0] |= recover
    return Recipe.parse(value)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A run that has trained on all its data."""
    at = tmp_path_factory.mktemp("again")
    changes = {"prune": {"target": 0.9, "step": 0.5, "align": 4, "layers": 0}, "control": "none"}
    recipe = with_target(tiny_recipe(at, **changes), 0.9, samples=None)
    rows(at / "rows.jsonl", n=40)
    prune_tune_loop(recipe, at / "out", QUIET)
    return at, recipe


def refused(out: Path, recipe: Recipe, error: type[PrunetuneError]) -> PrunetuneError:
    """What a call says, which must leave every file of a finished run as it was."""
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    with pytest.raises(error) as e:
        prune_tune_loop(recipe, out, QUIET)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    assert state_of(out).state == "finished"
    return e.value


@pytest.mark.parametrize("budget", ["equal", "damage"])
def test_a_smaller_target_for_which_no_data_are_left_is_refused_before_anything_is_written(done, budget):
    at, recipe = done
    out = at / "out"
    if budget == "damage":
        recipe, out = recipe.changed(budget="damage"), at / "by damage"
        prune_tune_loop(recipe, out, QUIET)
    said = refused(out, deeper := with_target(recipe, 0.7), OutOfReach)
    assert "no recovery data are left for another round of cpt" in said.what
    assert "40 sequences: 12 of them to score and to measure with, 28 trained on in 1 round" in str(said.value)
    assert "new --out" in str(said.fix) and "target as it was" in str(said.fix)
    with pytest.raises(OutOfReach, match="no recovery data are left for another round"):
        rehearsed(deeper, out, QUIET, lambda: None)
    prune_tune_loop(recipe, out, QUIET)  # the same command as before: nothing to do
    assert state_of(out).state == "finished"


def test_a_larger_target_and_bad_tasks_are_refused_before_anything_is_written(done):
    at, recipe = done
    assert "already smaller" in refused(at / "out", with_target(recipe, 0.95), OutOfReach).what
    value = recipe.model_dump(mode="json")
    value["evaluate"]["tasks"][0]["n"] = 400
    assert "has 40 problems" in refused(at / "out", Recipe.parse(value), PrunetuneError).what


def test_a_finished_run_is_not_reported_as_if_of_other_files(done):
    at, recipe = done
    kept = (at / "rows.jsonl").read_bytes()
    rows(at / "rows.jsonl", n=60)
    assert "rows.jsonl changed since this run began" in refused(at / "out", recipe, RecipeChanged).what
    (at / "rows.jsonl").write_bytes(kept)
    prune_tune_loop(recipe, at / "out", QUIET)


NEURONS = {"step": 0.5, "align": 4, "layers": 0}
TRACES = {"type": "traces", "from": {"type": "file", "path": "rows.jsonl"}}
LEFT, SMALLER = "no recovery data are left for another round of cpt", "already smaller than the target"
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "thresholds": ({"sigma_neuron": 0.1, "max_rounds": 1, "align": 4}, {"max_rounds": 2}, LEFT),
    "vocabulary": ({**NEURONS, "target": {"width": 36}, "vocabulary": "task"}, {"target": {"width": 16}}, LEFT),
    "stop_at": ({"target": 0.9, "align": 4, "layers": 0}, {"target": 0.7}, LEFT),
    "axes": ({"target": 0.9, "axes": ["neurons", "layers"], "align": 4, "rounds": 1}, {"target": 0.7}, LEFT),
    "axes, larger": (
        {"target": 0.9, "axes": ["neurons", "layers"], "align": 4, "rounds": 1},
        {"target": 0.95},
        SMALLER,
    ),
    "in time": ({"target": "1.1x", "align": 4, "rounds": 1}, {"target": "2x"}, LEFT),
    "in time, slower": ({"target": "1.1x", "align": 4, "rounds": 1}, {"target": "1.05x"}, SMALLER),
    "traces": ({**NEURONS, "target": 0.9}, {"target": 0.7}, LEFT),
    "a rung in between": ({**NEURONS, "target": 0.9}, {"ladder": [0.95, 0.9]}, "gone past a rung"),
}
"""Kind of recipe -> what it prunes, what is changed of it, and what that is told."""


@pytest.mark.parametrize("kind", KINDS)
def test_no_kind_of_recipe_begins_what_it_cannot_end(done, tmp_path, monkeypatch, kind):
    """The finished run as if it were of another kind; a change that leaves the cut as it is always goes."""
    at, recipe = done
    prune, change, says = KINDS[kind]
    value = recipe.model_dump(mode="json") | {"prune": prune}
    value |= {"stop_at": {"accuracy": 0.3}, "budget": "damage"} if kind == "stop_at" else {}
    out = tmp_path / "out"
    shutil.copytree(at / "out", out)
    if kind == "vocabulary":  # the tiny model's tokenizer is of words, which are not cut
        kept = SimpleNamespace(kept=SimpleNamespace(rows=range(20)))
        monkeypatch.setattr("prunetune.loop.context.fitted_to", lambda *_: kept)
    if kind == "traces":
        own = {**TRACES, "from": {"type": "file", "path": str(at / "rows.jsonl")}}
        value["recover"] = [{**value["recover"][0], "data": [own]}]
        (source,) = traces_of(Recipe.parse(value))
        file = once_sampled(RunFolder(out, at / "model"), source)
        file.parent.mkdir()
        rows(file, n=28)  # as many as the round has taken
    before = Recipe.parse(value)
    before.write(out / "recipe.yaml")
    run = RunFolder(out, at / "model")
    asked = before.evaluate.model_copy(update={"latency_repeats": 0})
    check_again(before.changed(evaluate=asked), run.source, run, watch=QUIET)
    after = Recipe.parse({**value, "prune": {**prune, **change}})
    with pytest.raises(OutOfReach, match=says):
        check_again(after, run.source, run, watch=QUIET)


JUDGE = "def right(output, reference):\n    return output == reference\n"


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """A finished run with a verifier of its own."""
    at = tmp_path_factory.mktemp("judged")
    (at / "judge.py").write_text(JUDGE)
    task = {"name": "sums", "path": str(at / "asked.jsonl"), "verifier": f"{at}/judge.py:right", "n": 2}
    task |= {"max_new_tokens": 2, "allow_custom_code": True}
    changes = {"prune": {"target": 0.9, "step": 0.5, "align": 4, "layers": 0}, "recover": []}
    recipe = tiny_recipe(at, **changes, evaluate={"tasks": [task], "latency_repeats": 0})
    rows(at / "asked.jsonl", n=10)
    prune_tune_loop(recipe, at / "out", QUIET)
    return at, recipe


@pytest.mark.parametrize("name", ["rows.jsonl", "asked.jsonl", "judge.py"])
def test_a_finished_run_whose_files_are_gone_is_still_finished(judged, name):
    at, recipe = judged
    (at / name).rename(at / "away")
    try:
        assert name in str(refused(at / "out", recipe, PrunetuneError).value)
    finally:
        (at / "away").rename(at / name)
    prune_tune_loop(recipe, at / "out", QUIET)


def test_a_mended_verifier_is_told_once_and_the_run_goes_on(judged):
    at, recipe = judged
    (at / "judge.py").write_text(JUDGE + "# mended\n")
    said = []
    for _ in range(2):
        watch = Lines()
        rehearsed(recipe, at / "out", watch, lambda: None)  # writes nothing
        assert any("judge.py has changed" in line for line in watch.lines) == (not said)
        prune_tune_loop(recipe, at / "out", watch := Lines())
        said += [line for line in watch.lines if "judge.py has changed" in line]
        assert state_of(at / "out").state == "finished"
    (line,) = said
    assert "warning: " in line and "(the original and 1 round) stays as it is" in line and "new --out" in line
