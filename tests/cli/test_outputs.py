"""Every path that a command writes to, against what must stay: each refusal is one message, exit 2, and nothing is gone.

The table is complete: `test_every_path_is_in_the_table` walks the options of every command.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_type_hints

import pytest
from tests.cli.test_app import call
from tests.fake_run import fake_run
from tests.pruning.vocabulary.test_folder import folder_of
from tests.tiny import tiny_folder
from tests.tiny_run import rows, tiny_recipe

from prunetune.cli import app as cli
from prunetune.common import files
from prunetune.models.folders import model_sha
from prunetune.pruning.plan import PrunePlan
from prunetune.pruning.scores import Scores

Command = Callable[[Path, Path], list[object]]  # inputs, output -> arguments

TABLE: dict[tuple[str, str], Command] = {
    ("score", "out"): lambda at, out: ["score", at / "model", "--data", at / "rows.jsonl", "--samples", 4, "--out", out],
    ("plan", "out"): lambda at, out: ["plan", at / "s.safetensors", "--neurons", 4, "--out", out],
    ("compensate", "out"): lambda at, out: [
        "compensate", at / "p.json", at / "model", "--data", at / "rows.jsonl", "--samples", 4, "--out", out
    ],
    ("apply", "out"): lambda at, out: ["apply", at / "p.json", at / "model", out],
    ("tune", "out"): lambda at, out: ["tune", "cpt", at / "model", out, "--data", at / "rows.jsonl", "--samples", 8],
    ("generate", "out"): lambda at, out: ["generate", at / "model", out, "--data", "demo", "--n", 2],
    ("eval", "out"): lambda at, out: [
        "eval", at / "model", "--task", "sums", "--path", at / "rows.jsonl", "--verifier", "number", "--n", 2, "--out", out
    ],
    ("run", "out"): lambda at, out: ["run", at / "recipe.yaml", "--out", out],
    ("init", "file"): lambda at, out: ["init", out, "--model", at / "model", "--data", at / "rows.jsonl", "--target", 0.8],
    ("vocabulary", "out"): lambda at, out: ["vocabulary", at / "bpe", out, "--data", at / "rows.jsonl"],
    ("export", "out"): lambda at, out: ["export", at / "bpe", "--out", out],
    ("compare", "figure"): lambda at, out: ["compare", at / "run", "--figure", out],
}  # fmt: skip
READ = {
    ("plan", "scores"), ("plan", "protect"), ("apply", "plan"), ("apply", "patch"), ("compensate", "plan"), ("tune", "config"), ("compare", "runs"), ("check", "run"),
    ("push", "run"), ("export", "run"), ("export", "text"), ("tune", "plan"), ("report", "run"), ("watch", "run"), ("runs", "folder"), ("eval", "path"),
}  # fmt: skip
"""Paths that are read; `report` writes into a run that it has recognised."""


def test_every_path_is_in_the_table() -> None:
    words = ("out", "figure", "path", "file", "folder", "cache", "config")
    found = {
        (name, key)
        for name, command in cli.COMMANDS.items()
        for key, hint in get_type_hints(command).items()
        if "Path" in str(hint) or key in words
    }
    assert found == {*TABLE, *READ}, "a new path of a command belongs into one of the two"


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    at = tmp_path_factory.mktemp("inputs")
    tiny_folder(at / "model")
    folder_of("byte-level", at / "bpe")
    rows(at / "rows.jsonl")
    sha = model_sha(at / "model")
    Scores(torch.rand(4, 48), torch.ones(4), torch.ones(4), "contribution", "l2", sha, "d", 8).write(
        at / "s.safetensors"
    )
    PrunePlan(model_sha=sha, depth=4, width=48, drop_layers=(1,)).write(at / "p.json")
    tiny_recipe(at).write(at / "recipe.yaml")
    fake_run(at / "run")
    return at


def snapshot(folder: Path) -> dict[str, bytes | str]:
    """Everything in a folder, locks aside."""
    return {
        str(p.relative_to(folder)): str(p.readlink()) if p.is_symlink() else p.read_bytes() if p.is_file() else "folder"
        for p in sorted(folder.rglob("*"))
        if p.name != ".lock"
    }


def strange_places(place: Path) -> dict[str, Path]:
    """What a user may name by mistake, all in one folder."""
    (place / "full").mkdir(parents=True)
    (place / "full" / "precious").write_text("mine")
    (place / "full" / "01-neurons-80").mkdir()
    (place / "full" / "01-neurons-80" / "notes.txt").write_text("mine")
    (place / "full" / "final").mkdir()
    (place / "full" / "final" / "config.json").write_text("{}")
    (place / "full" / "recipe.yaml").write_text("flour: 500 g\nsugar: 200 g\n")
    (place / "file.json").write_text('{"mine": true}')
    (place / "link").symlink_to(place / "full")
    (place / "dangling").symlink_to(place / "nowhere")
    (place / "file-link").symlink_to(place / "file.json")
    fake_run(place / "parent" / "run", finished=False)
    return {
        "folder with a file": place / "full", "folder, slash": Path(f"{place / 'full'}/"), "file": place / "file.json",
        "link to a folder": place / "link", "link to a file": place / "file-link", "dangling link": place / "dangling",
        "current folder": Path(), "current folder by name": place, "parent of a run": place / "parent",
        "above": Path(".."), "below a file": place / "file.json" / "x", "device": Path(os.devnull),
    }  # fmt: skip


@pytest.fixture(scope="module")
def strange(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    place = tmp_path_factory.mktemp("outer") / "strange"
    return place, strange_places(place)


@pytest.mark.parametrize("which", TABLE, ids="-".join)
def test_nothing_of_others_is_deleted_or_overwritten(
    which: tuple[str, str],
    at: Path,
    strange: tuple[Path, dict[str, Path]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place, named = strange
    monkeypatch.chdir(place)
    before, inputs = snapshot(place.parent), snapshot(at)
    for kind, out in named.items():
        code, _, err = call(capsys, *TABLE[which](at, out))
        assert code == 2, (which, kind, code, err)
        assert "error: " in err and "fix:" in err and "Traceback" not in err, (kind, err)
        assert snapshot(place.parent) == before, (which, kind, err)
    assert snapshot(at) == inputs


@pytest.fixture
def no_deletions(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A fake root: whatever would delete or rename is only noted."""
    seen: list[str] = []
    monkeypatch.setattr(files.shutil, "rmtree", lambda p, *a, **k: seen.append(f"rmtree {p}"))
    for name in ("unlink", "rename", "rmdir"):
        monkeypatch.setattr(Path, name, lambda self, *a, _name=name, **k: seen.append(f"{_name} {self}"))
    yield seen


