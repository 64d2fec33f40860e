"""Rough days: killed anywhere, full disks, flipped bytes. `make kill` does it thirty times, the suite a few.

Whatever happens, the same command ends with the tensors and the files of an undisturbed run, or with one message.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.cli.test_app import call
from tests.loop.kills import recipe_of

from prunetune.common.progress import Watch
from prunetune.errors import BadCheckpoint, NotWritable
from prunetune.loop.loop import prune_tune_loop
from prunetune.loop.recovery import recover as recovering
from prunetune.models.folders import model_sha

TIMES = int(os.environ.get("PRUNETUNE_KILLS", "3"))
SEED = int(os.environ.get("PRUNETUNE_SEED", "0"))
QUIET = Watch(quiet=True)

NAMED = re.compile(
    r"\.lock|\.prunetune|\.inputs\.json|recipe\.yaml|events\.jsonl|(original|[0-9]{2}-[\w+-]+)(/(scores\.safetensors|patch\.safetensors|plan\.json|stage\.json|full\.json"
    r"|tune-\d-\w+\.json|\.measured\.json|eval(/\w+\.jsonl)?))?|([0-9]{2}-[\w+-]+/tuned|final)(/(config|generation_config|tokenizer"
    r"|tokenizer_config)\.json|/model\.safetensors)?|final/README\.md|summary\.json|report\.(md|html)|figures(/[\w-]+\.svg)?"
)
"""What docs/architecture.md names; besides it only the notes (`.NAME.key`, `.NAME.seconds`) of such things, or of what went."""


APART = ["unshare", "--user", "--map-root-user", "--mount"]
"""In a mount namespace of its own, where a disk may be mounted without privileges."""


def chain(name: str, at: Path, times: int, *before: str) -> list[str]:
    """Run one of the chains in a process of its own, since it forks."""
    command = [*before, sys.executable, "-m", f"tests.loop.{name}", str(at), str(SEED), str(times)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr[-3000:]
    told: list[str] = json.loads(done.stdout.splitlines()[-1])
    return told


def listing(run: Path) -> set[str]:
    return {str(p.relative_to(run)) for p in run.rglob("*")}


def weights(run: Path) -> dict[str, bytes]:
    return {str(p.relative_to(run)): p.read_bytes() for p in sorted(run.rglob("*.safetensors"))}


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`straight`, an undisturbed run, and `killed-1`, …: the same killed again and again."""
    at = tmp_path_factory.mktemp("rough")
    kills = chain("kills", at, TIMES)
    assert len(kills) == TIMES, kills
    return at


def test_killed_anywhere(at: Path) -> None:
    for run in at.glob("killed-*"):
        assert weights(run) == weights(at / "straight")
        assert listing(run) == listing(at / "straight"), "nothing is left behind"


def test_nothing_but_what_the_contract_names(at: Path) -> None:
    for name in listing(at / "straight"):
        thing = re.sub(r"(^|/)\.([^/]+)\.(key|seconds)$", r"\1\2", name)
        gone = re.fullmatch(r"[0-9]{2}-[\w+-]+/(pruned|tuned)", thing)
        assert NAMED.fullmatch(thing) or (gone and thing != name), name


@pytest.mark.thorough
def test_full_disks(at: Path) -> None:
    said = chain("full_disks", at, max(2, TIMES - 1))
    assert len(said) >= 1
    assert all(s.startswith("no space left on the disk\n") and "free space, then run again" in s for s in said)
    assert weights(at / "filled") == weights(at / "straight")
    assert listing(at / "filled") == listing(at / "straight")


