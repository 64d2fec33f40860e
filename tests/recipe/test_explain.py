"""Mistakes in a run's recovery: each is one message and exit code 2, and the same run folder goes on once it is mended."""

from __future__ import annotations

import shutil
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.tiny import tiny_folder
from tests.tiny_run import tiny_recipe

from prunetune.cli import app as cli

STEP = {"per": "round", "batch_size": 4, "micro_batch_size": 4, "precision": "fp32", "checkpoint_minutes": 1e-9}
GRPO: dict[str, Any] = {"type": "grpo", "samples": 12, **STEP, "group": 2, "max_new_tokens": 4, "max_length": 64}
VERIFIER = """
def right(output, reference):
    if BROKEN:
        return 1 // 0
    return output.rpartition("####")[2].strip() == reference.rpartition("####")[2].strip()
"""
Usage = namedtuple("Usage", "total used free")


@pytest.mark.slow
def test_each_is_one_message_and_the_run_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    verifier = tmp_path / "verifier.py"
    verifier.write_text("BROKEN = False" + VERIFIER)
    base = tiny_recipe(tmp_path, prune={"target": 0.9, "step": 0.5, "align": 4}).model_dump(
        mode="json", exclude_unset=True
    )
    base["evaluate"]["tasks"][0] |= {"verifier": f"{verifier}:right", "allow_custom_code": True}

    def run(*recover: dict[str, Any]) -> tuple[int, str]:
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump(base | {"recover": list(recover)}))
        monkeypatch.setattr(sys, "argv", ["prunetune", "run", str(file), "--out", str(tmp_path / "run"), "--json"])
        try:
            cli.main()
            code = 0
        except SystemExit as e:
            code = int(e.code or 0)
        said = capsys.readouterr().err
        assert "Traceback" not in said and said.count("error:") == (code == 2), said
        return code, said

    def refused(word: str, *recover: dict[str, Any]) -> None:
        code, said = run(*recover)
        assert code == 2 and word in said, said
        assert not (tmp_path / "run/summary.json").exists()

    cpt = {"type": "cpt", "samples": 16, **STEP, "max_length": 64}
    refused("adafactor", {**cpt, "optimizer": "adamwe"})
    assert not (tmp_path / "run").exists(), "said before any work"
    other = str(tiny_folder(tmp_path / "other", vocab_size=110))
    refused("another vocabulary", {**cpt, "type": "distill", "teacher": other})
    (scores,) = (tmp_path / "run").glob("01-*/scores.safetensors")
    made = scores.stat().st_mtime_ns
    refused("no prompt", {**GRPO, "max_length": 2})
    verifier.write_text("BROKEN = True" + VERIFIER)
    refused("right raised ZeroDivisionError", GRPO)
    verifier.write_text("BROKEN = False" + VERIFIER)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9, 1000))
        refused("no space left for the tuned model", GRPO)
    assert run(GRPO)[0] == 0
    assert (tmp_path / "run/summary.json").is_file() and (tmp_path / "run/final/config.json").is_file()
    assert scores.stat().st_mtime_ns == made, "what was whole before is not made again"
