"""Recipes: every shipped one parses, every default is spelled out, every mistake is named."""

from __future__ import annotations

import subprocess
import sys

import pytest
import yaml
from tests.tiny_run import tiny_recipe

from prunetune.errors import MissingPath, PrunetuneError, RecipeChanged, RecipeError, UnknownName
from prunetune.recipe.changes import FREE, check_unchanged
from prunetune.recipe.schema import TOKENS, Recipe, shipped
from prunetune.tune.methods import Cpt

MINIMAL = {"model": "demo", "data": [{"type": "demo", "size": 100}], "prune": {"target": 0.6}}


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_recipe_parses_and_says_what_it_is(name):
    recipe = Recipe.read(name)
    assert recipe.model
    assert shipped()[name].read_text().startswith("#")


def test_demo_is_shipped():
    assert "demo" in shipped()


def test_resolved_recipe_round_trips(tmp_path):
    recipe = Recipe.parse(MINIMAL)
    recipe.write(tmp_path / "r.yaml")
    assert Recipe.read(tmp_path / "r.yaml") == recipe
    written = yaml.safe_load((tmp_path / "r.yaml").read_text())
    assert written["recover"] == [Cpt(tokens=TOKENS).model_dump(mode="json")]  # it ends
    assert (written["score"]["criterion"], written["compensate"]) == ("greedy", "least-squares")
    assert (written["prune"]["rounds"], written["budget"], written["do_no_harm"]) == ("auto", "damage", True)


def test_a_recipe_may_start_from_the_papers_settings_or_from_another_recipe(tmp_path):
    paper = Recipe.parse({"extends": "paper", **MINIMAL})
    assert paper.recover == [Cpt(learning_rate=8e-6)] and paper.recover[0].tokens is None
    assert (paper.score.criterion, paper.compensate, paper.budget) == ("contribution", "none", "equal")
    assert (paper.prune.rounds, paper.prune.step, paper.do_no_harm) == (None, 0.1, False)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"extends": "paper", **MINIMAL, "score": {"samples": 7}}))
    more = {
        "extends": str(tmp_path / "mine.yaml"),
        "score": {"held_out": 5},
        "prune": {"align": 4},
        "data": [{"type": "demo", "size": 9}],
    }
    (tmp_path / "more.yaml").write_text(yaml.safe_dump(more))
    found = Recipe.read(tmp_path / "more.yaml")
    assert (found.score.samples, found.score.held_out, found.score.criterion) == (7, 5, "contribution")
    assert (found.prune.target, found.prune.align) == (0.6, 4)
    assert [s.size for s in found.data] == [9]  # a list is replaced whole
    assert Recipe.parse({"extends": "recommended", **MINIMAL}) == Recipe.parse(MINIMAL)
    assert Recipe.parse({"extends": "baselines/shortgpt"}) == Recipe.read("baselines/shortgpt")


@pytest.mark.parametrize(
    ("value", "says"),
    [("papper", "paper"), (3, "must be a name"), ("none.yaml", "no such recipe file"), ("", "must be a name")],
)
def test_what_cannot_be_extended_is_told(value, says):
    with pytest.raises(PrunetuneError, match=says):
        Recipe.parse({**MINIMAL, "extends": value})


