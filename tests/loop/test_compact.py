"""`compact`: a model object in, a smaller model object out; the same call continues a run folder."""

from __future__ import annotations

import re
import warnings

import pytest
import torch
from tests.tiny import tiny_folder, tiny_model, tiny_tokenizer
from tests.tiny_run import rows
from transformers.utils import logging

import prunetune
from prunetune.common.progress import Watch
from prunetune.errors import DataError, RecipeError

ROWS = [{"question": f"{i}+{i % 7}", "answer": f"{i}+{i % 7}={i + i % 7}"} for i in range(90)]
SMALL = {
    "score": {"samples": 8, "held_out": 4, "max_length": 64},
    "evaluate": {"latency_repeats": 0},
    "recover": [{"type": "cpt", "tokens": 300, "batch_size": 4, "max_length": 64}],
    "prune": {"align": 4, "rounds": 1},
    "device": "cpu",
    "watch": Watch(quiet=True),
}


def test_a_model_object_becomes_a_smaller_one(tmp_path, capfd):
    with warnings.catch_warnings(action="ignore"):  # tests are told to show none
        logging.enable_progress_bar()
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    small = prunetune.compact(model, ROWS, 0.8, tokenizer=tokenizer, out=tmp_path / "run", **SMALL)
    assert not re.search("Loading weights|Writing model shards", capfd.readouterr().err), "bars of transformers' own"
    assert logging.is_progress_bar_enabled(), "as it was"
    logging.disable_progress_bar()
    assert type(small) is type(model) and 0 < small.num_parameters() <= 0.8 * model.num_parameters()
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert (tmp_path / "run" / "report.md").is_file()
    told = " ".join((tmp_path / "run" / "report.md").read_text().split())
    assert "rows in memory (90).jsonl" in told and "model in memory: prunetune report" in told, "what nobody has named"
    ids = tokenizer(["1+1"], return_tensors="pt")
    assert small.generate(**ids, max_new_tokens=3, do_sample=False).shape[1] <= ids["input_ids"].shape[1] + 3

    made = (tmp_path / "run" / "final" / "model.safetensors").stat().st_mtime_ns
    again = prunetune.compact(model, ROWS, 0.8, tokenizer=tokenizer, out=tmp_path / "run", **SMALL)
    assert (tmp_path / "run" / "final" / "model.safetensors").stat().st_mtime_ns == made, "the same call continues"
    assert all(torch.equal(a, b) for a, b in zip(small.parameters(), again.parameters(), strict=True))


def test_a_folder_and_a_file_and_no_recovery_leave_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    folder, file = tiny_folder(tmp_path / "model"), rows(tmp_path / "rows.jsonl")
    monkeypatch.setattr("tempfile.tempdir", None)
    settings = {k: v for k, v in SMALL.items() if k != "recover"}
    small = prunetune.compact(folder, file, {"width": 32}, tokens=0, **settings)
    assert small.config.intermediate_size == 32
    assert not list((tmp_path / "tmp").iterdir())


def test_mistakes_are_told():
    with pytest.raises(RecipeError, match="tokenizer"):
        prunetune.compact(tiny_model("llama"), ROWS)
    with pytest.raises(DataError, match="no data"):
        prunetune.compact("demo", [])
    with pytest.raises(RecipeError, match="did you mean 'score'"):
        prunetune.compact("demo", ROWS, scores={})
