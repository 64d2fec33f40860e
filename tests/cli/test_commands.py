"""The single-stage commands' own decisions: devices, budgets, settings files, an output that is there already."""

from __future__ import annotations

import pytest
from tests.tiny import tiny_folder
from tests.tiny_run import rows

from prunetune.cli.commands import method_of, sources_of, tune_model
from prunetune.cli.measuring import eval_tasks
from prunetune.common.device import device_of
from prunetune.common.progress import Watch
from prunetune.errors import MissingPath, NotWritable, RecipeError, UnknownName


def test_device():
    assert device_of("cpu") == "cpu"
    assert device_of("auto") in ("cpu", "cuda")
    with pytest.raises(UnknownName, match="cuda"):
        device_of("tpu")


def test_settings_file_and_budget(tmp_path):
    (tmp_path / "m.yaml").write_text("learning_rate: 0.5\nbatch_size: 4\n")
    method = method_of("cpt", tmp_path / "m.yaml", tokens=100, samples=None)
    assert (method.learning_rate, method.batch_size, method.tokens, method.samples) == (0.5, 4, 100, None)
    (tmp_path / "m.yaml").write_text("learning_rat: 0.5\n")
    with pytest.raises(RecipeError, match="learning_rate"):
        method_of("cpt", tmp_path / "m.yaml")
    (tmp_path / "m.yaml").write_text("a: [")
    with pytest.raises(RecipeError, match="YAML"):
        method_of("cpt", tmp_path / "m.yaml")
    with pytest.raises(MissingPath):
        method_of("cpt", tmp_path / "none.yaml")


def test_sources():
    assert sources_of([{"type": "demo", "size": 3}])[0].size == 3
    with pytest.raises(RecipeError, match="--data"):
        sources_of([{"type": "demo", "size": -3}])


def test_tune_refuses_to_write_over_a_model(tmp_path):
    model, data = tiny_folder(tmp_path / "m"), {"type": "file", "path": str(rows(tmp_path / "r.jsonl", 40))}
    out = tmp_path / "out"
    result = tune_model(method_of("cpt", None, samples=32), str(model), out, [data], task=None, teacher=None, launcher=None,
                        seed=0, device="cpu", watch=Watch(quiet=True))  # fmt: skip
    assert result.samples == 32
    assert not list(tmp_path.glob(".out.work"))
    with pytest.raises(NotWritable):  # another call: its result may not take the first one's place
        tune_model(method_of("cpt", None, samples=32), str(model), out, [data], task=None, teacher=None, launcher=None,
                   seed=1, device="cpu", watch=Watch(quiet=True))  # fmt: skip


def test_each_task_finds_its_own_data(tmp_path):
    for name in ("a.jsonl", "b.jsonl"):
        rows(tmp_path / name, 3)
    (tmp_path / "text.txt").write_text("some text")
    names = ["mine", "yours", "perplexity"]
    data = {"mine": str(tmp_path / "a.jsonl"), "perplexity": str(tmp_path / "text.txt")}
    made = eval_tasks(names, data, path=str(tmp_path / "b.jsonl"), verifier="number", n=2)
    assert [(t.name, len(t.problems), t.text) for t in made] == [
        ("mine", 2, None),
        ("yours", 2, None),
        ("perplexity", 0, "some text"),
    ]
    with pytest.raises(UnknownName, match="gsm8k"):
        eval_tasks(["mine"], {"mine": "x", "gsm8k": "y"})
    with pytest.raises(UnknownName, match="did you mean 'gsm8k'"):
        eval_tasks(["gms8k", "mine"], {"mine": "/nowhere"}, verifier="number")


def test_lm_evals_variants_share_their_data(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("prunetune.cli.measuring.build_task", lambda config: seen.append((config.name, config.path)))
    eval_tasks(["lm-eval:gsm8k", "lm-eval:gsm8k_cot", "lm-eval:mbpp", "gsm8k"], {"gsm8k": "a"}, path="b")
    assert seen == [("lm-eval:gsm8k", "a"), ("lm-eval:gsm8k_cot", "a"), ("lm-eval:mbpp", "b"), ("gsm8k", "a")]