def test_recipes_that_extend_each_other_are_told(tmp_path):
    (tmp_path / "a.yaml").write_text(f"extends: {tmp_path}/b.yaml")
    (tmp_path / "b.yaml").write_text(f"extends: {tmp_path}/a.yaml")
    with pytest.raises(RecipeError, match="circle"):
        Recipe.read(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("says", "then"),
    [
        ({"prune": {"step": 0.2}}, {"rounds": None, "budget": "damage"}),
        ({"prune": {"order": "alternating"}}, {"rounds": None, "budget": "equal"}),
        ({"budget": "equal"}, {"rounds": None, "budget": "equal"}),
        ({"prune": {"rounds": 3}}, {"rounds": 3, "budget": "damage"}),
        ({"prune": {"target": None, "sigma_neuron": 0.1, "max_rounds": 2}}, {"rounds": None, "budget": "equal"}),
        ({"recover": [{"type": "grpo"}]}, {"rounds": "auto", "do_no_harm": False}),
        ({"compensate": "none"}, {"criterion": "contribution"}),
        ({"compensate": "none", "score": {"criterion": "wanda"}}, {"criterion": "wanda"}),
    ],
)
def test_a_default_gives_way_to_what_a_recipe_says(says, then):
    prune = {**MINIMAL["prune"], **says.get("prune", {})}
    found = Recipe.parse({**MINIMAL, **says, "prune": {k: v for k, v in prune.items() if v is not None}})
    got = {"rounds": found.prune.rounds, "budget": found.budget, "do_no_harm": found.do_no_harm}
    got["criterion"] = found.score.criterion
    assert {k: got[k] for k in then} == then


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"modle": "x"}, "did you mean 'model'"),
        ({"prune": {"target": 0.6, "stpe": 0.1}}, "did you mean 'step'"),
        ({"recover": [{"type": "cpt", "learning_rat": 1}]}, "learning_rate"),
        ({"recover": [{"type": "cptt"}]}, "cpt"),
        ({"score": {"criterion": "contributions"}}, "contribution"),
        ({"data": []}, "data"),
        ({"data": [{"type": "file"}]}, "path"),
        ({"prune": {"target": 0.6, "order": "sideways"}}, "alternating"),
        ({"prune": {}}, "target"),
        ({"model": " "}, "no name"),
        ({"control": "twice"}, "once"),
    ],
)
def test_mistakes_are_named(changes, says):
    with pytest.raises(RecipeError) as e:
        Recipe.parse({**MINIMAL, **changes})
    assert says in str(e.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"recover": [{"type": "cpt", "average": 30}]}, ["recover.0.average has", "30", "less than 1", "write 0.3"]),
        ({"recover": [{"type": "cpt", "average": "half"}]}, ["recover.0.average has", "'half'", "a number"]),
        ({"recover": [{"type": "cpt", "averege": 0.5}]}, ["'recover.0.averege'", "did you mean 'average'"]),
        ({"recover": [{"type": "rl"}]}, ["recover.0.type", "'rl'", "cpt, distill, grpo, local, sft"]),
        ({"recover": [{"tokens": 5}]}, ["lacks the key 'recover.0.type'", "cpt, distill, grpo, local, sft"]),
        ({"recover": "cpt"}, ["recover has", "'cpt'", "a list", "write recover: [...]"]),
        ({"prune": {"target": "sixty"}}, ["prune.target:", "'sixty'", "4GB"]),
        ({"prune": {"target": "1x"}}, ["prune.target:", "1x is no faster"]),
        ({"prune": {"target": 0.6, "axes": ["neurons", "width"]}}, ["axes has no 'width'", "neurons"]),
        ({"prune": {"target": 0.6, "axes": ["layers"]}}, ["axes must have neurons"]),
        ({"prune": {"target": 0.6, "context": 4096}}, ["context counts the cache", "4GB"]),
        ({"prune": {"target": "2x", "step": 0.1}}, ["needs rounds"]),
        ({"prune": {"target": {"width": 0}}}, ["prune.target.width has", "greater than 0"]),
        ({"prune": {"target": {"widht": 8}}}, ["'prune.target.widht'", "depth, width", "did you mean 'width'"]),
        ({"prune": {"target": 0.6, "rounds": "x"}}, ["prune.rounds has", "a whole number or 'auto'"]),
        ({"stop_at": 0.95}, ["stop_at has", "a mapping of accuracy", "write stop_at: {accuracy: 0.95}"]),
        ({"stop_at": {"accuracy": 95}}, ["stop_at.accuracy has", "write 0.95"]),
        ({"evaluate": {"tasks": ["gsm8k"]}}, ["evaluate.tasks.0 has", "write {name: gsm8k}"]),
        ({"compensate": "least_squares"}, ["compensate has", "'none', 'least-squares' or", "did you mean 'least-squares'"]),
        ({"data": [{"type": "demo", "sizes": 3}]}, ["'data.0.sizes'", "did you mean 'size'"]),
        ({"rounds": 3}, ["'rounds'", "did you mean prune.rounds?"]),
    ],
)  # fmt: skip
def test_a_mistake_is_told_in_the_terms_of_the_file(changes, says):
    with pytest.raises(RecipeError) as e:
        Recipe.parse({**MINIMAL, **changes}, "my.yaml")
    for part in ["my.yaml", *says]:
        assert part in str(e.value)


