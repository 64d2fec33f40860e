"""The control differs from the run that it stands beside, and is called what it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.tiny_run import tiny_recipe

from prunetune.cli.preview import closing
from prunetune.common.files import file_sha
from prunetune.common.progress import Watch
from prunetune.loop.control import BARE, ONCE, name_of
from prunetune.loop.loop import prune_tune_loop
from prunetune.runs.summary import Summary

ONE_ROUND: dict[str, Any] = {
    "prune": {"target": {"width": 48, "depth": 3}, "rounds": 1, "order": "together", "align": 4},
    "evaluate": {"tasks": [], "latency_repeats": 0},
    "compensate": "least-squares",
    "control": "once",
}


class Heard(Watch):
    """Keeps the lines."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)


def run(at: Path, **changes: Any) -> tuple[Summary, Path, list[str]]:
    heard = Heard()
    made = prune_tune_loop(tiny_recipe(at, **{**ONE_ROUND, **changes}), at / "out", heard)
    return made, at / "out", heard.lines


def test_of_one_round_it_is_the_bare_cut(tmp_path: Path) -> None:
    summary, out, lines = run(tmp_path, score={"samples": 8, "held_out": 4, "max_length": 64, "criterion": "greedy"})
    said = json.loads((out / "control" / "summary.json").read_text())
    assert (said["recipe"]["compensate"], said["recipe"]["score"]["criterion"]) == ("none", "contribution")
    assert summary.control is not None and summary.control.name == BARE
    assert summary.final is not None and said["final"]["cost"]["params"] == summary.final.params
    assert said["recovery_tokens"] == summary.recovery_tokens
    assert file_sha(out / "control/final/model.safetensors") != file_sha(out / "final/model.safetensors")
    assert any(line.startswith("control (bare cut): the run is one round already") for line in lines)
    for page in ("report.md", "report.html"):
        assert BARE in (out / page).read_text() and ONCE not in (out / page).read_text()
    assert BARE in closing(summary, out)
    before = (out / "control" / "summary.json").read_bytes()
    again, *_ = run(tmp_path, score={"samples": 8, "held_out": 4, "max_length": 64, "criterion": "greedy"})
    assert again.control == summary.control and (out / "control" / "summary.json").read_bytes() == before


def test_of_a_bare_cut_there_is_none(tmp_path: Path) -> None:
    score = {"samples": 8, "held_out": 4, "max_length": 64, "criterion": "contribution"}
    summary, out, lines = run(tmp_path, compensate="none", score=score)
    assert summary.control is None and not (out / "control").exists()
    assert any("control: none" in line for line in lines)
    assert "would have been this run again" in (out / "report.md").read_text()


@pytest.mark.parametrize(
    ("ours", "theirs", "name"),
    [
        (("least-squares", "greedy"), ("least-squares", "greedy"), ONCE),
        (("none", "activation"), ("none", "activation"), ONCE),
        (("none", "contribution"), ("none", "contribution"), ONCE),
        (("least-squares", "greedy"), ("none", "contribution"), BARE),
        (("none", "activation"), ("none", "contribution"), BARE),
    ],
)
def test_its_name_is_known_from_both_recipes(ours: tuple[str, str], theirs: tuple[str, str], name: str) -> None:
    made = [{"compensate": c, "score": {"criterion": s}} for c, s in (ours, theirs)]
    assert name_of(*made) == name