@pytest.mark.parametrize("which", TABLE, ids="-".join)
def test_the_root_stays(
    which: tuple[str, str], at: Path, capsys: pytest.CaptureFixture[str], no_deletions: list[str]
) -> None:
    for root in ("/", "/.", "//", f"{os.sep}tmp{os.sep}.."):
        code, _, err = call(capsys, *TABLE[which](at, Path(root)))
        assert code == 2 and "error: " in err and "Traceback" not in err, (root, err)
    assert no_deletions == []


# ------------------------------------------------------------------------------------------------- what is ours


def test_files_of_ours_are_replaced_and_told(at: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(at / "s.safetensors", tmp_path / "s.safetensors")  # no note: known by its content
    plans = tmp_path / "p.json"
    args = ["plan", tmp_path / "s.safetensors", "--neurons", 4, "--out", plans]
    for n in (4, 4, 8):
        args[3] = n
        assert call(capsys, *args)[0] == 0
    assert PrunePlan.read(plans).new_width == 40
    (tmp_path / ".p.json.key").unlink()
    assert call(capsys, *args)[0] == 0
    plans.write_text(json.dumps({"plan": "of a holiday"}))
    code, _, err = call(capsys, *args)
    assert code == 2 and "none that this command made" in err and "holiday" in plans.read_text()
    out = tmp_path / "f.svg"
    for _ in range(2):
        assert call(capsys, "compare", at / "run", "--figure", out)[0] == 0
    out.write_text("<svg>mine</svg>")
    code, _, err = call(capsys, "compare", at / "run", "--figure", out)
    assert code == 2 and out.read_text() == "<svg>mine</svg>"
    for wrong in (
        ["plan", at / "s.safetensors", "--neurons", 4, "--out", at / "s.safetensors"],
        ["compare", at / "run", "--figure", plans],
    ):
        before = wrong[-1].read_bytes()
        assert call(capsys, *wrong)[0] == 2 and wrong[-1].read_bytes() == before, "ours, but of another kind"


def test_apply_again_and_with_another_plan(at: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    out.mkdir()  # an empty folder is welcome
    args = ["apply", at / "p.json", at / "model", out]
    assert call(capsys, *args)[0] == 0
    first = snapshot(tmp_path)
    code, _, err = call(capsys, *args)
    assert code == 0 and "made already" in err
    other = PrunePlan(model_sha=model_sha(at / "model"), depth=4, width=48, drop_layers=(2,))
    other.write(tmp_path / "other.json")
    code, _, err = call(capsys, "apply", tmp_path / "other.json", at / "model", out)
    assert code == 2 and "made with other arguments" in err and "nothing is thrown away" in err
    (tmp_path / "other.json").unlink()
    assert snapshot(tmp_path) == first
    assert sorted(p.name for p in tmp_path.iterdir()) == [".out.key", "out"]
    weights = out / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[len(raw) // 2] ^= 1
    weights.write_bytes(raw)
    for command in (args, ["score", out, "--data", at / "rows.jsonl", "--out", tmp_path / "s"]):
        code, _, err = call(capsys, *command)
        assert code == 2 and "not what prunetune wrote" in err and "model.safetensors: sha256" in err, err


def test_a_recipe_for_cakes_is_no_run_of_ours(tmp_path: Path, at: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cake = tmp_path / "cake"
    (cake / "original").mkdir(parents=True)
    (cake / "original" / "photo.jpg").write_text("cake")
    (cake / "recipe.yaml").write_text("model: cake\ndata: [flour]\n")
    before = snapshot(cake)
    code, _, err = call(capsys, *TABLE["run", "out"](at, cake))
    assert code == 2 and "holds other things than a prunetune run" in err
    assert snapshot(cake) == before


def test_a_recipe_that_init_wrote_may_be_edited(at: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "recipe.yaml"
    args = TABLE["init", "file"](at, file)
    code, _, err = call(capsys, *args)
    assert code == 0, err
    file.write_text(
        file.read_text() + "seed: 3\n" if "seed:" not in file.read_text() else file.read_text() + "# mine\n"
    )
    code, _, err = call(capsys, "run", file, "--dry-run")
    assert "not what prunetune wrote" not in err
    mine = file.read_bytes()
    assert call(capsys, *args)[0] == 2
    assert file.read_bytes() == mine and sorted(p.name for p in tmp_path.iterdir()) == ["recipe.yaml"]
