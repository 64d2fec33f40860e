"""The options of `run` and `init` as a recipe: what is said on the command line wins over the recipe's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from tests.cli.test_app import call

from prunetune.cli.asked import Asked, mapping_of
from prunetune.errors import RecipeError
from prunetune.recipe.schema import TOKENS, Recipe

MINE = {"model": "demo", "data": ["demo"], "target": "60%"}


def test_a_model_and_its_options_are_a_recipe():
    value = mapping_of(Asked(**MINE, tokens="20k", tasks=["demo"], n=7, seed=3, device="cpu", sets=["score.samples=9"]))
    found = Recipe.parse(value)
    assert (found.prune.target, found.prune.rounds, found.seed, found.device) == (0.6, "auto", 3, "cpu")
    assert [(m.type, m.tokens) for m in found.recover] == [("cpt", 20_000)]
    assert [(t.name, t.n) for t in found.evaluate.tasks] == [("demo", 7)]
    assert found.score.samples == 9 and found.data[0].seed == 3
    assert Recipe.parse(mapping_of(Asked(**MINE))).recover[0].tokens == TOKENS


@pytest.mark.parametrize("said", ["test.csv", "rows.jsonl.gz", "sub/mine.parquet"])
def test_rows_without_a_name_are_told_how_to_name_them(said):
    with pytest.raises(RecipeError, match=f"--task mine={said} --verifier number"):
        mapping_of(Asked(**MINE, tasks=[said]))


@pytest.mark.parametrize(("test", "taken"), [("frage", True), ("question", False)])
def test_columns_serve_a_task_whose_rows_have_them(tmp_path, test, taken):
    for name, head in (("train", "frage"), ("test", test)):
        (tmp_path / f"{name}.csv").write_text(f"{head},answer\n1+1,2\n")
    value = mapping_of(
        Asked(
            model="demo",
            data=[str(tmp_path / "train.csv")],
            target="60%",
            columns="question=frage",
            tasks=[f"mine={tmp_path / 'test.csv'}"],
            verifier="number",
        )
    )
    (source,), (task,) = value["data"], value["evaluate"]["tasks"]
    assert source["columns"] == {"question": "frage"}
    assert task.get("columns") == ({"question": "frage"} if taken else None)


def test_a_share_of_the_accuracy_needs_a_task_and_says_so_in_the_words_of_the_command():
    with pytest.raises(RecipeError, match="--keep needs a task") as e:
        mapping_of(Asked(model="demo", data=["demo"], keep="95%"))
    assert "--task" in str(e.value) and "stop_at" not in str(e.value)
    found = Recipe.parse(mapping_of(Asked(model="demo", data=["demo"], keep="95%", tasks=["demo"])))
    assert found.stop_at is not None and found.stop_at.accuracy == 0.95


def test_options_win_over_a_recipe_and_leave_the_rest():
    plain, found = (
        Recipe.read("baselines/shortgpt"),
        Recipe.parse(mapping_of(Asked(recipe="baselines/shortgpt", target="0.7", step=0.1, tokens="5M", n=3))),
    )
    assert (found.prune.target, found.prune.step, found.recover[0].tokens, found.recover[0].samples) == (
        0.7,
        0.1,
        5 * 10**6,
        None,
    )
    assert found.evaluate.tasks[0].n == 3 and found.compensate == plain.compensate == "none"
    same = ("model", "data", "score", "control")
    assert all(getattr(found, k) == getattr(plain, k) for k in same)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({}, "either a recipe or --model"),
        ({"recipe": "demo", "model": "demo"}, "either a recipe or --model"),
        ({"model": "demo"}, "needs --data and --target"),
        ({**MINE, "target": "0"}, "--target: a target must be above 0"),
        ({**MINE, "target": "nan"}, "--target: a target must be above 0"),
        ({**MINE, "target": "120%"}, "at most 100 %"),
        ({**MINE, "target": "half"}, "means nothing: give a share"),
        ({**MINE, "tokens": "lots"}, "--tokens must be a count"),
        ({**MINE, "n": 5}, "--n needs a task"),
        ({**MINE, "verifier": "number"}, "--verifier needs a task"),
        ({"recipe": "paper/qwen2.5-7b-ct-rl", "tokens": "1M"}, "which recovery method"),
        ({"recipe": "paper/qwen2.5-7b-rl", "tokens": "1M"}, "in prompts"),
    ],
)
def test_mistakes_are_told(asked, says):
    with pytest.raises(RecipeError) as e:
        mapping_of(Asked(**asked))
    assert says in str(e.value)


def test_init_writes_the_recipe_that_run_would_use(tmp_path: Path, capsys):
    options = [
        "--model",
        "demo",
        "--data",
        "demo",
        "--target",
        "0.6",
        "--tokens",
        "20k",
        "--task",
        "demo",
        "--set",
        "seed=4",
    ]
    assert call(capsys, "init", tmp_path / "r.yaml", *options)[0] == 0
    text = (tmp_path / "r.yaml").read_text()
    asked = Asked(model="demo", data=["demo"], target="0.6", tokens="20k", tasks=["demo"], sets=["seed=4"])
    assert Recipe.read(tmp_path / "r.yaml") == Recipe.parse(mapping_of(asked))
    assert (
        text.startswith("#") and "prunetune keys" in text and "extends: paper" in text and len(text.splitlines()) < 25
    )
    (tmp_path / "mine.yaml").write_text("model: precious\n")
    code, _, said = call(capsys, "init", tmp_path / "mine.yaml", *options)
    assert (
        code == 2
        and "none that this command made" in said
        and yaml.safe_load((tmp_path / "mine.yaml").read_text()) == {"model": "precious"}
    )
    code, _, said = call(capsys, "init", tmp_path / "x.yaml", *options, "--set", "scor.samples=3")
    assert code == 2 and "unknown key 'scor'" in said and not (tmp_path / "x.yaml").exists()


def test_a_ladder_takes_the_place_of_a_recipes_own_target():
    found = Recipe.parse(mapping_of(Asked(model="demo", data=["demo"], ladder="80%,0.6")))
    assert (found.prune.ladder, found.prune.target) == ([0.8, 0.6], 0.6)
    shipped = Recipe.parse(mapping_of(Asked(recipe="demo", ladder="0.8,0.6", rivals=["int8", "int4", "int8"])))
    assert (shipped.prune.ladder, shipped.prune.target) == ([0.8, 0.6], 0.6)
    assert shipped.evaluate.rivals == ["int8", "int4"] and shipped.evaluate.tasks
    with pytest.raises(RecipeError, match=r"ends at 0\.6, but the target is 0\.5"):
        Recipe.parse(mapping_of(Asked(recipe="demo", ladder="0.8,0.6", target="0.5")))
    with pytest.raises(RecipeError, match="--ladder: a ladder falls"):
        mapping_of(Asked(recipe="demo", ladder="0.6,0.8"))


def test_keep_with_a_ladder_is_no_search():
    value = mapping_of(Asked(recipe="demo", ladder="0.8,0.6", keep="95%"))
    found = Recipe.parse(value)
    assert not found.searches and found.stop_at.accuracy == 0.95 and found.prune.target == 0.6
