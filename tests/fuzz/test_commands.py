"""A handful of damaged inputs through the command line: exit code 0 or 2, one message, nothing outside the output."""

from __future__ import annotations

import os
import random
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.fake_run import fake_run
from tests.fuzz.test_readers import PLAN, READERS
from tests.fuzzing import damage
from tests.tiny import tiny_folder

from prunetune.cli import app

COUNT = max(6, int(os.environ.get("PRUNETUNE_FUZZ", "400")) // 60)


def _apply(at: Path) -> tuple[Path, list[str], str]:
    tiny_folder(at / "model", num_hidden_layers=4, intermediate_size=8)
    return READERS["plan"].make(at), ["apply", str(at / "p.json"), str(at / "model"), str(at / "out")], "json"


def _plan(at: Path) -> tuple[Path, list[str], str]:
    file = READERS["scores"].make(at)
    return (
        file,
        ["plan", str(file), "--out", str(at / "out"), "--neurons", "2", "--layers", "1", "--json"],
        "safetensors",
    )


def _dry_run(at: Path) -> tuple[Path, list[str], str]:
    file = READERS["recipe"].make(at)
    return file, ["run", str(file), "--out", str(at / "out"), "--dry-run", "--json"], "yaml"


def _inspect(at: Path) -> tuple[Path, list[str], str]:
    file = READERS["config"].make(at)
    return file, ["inspect", str(file.parent), "--target", "0.8", "--json"], "json"


def _report(at: Path) -> tuple[Path, list[str], str]:
    run = fake_run(at / "out", tasks={"demo": 10}, control=False)
    return next(run.glob("01-*/stage.json")), ["compare", str(run), "--json"], "json"


COMMANDS: dict[str, Callable[[Path], tuple[Path, list[str], str]]] = {
    "apply": _apply, "plan": _plan, "run": _dry_run, "inspect": _inspect, "compare": _report,
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.timeout(3600)
def test_exit_0_or_2(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert PLAN["depth"] == 4
    file, words, form = COMMANDS[name](tmp_path)
    valid, wrong = file.read_bytes(), []
    monkeypatch.chdir(tmp_path)

    def others() -> set[Path]:
        return {p for p in tmp_path.rglob("*") if not p.relative_to(tmp_path).parts[0].startswith(("out", ".out"))}

    there = others()
    for seed in range(COUNT):
        file.write_bytes(damage(random.Random(f"command {name} {seed}"), valid, form))
        if name != "compare":
            for made in {*tmp_path.iterdir()} - there:
                shutil.rmtree(made) if made.is_dir() else made.unlink()
        monkeypatch.setattr(sys, "argv", ["prunetune", *words])
        with pytest.raises(SystemExit) as left:
            app.main()
        out, said = capsys.readouterr()
        if left.value.code not in (0, 2) or "Traceback" in said or len(out + said) > 20_000:
            wrong.append((seed, left.value.code, re.sub(r"\s+", " ", said)[:300]))
        assert others() <= there, f"seed {seed} wrote {others() - there}"
    assert not wrong, wrong
