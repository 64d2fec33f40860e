"""What a run says first: at once, in one style, and what can be known without data and large libraries before them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from tests.tiny_run import rows, tiny_recipe

from prunetune.cli import app, run
from prunetune.common import stopping
from prunetune.common.files import write_json
from prunetune.data.hub import is_offline
from prunetune.errors import MissingPath
from prunetune.models.folders import find, resolve_model
from prunetune.runs.folder import RunFolder

LIGHT = """
import sys
from prunetune.cli.app import main
sys.argv[0] = "prunetune"
try:
    main()
finally:
    print(*[m for m in ("torch", "transformers", "datasets") if m in sys.modules], file=sys.stdout)
"""


def said(*words: object, at: Path) -> tuple[int, str, str]:
    """Exit code, which of the large libraries were loaded, and what was said."""
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, *map(str, words)], capture_output=True, text=True, check=False, cwd=at
    )
    return done.returncode, done.stdout.strip(), done.stderr


@pytest.fixture
def place(tmp_path: Path) -> Path:
    tiny_recipe(tmp_path).write(tmp_path / "recipe.yaml")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--target", "60"], "a target of 60 is no share, which is at most 1, and no model has so few parameters"),
        (["--target", "0.01"], "smaller than neurons and layers alone can reach"),
        (["--target", "150%"], "at most 100 %"),
        (["--out", "."], "this folder holds other things than a prunetune run"),
        (["--tagret", "0.5"], "no such option: --tagret"),
    ],
)
def test_what_numbers_and_names_tell_needs_no_data_and_no_large_library(place: Path, words: list[str], what: str):
    (place / "rows.jsonl").write_text("no rows at all")  # would be told, if they were read
    code, loaded, err = said("run", "recipe.yaml", "--out", "out", *words, at=place)
    assert (code, loaded) == (2, ""), err
    assert "error: " in err and what in " ".join(err.split()), err
    assert not (place / "out").exists()


def test_another_recipe_in_the_folder_is_told_first_and_so_are_other_files(place: Path):
    recipe = tiny_recipe(place)
    with RunFolder.open(place / "out", recipe, place / "model") as opened:
        write_json(opened.path / "original" / "stage.json", {"index": 0, "name": "original", "depth": 4, "width": 48})
    code, loaded, err = said("run", "recipe.yaml", "--out", "out", "--seed", "3", at=place)
    assert (code, loaded) == (2, "") and "holds results of another recipe" in err and "parameters" not in err, err
    rows(place / "rows.jsonl", n=90)
    code, loaded, err = said("run", "recipe.yaml", "--out", "out", at=place)
    assert (code, loaded) == (2, "") and "rows.jsonl changed since this run began" in err, err


def test_a_run_says_at_once_what_it_does(monkeypatch, capsys, tmp_path):
    """Before the first import of its own, off a terminal too; with --json only the result is wanted."""

    def stops(*args: Any) -> None:
        raise RuntimeError("the first work")

    monkeypatch.setattr(run, "mapping_of", stops)
    for more, first in ([], "prunetune run: the recipe"), (["--json"], None):
        with pytest.raises(RuntimeError, match="the first work"):
            app.app(["run", "demo", *more], standalone_mode=False)
        err = capsys.readouterr().err
        assert err == "" if first is None else err.startswith(first)


@pytest.mark.parametrize(
    ("words", "first"),
    [
        (["run", "--tagret", "1"], "no such option: --tagret"),
        (["rnu"], "no such command 'rnu'"),
        (["run", "demo", "--n", "x"], "invalid value for '--n'"),
        (["plan"], "missing argument"),
    ],
)
def test_a_mistyped_command_line_is_told_like_every_other_mistake(monkeypatch, capsys, words, first):
    monkeypatch.setattr(sys, "argv", ["prunetune", *words])
    with pytest.raises(SystemExit) as left:
        app.main()
    err = capsys.readouterr().err
    assert left.value.code == 2
    assert err.lower().startswith(f"error: {first}"), err
    assert "  fix:   " in err and "--help" in err and "│" not in err


@pytest.mark.parametrize(("words", "code"), [([], (0, 2)), (["--version"], (0,)), (["run", "--help"], (0,))])
def test_help_and_version_still_leave_as_they_did(monkeypatch, capsys, words, code):
    monkeypatch.setattr(sys, "argv", ["prunetune", *words])
    with pytest.raises(SystemExit) as left:
        app.main()
    assert left.value.code in code
    shown = capsys.readouterr()
    assert "prunetune" in shown.out + shown.err and "error" not in shown.err


def test_the_end_of_the_input_is_a_no_and_a_signal_is_a_signal(monkeypatch):
    def ends(*args: Any, **more: Any) -> bool:
        raise typer.Abort

    monkeypatch.setattr(typer, "confirm", ends)
    assert run._asked_to_go_on() is False
    monkeypatch.setattr(stopping._state, "asked", 2)
    with pytest.raises(KeyboardInterrupt):
        run._asked_to_go_on()


def test_a_slip_of_the_finger_does_not_wait_for_the_hub(place: Path, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setattr(find, "is_offline", lambda: pytest.fail("the hub is asked"))
    for slip, meant in ("demoo", "demo"), ("modle", "model"):
        with pytest.raises(MissingPath, match=f"did you mean {meant}"):
            resolve_model(slip)
    monkeypatch.setattr(find, "is_offline", is_offline)
    with pytest.raises(MissingPath, match="check the name and the network"):
        resolve_model("an-owner/of-something")
    with pytest.raises(MissingPath, match=f"did you mean {place.name}/model"):
        monkeypatch.chdir(place.parent)
        resolve_model(f"{place.name}/modle")


def test_a_missing_file_says_who_named_it(place: Path):
    code, _, err = said("run", "recipe.yaml", "-d", "none.csv", at=place)
    assert code == 2 and "no such data file to score and to train with" in err and "--data" in err, err
    code, _, err = said("run", "recipe.yaml", "-t", "mine=none.csv", "--verifier", "number", at=place)
    assert code == 2 and "no such data file, for the task mine" in err, err


def test_a_recipe_is_no_model(place: Path):
    code, loaded, err = said("run", "--model", "paper/gemma2-9b", "-d", "rows.jsonl", "--target", "0.5", at=place)
    assert (code, loaded) == (2, "") and "this is a recipe, not a model" in err
