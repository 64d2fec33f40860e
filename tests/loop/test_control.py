"""The control differs from the run that it stands beside, and is called what it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny_run import tiny_recipe

from prunetune.cli.preview import closing
from prunetune.common.files import file_sha
from prunetune.common.progress import Watch
from prunetune.loop.control import BARE, NAIVE, ONCE, name_of
from prunetune.loop.loop import prune_tune_loop
from prunetune.models.folders import load_model
from prunetune.pruning.plan import PrunePlan
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


def test_naive_is_the_same_size_by_hand_with_nothing_done_about_it(tmp_path: Path) -> None:
    """The last layers and, by the norms of their weights, the smallest neurons; the rest of the model is as it was."""
    summary, out, lines = run(tmp_path, control="naive")
    assert summary.control is not None and summary.control.name == NAIVE
    assert summary.final is not None and summary.recovery_tokens
    said = Summary.read(out / "control" / "summary.json")
    assert said.final is not None and said.final.shape == summary.final.shape
    assert (said.recovery_tokens, summary.control.recovery_tokens) == (0, 0)
    (stage,) = said.stages
    plan = PrunePlan.read(out / "control" / stage.name / "plan.json")
    whole = load_model(out.parent / "model", torch.float32)
    depth, kept = whole.config.num_hidden_layers, stage.depth or 0
    assert plan.drop_layers == tuple(range(kept, depth)) != ()
    cut = load_model(out / "control" / "final", torch.float32)
    for ours, theirs in zip(cut.model.layers, whole.model.layers, strict=False):
        mlp = theirs.mlp
        parts = (mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight.T)
        size = sum(w.square().sum(1) for w in parts)
        stay = size.topk(stage.width or 0).indices.sort().values
        torch.testing.assert_close(ours.mlp.down_proj.weight, mlp.down_proj.weight[:, stay])
    assert any("control (naive cut)" in line and "(0 tokens)" in line for line in lines)
    assert "straight after the cut: no recovery tokens" in (out / "report.md").read_text()
    assert NAIVE in closing(summary, out)


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
    by_hand = {"compensate": "none", "score": {"criterion": "magnitude"}, "recover": []}
    assert name_of(made[0], by_hand) == NAIVE
    assert name_of(made[0], {**by_hand, "recover": [{"type": "cpt"}]}) == ONCE