def may_mount(at: Path) -> bool:
    """Whether this machine lets a namespace of its own mount a disk."""
    if shutil.which(APART[0]) is None:
        return False
    mount = [*APART, "mount", "-t", "tmpfs", "tmpfs", str(at)]
    return subprocess.run(mount, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif("PRUNETUNE_KILLS" not in os.environ, reason="minutes: make kill runs it")
def test_full_at_a_drawn_byte(tmp_path: Path) -> None:
    """The chain itself sees to status 2, and to equal tensors and files after the next start."""
    if not may_mount(tmp_path):
        pytest.skip("no mount namespaces here")
    times = 20 if TIMES > 10 else 1
    said = chain("small_disks", tmp_path, times, *APART)
    assert len(said) == times
    for text in said:
        assert text.startswith("error: no space left ") and "free space, then run again" in text
        assert text.count("error: ") == 1 and "Traceback" not in text and "got:" in text, text


def flip(file: Path) -> None:
    """Change the lowest bit of the middle byte."""
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    os.unlink(file)  # noqa: PTH108 - a hard link: the other name keeps its bytes
    file.write_bytes(raw)


LAST = "02-neurons-8"
KEPT = [
    f"{LAST}/scores.safetensors", f"{LAST}/patch.safetensors", f"{LAST}/plan.json", f"{LAST}/stage.json", f"{LAST}/tune-0-cpt.json",
    f"{LAST}/tuned/model.safetensors", f"{LAST}/tuned/config.json", f"{LAST}/tuned/tokenizer.json", f"{LAST}/eval/sums.jsonl",
]  # fmt: skip
ANEW = ["original/stage.json", "original/eval/sums.jsonl", "final/model.safetensors", "final/tokenizer.json"]


@pytest.mark.parametrize("name", [*KEPT, *ANEW, "summary.json"])
def test_a_flipped_byte_in_a_finished_run(
    at: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(at / "straight", run)
    flip(run / name)
    for command in (["report"], ["compare"], ["check"], ["push"]):
        code, _, err = call(capsys, *command, run, *(["me/small"] if command == ["push"] else []))
        assert code == 2, (command, err)
        assert f"{run / name}: sha256" in err and "not what prunetune wrote" in err and "valid: sha256" in err, err
    if name in KEPT:
        with pytest.raises(BadCheckpoint, match="not what prunetune wrote"):
            prune_tune_loop(recipe_of(at), run, QUIET)


@pytest.mark.parametrize("name", ["original/stage.json", "final/model.safetensors"])
def test_what_can_be_made_anew_is(at: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    shutil.copytree(at / "straight", run)
    flip(run / name)
    prune_tune_loop(recipe_of(at), run, QUIET)
    assert "it is made anew" in capsys.readouterr().err
    assert weights(run) == weights(at / "straight")


def test_a_run_of_version_0_1_goes_on(at: Path, tmp_path: Path) -> None:
    """Notes with the key alone, no mark, and a left-over folder: as 0.1 left them."""
    run = tmp_path / "run"
    shutil.copytree(at / "straight", run)
    for note in run.rglob(".*.key"):
        key = json.loads(note.read_text())["key"]
        note.write_text(key) if key else note.unlink()
    (run / ".prunetune").unlink()
    stamps = {p: p.stat().st_mtime_ns for p in run.rglob("*.safetensors")}
    (run / LAST / ".tuned.gone").mkdir()
    (run / LAST / ".tuned.gone" / "model.safetensors").write_text("half deleted")
    prune_tune_loop(recipe_of(at), run, QUIET)
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*.safetensors")} == stamps
    assert not (run / LAST / ".tuned.gone").exists()


def test_a_copy_without_hidden_files_goes_on(at: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(at / "straight", run, ignore=shutil.ignore_patterns(".*"))
    shutil.rmtree(run / LAST / "tuned")
    prune_tune_loop(recipe_of(at), run, QUIET)
    assert model_sha(run / "final") == model_sha(at / "straight" / "final")


def test_a_byte_flipped_between_two_stages(
    at: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:

        def stop(*args: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(recovering, "launch", stop)
        with pytest.raises(KeyboardInterrupt):
            prune_tune_loop(recipe_of(at), run, QUIET)
    for name in ("pruned/model.safetensors", "scores.safetensors", "patch.safetensors", "plan.json"):
        flip(run / "01-neurons-8" / name)
    prune_tune_loop(recipe_of(at), run, QUIET)
    assert capsys.readouterr().err.count("it is made anew") == 4
    assert weights(run) == weights(at / "straight")


def test_other_work_in_the_way_is_told_and_stays(at: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(at / "straight", run)
    shutil.rmtree(run / "final")
    (run / "final").mkdir()
    (run / "final" / "thesis.tex").write_text("years")
    (run / "02-my-notes").mkdir()
    with pytest.raises(NotWritable, match="did not"):
        prune_tune_loop(recipe_of(at), run, QUIET)
    assert (run / "final" / "thesis.tex").read_text() == "years" and (run / "02-my-notes").is_dir()
