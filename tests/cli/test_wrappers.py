"""The commands by hand on a model with a vision tower: inspect, score, plan, compensate, apply, tune, eval."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.cli.test_app import call
from tests.tiny_run import rows
from tests.wrapped import wrapped_folder
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from prunetune.models.folders import is_wrapper


def test_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    wrapped_folder(tmp_path / "m", "gemma3")
    data = ("--data", rows(tmp_path / "rows.jsonl", 40))
    code, out, _ = call(capsys, "inspect", "m")
    assert code == 0 and "gemma3_text: 4 layers" in out and "inside a Gemma3ForConditionalGeneration" in out
    for words in (
        ("score", "m", *data, "--out", "scores.safetensors", "--samples", 8),
        ("plan", "scores.safetensors", "--neurons", 16, "--out", "plan.json"),
        ("compensate", "plan.json", "m", *data, "--out", "patch.safetensors", "--samples", 8),
        ("apply", "plan.json", "m", "cut", "--patch", "patch.safetensors"),
        ("apply", "plan.json", "m", "alone", "--patch", "patch.safetensors", "--text-only"),
        ("tune", "cpt", "cut", "tuned", *data, "--samples", 8),
    ):
        code, _, err = call(capsys, *words)
        assert code == 0, err
    task = ("--task", "own", "--path", "rows.jsonl", "--verifier", "number", "--n", 2, "--json")
    for folder in ("tuned", "alone"):
        code, out, err = call(capsys, "eval", folder, *task)
        assert code == 0 and json.loads(out), err
    assert is_wrapper(tmp_path / "tuned") and not is_wrapper(tmp_path / "alone")
    cut = AutoModelForImageTextToText.from_pretrained(tmp_path / "tuned")
    assert cut.config.text_config.intermediate_size == 32
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "alone").config.model_type == "gemma3_text"
    code, _, err = call(capsys, "vocabulary", "m", "small", *data)
    assert code == 2 and "vision tower" in err and "--text-only" in err


def test_a_draft_from_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A family that transformers has and we have not: its class gives the names; a made-up one has only its config."""
    known, unknown = tmp_path / "known.json", tmp_path / "unknown.json"
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 50,
    }
    known.write_text(json.dumps({"model_type": "persimmon", **sizes}))
    unknown.write_text(json.dumps({"model_type": "toy", **sizes}))
    code, out, err = call(capsys, "family", known, "--json")
    made = json.loads(out)
    assert code == 0 and not made["supported"], err
    assert "down='mlp.dense_4h_to_h'" in made["entry"] and "gate=''" in made["entry"]
    code, out, _ = call(capsys, "family", unknown)
    assert code == 0 and out.startswith('Family("toy")') and "no tensor names" in out and "entries.py" in out
    code, _, err = call(capsys, "inspect", known)
    assert (
        code == 2 and "'persimmon'" in err and "prunetune family MODEL" in err and "models/families/entries.py" in err
    )
