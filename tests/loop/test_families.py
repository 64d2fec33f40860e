"""Every family goes through a whole loop: two rounds, each scored, cut, and recovered with cpt and grpo."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.tiny import EXTRA, MIXTURES, tiny_folder
from tests.tiny_run import rows, tiny_recipe
from transformers import AutoModelForCausalLM

from prunetune.common.files import read_json
from prunetune.loop import loop
from prunetune.models.axes import axis_of
from prunetune.models.families import FAMILIES

CPT = {"type": "cpt", "samples": 4, "batch_size": 2, "learning_rate": 1e-3, "max_length": 40}
GRPO = {"type": "grpo", "samples": 2, "batch_size": 1, "group": 2, "max_length": 40, "max_new_tokens": 2}
RECOVERED, LOOPED = ("cpt", "grpo"), list(FAMILIES)
"""What docs/families.md says of these families."""


@pytest.mark.parametrize("name", LOOPED)
def test_two_rounds(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "write_report", lambda *_args, **_options: None)  # figures, which know of no family
    two = {"num_hidden_layers": 2, **{k: v[:2] for k, v in EXTRA[name].items() if k == "layer_types"}}
    tiny_folder(tmp_path / "model", name, max_position_embeddings=64, **two)
    rows(tmp_path / "rows.jsonl", 24)
    task = {
        "name": "sums", "path": str(tmp_path / "rows.jsonl"), "verifier": "number", "n": 1, "max_new_tokens": 1
    }  # fmt: skip
    recipe = tiny_recipe(
        tmp_path,
        prune={"target": 0.85, "step": 0.15 if name in MIXTURES else 0.1, "align": 4, "layers": 0},
        score={"samples": 4, "held_out": 2, "max_length": 40},
        recover=[CPT, GRPO],
        evaluate={"tasks": [task], "round_n": 1, "latency_repeats": 0},
    )
    loop.prune_tune_loop(recipe, tmp_path / "run")
    rounds = [read_json(p) for p in sorted((tmp_path / "run").glob("0*/stage.json"))]
    assert len(rounds) == 2
    for record in rounds:
        assert tuple(r["method"] for r in record["tune"]) == RECOVERED
        assert all(r["steps"] > 0 and r["tokens"] > 0 for r in record["tune"])
        assert record["removed"]["neurons"] > 0
    config = read_json(tmp_path / "run" / "final" / "config.json")
    assert axis_of("neurons").units(config) == rounds[-1]["width"] < 48
    assert config["model_type"] == name
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "final")).__name__ in config["architectures"]