def test_a_changed_method_is_told_by_its_key(tmp_path):
    before = tiny_recipe(tmp_path).model_dump(mode="json")
    after = {**before, "recover": [{**before["recover"][0], "learning_rate": 3e-4}]}
    with pytest.raises(RecipeChanged) as e:
        check_unchanged(before, Recipe.parse(after).model_dump(mode="json"))
    old = before["recover"][0]["learning_rate"]
    assert e.value.value == f"recover.0.learning_rate: {old!r} -> 0.0003"


def test_missing_key():
    with pytest.raises(RecipeError, match="lacks the key 'data'"):
        Recipe.parse({"model": "demo", "prune": {"target": 0.5}})


def test_files_that_are_no_recipe(tmp_path):
    with pytest.raises(MissingPath):
        Recipe.read(tmp_path / "none.yaml")
    with pytest.raises(UnknownName, match="demo"):
        Recipe.read("dem")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(RecipeError, match="not valid YAML"):
        Recipe.read(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- a")
    with pytest.raises(RecipeError, match="mapping"):
        Recipe.read(tmp_path / "list.yaml")


def test_changes_that_leave_the_bytes_alone_are_free(tmp_path):
    recipe = tiny_recipe(tmp_path)
    before = recipe.model_dump(mode="json")
    for free in (
        {"launcher": "ddp"},
        {"keep": "all"},
        {"control": "once"},
        {"evaluate": {"tasks": []}},
        {"device": "cpu"},
    ):
        assert next(iter(free)) in FREE
        check_unchanged(before, Recipe.parse({**before, **free}).model_dump(mode="json"))
    check_unchanged(
        before, Recipe.parse({**before, "prune": {**before["prune"], "target": 0.6}}).model_dump(mode="json")
    )


def test_a_run_of_an_earlier_version_lacks_new_keys_and_goes_on(tmp_path):
    now = tiny_recipe(tmp_path).model_dump(mode="json")
    method = {k: v for k, v in now["recover"][0].items() if k != "average"} | {"until": "budget", "slope": 0.01}
    before = {
        **now,
        "recover": [method],
        "prune": {**now["prune"], "save": "flops"},
        "anneal": "every",
        "tolerance": None,
    }
    check_unchanged(before, now)
    with pytest.raises(RecipeChanged, match="anneal"):
        check_unchanged({**before, "anneal": "last"}, now)
    with pytest.raises(RecipeChanged, match="gone"):
        check_unchanged({**before, "gone": 3}, now)


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"score": {"criterion": "random"}}, {"recover": [{"type": "cpt", "samples": 5}]}]
)
def test_changes_that_would_change_bytes_are_named(tmp_path, change):
    before = tiny_recipe(tmp_path).model_dump(mode="json")
    with pytest.raises(RecipeChanged, match=f"{next(iter(change))}.*->"):
        check_unchanged(before, Recipe.parse({**before, **change}).model_dump(mode="json"))


def test_reading_a_recipe_needs_no_torch():
    code = "import sys; from prunetune.recipe.schema import Recipe, shipped; [Recipe.read(n) for n in shipped()]; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_marks_that_0_1_kept_by_default_are_no_change_of_a_run(tmp_path):
    now = tiny_recipe(tmp_path).model_dump(mode="json")
    (source,) = now["data"]
    assert source["strip_marks"] is None
    check_unchanged({**now, "data": [{**source, "strip_marks": False}]}, now)
    with pytest.raises(RecipeChanged, match="strip_marks"):
        check_unchanged({**now, "data": [{**source, "strip_marks": True}]}, now)
