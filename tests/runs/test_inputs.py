"""Files that a run reads and that change under it: every kind of them is noticed, and nothing is lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tests.tiny_run import rows, tiny_recipe

from prunetune.common.files import write_json
from prunetune.errors import RecipeChanged
from prunetune.recipe.schema import Recipe
from prunetune.runs import inputs
from prunetune.runs.folder import RunFolder
from prunetune.runs.inputs import NOTE, changed_verifiers, inputs_of

KINDS = {
    "train.jsonl": "data.0.path",
    "scored.jsonl": "score.data.0.path",
    "own.jsonl": "recover.0.data.0.path",
    "replayed.jsonl": "recover.0.replay.sources.0.path",
    "guarded.jsonl": "protect.data.0.path",
    "asked.jsonl": "data.1.from.path",
    "questions.jsonl": "evaluate.tasks.0.path",
    "decides.jsonl": "stop_at.task.path",
    "clone/data/test.jsonl": "evaluate.tasks.1.path",
    "model/config.json": "model",
    "model/model.safetensors": "model",
    "teacher/config.json": "recover.1.teacher",
}
"""A file of each kind -> where the recipe names it."""
LATER = ("own.jsonl", "replayed.jsonl", "guarded.jsonl", "teacher/config.json", "decides.jsonl")
"""Those that first matter in a round."""


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """A recipe that reads a file of every kind."""
    value = tiny_recipe(tmp_path).model_dump(mode="json")
    for name in KINDS:
        if name.endswith(".jsonl"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            rows(tmp_path / name)
    (tmp_path / "judge.py").write_text("def right(output, reference):\n    return True\n")
    shutil.copytree(tmp_path / "model", tmp_path / "teacher")

    def file(name: str) -> dict[str, str]:
        return {"type": "file", "path": str(tmp_path / name)}

    judge = f"{tmp_path / 'judge.py'}:right"
    mine = {"name": "mine", "path": str(tmp_path / "questions.jsonl"), "verifier": judge, "allow_custom_code": True}
    value["data"] = [file("train.jsonl"), {"type": "traces", "from": file("asked.jsonl")}]
    value["score"]["data"] = [file("scored.jsonl")]
    cpt = {**value["recover"][0], "data": [file("own.jsonl")], "replay": {"sources": [file("replayed.jsonl")]}}
    value["recover"] = [cpt, {"type": "distill", "teacher": str(tmp_path / "teacher")}]
    value["protect"] = {"data": [file("guarded.jsonl")]}
    value["evaluate"]["tasks"] = [mine, {"name": "gsm8k", "path": str(tmp_path / "clone")}]
    value["stop_at"] = {
        "accuracy": 0.9,
        "task": {"name": "x", "path": str(tmp_path / "decides.jsonl"), "verifier": "number"},
    }
    return Recipe.parse(value)


def begun(out: Path, recipe: Recipe, tmp_path: Path) -> None:
    """A run whose original is measured."""
    with RunFolder.open(out, recipe, tmp_path / "model") as run:
        write_json(run.path / "original" / "stage.json", {"index": 0, "name": "original", "depth": 4, "width": 48})


def opened(out: Path, recipe: Recipe, tmp_path: Path) -> None:
    with RunFolder.open(out, recipe, tmp_path / "model"):
        pass


def test_every_kind_of_file_is_an_input_and_a_change_of_it_is_refused(recipe, tmp_path):
    out = tmp_path / "run"
    found = {key: each.path for each in inputs_of(recipe) for key in each.keys}
    assert found == {
        key: tmp_path / (name.split("/")[0] if key in ("model", "recover.1.teacher", "evaluate.tasks.1.path") else name)
        for name, key in KINDS.items()
    }
    begun(out, recipe, tmp_path)
    opened(out, recipe, tmp_path)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    for name in KINDS:
        file = tmp_path / name
        bytes_ = file.read_bytes()
        file.write_bytes(bytes_ + b"\n")
        if name in LATER:
            opened(out, recipe, tmp_path)  # no round is begun: nothing was made of it yet
            file.write_bytes(bytes_)
            opened(out, recipe, tmp_path)
            continue
        with pytest.raises(RecipeChanged, match=f"{file.name} changed since this run began") as e:
            opened(out, recipe, tmp_path)
        assert str(file) in str(e.value.value) and "new --out" in str(e.value.fix) and "put the old" in str(e.value.fix)
        file.write_bytes(bytes_)
        opened(out, recipe, tmp_path)  # the same bytes at another time
    after = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert {k: v for k, v in after.items() if k.name != NOTE} == {k: v for k, v in before.items() if k.name != NOTE}


def test_what_a_round_was_recovered_with_is_kept_too(recipe, tmp_path):
    begun(tmp_path / "run", recipe, tmp_path)
    (tmp_path / "run" / "01-neurons-8" / "tuned").mkdir(parents=True)
    for name in LATER:
        file = tmp_path / name
        bytes_ = file.read_bytes()
        file.write_bytes(b"\n" + bytes_)
        with pytest.raises(RecipeChanged, match=file.name):
            opened(tmp_path / "run", recipe, tmp_path)
        file.write_bytes(bytes_)


def test_files_in_a_folder_that_come_and_go_are_noticed_and_a_run_in_it_is_none_of_them(recipe, tmp_path):
    out, clone = tmp_path / "clone" / "runs" / "one", tmp_path / "clone"
    begun(out, recipe, tmp_path)
    (clone / ".cache").mkdir()
    (clone / ".cache" / "lock").write_text("x")
    opened(out, recipe, tmp_path)
    (clone / "more.jsonl").write_text("{}\n")
    with pytest.raises(RecipeChanged, match=r"more\.jsonl"):
        opened(out, recipe, tmp_path)
    (clone / "more.jsonl").unlink()
    (clone / "data" / "test.jsonl").rename(tmp_path / "away")
    with pytest.raises(RecipeChanged, match=r"test\.jsonl"):
        opened(out, recipe, tmp_path)


def test_before_the_original_is_measured_files_may_change(recipe, tmp_path):
    opened(tmp_path / "run", recipe, tmp_path)
    rows(tmp_path / "train.jsonl", n=50)
    begun(tmp_path / "run", recipe, tmp_path)
    rows(tmp_path / "train.jsonl", n=40)
    with pytest.raises(RecipeChanged):
        opened(tmp_path / "run", recipe, tmp_path)


@pytest.mark.parametrize("damaged", [False, True])
def test_a_run_of_an_earlier_version_goes_on_and_is_guarded_from_then_on(recipe, tmp_path, damaged):
    out = tmp_path / "run"
    begun(out, recipe, tmp_path)
    (out / NOTE).write_text("[") if damaged else (out / NOTE).unlink()
    rows(tmp_path / "train.jsonl", n=50)
    opened(out, recipe, tmp_path)
    rows(tmp_path / "train.jsonl", n=40)
    with pytest.raises(RecipeChanged):
        opened(out, recipe, tmp_path)


def test_files_of_the_same_size_and_time_are_not_read_again(recipe, tmp_path, monkeypatch):
    begun(tmp_path / "run", recipe, tmp_path)
    monkeypatch.setattr(inputs, "full_sha", lambda path: pytest.fail(f"{path} is read"))
    opened(tmp_path / "run", recipe, tmp_path)


def test_a_task_may_be_added_and_is_kept_from_then_on(tmp_path):
    out, recipe = tmp_path / "run", tiny_recipe(tmp_path)
    begun(out, recipe, tmp_path)
    rows(tmp_path / "more.jsonl")
    value = recipe.model_dump(mode="json")
    value["evaluate"]["tasks"].append({"name": "more", "path": str(tmp_path / "more.jsonl"), "verifier": "number"})
    opened(out, Recipe.parse(value), tmp_path)
    rows(tmp_path / "more.jsonl", n=30)
    with pytest.raises(RecipeChanged, match=r"more\.jsonl"):
        opened(out, Recipe.parse(value), tmp_path)
    assert set(json.loads((out / NOTE).read_text())) == {
        str(tmp_path / n) for n in ("model", "rows.jsonl", "more.jsonl")
    }


def test_a_mended_verifier_is_known_until_the_next_start_and_is_not_refused(recipe, tmp_path):
    out, judge = tmp_path / "run", tmp_path / "judge.py"
    begun(out, recipe, tmp_path)
    assert changed_verifiers(out, recipe) == []
    judge.write_text(judge.read_text() + "# mended\n")
    assert changed_verifiers(out, recipe) == [judge]
    opened(out, recipe, tmp_path)
    assert changed_verifiers(out, recipe) == []
