"""Every reader, on damaged inputs: a value or one message; no hang, no gigabytes, nothing written.

400 inputs a reader here; `make fuzz` takes 10,000. A finding names its seed: `PRUNETUNE_FUZZ_SEED=123` tries it alone.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.fake_run import fake_run
from tests.fuzzing import damage, judge
from tests.tiny import tiny_folder

from prunetune.cli.about_model import description, model_config
from prunetune.data.stream import FileData, read_source
from prunetune.evaluation.samples import read_samples as read_own
from prunetune.models.folders import check_model_folder, config_values, gguf_config, load_config, load_tokenizer
from prunetune.models.shards import INDEX, open_shards
from prunetune.pruning.cut import check_shape
from prunetune.pruning.patch import LayerFit, Patch
from prunetune.pruning.plan import PrunePlan, make_plan
from prunetune.pruning.scores import Scores
from prunetune.recipe.schema import Recipe
from prunetune.report.pairs import read_samples
from prunetune.runs.reading import read_run
from prunetune.tasks.registry import TaskConfig, build_task
from prunetune.tune.job import TuneJob
from prunetune.tune.methods import Cpt

COUNT = int(os.environ.get("PRUNETUNE_FUZZ", "400"))
SEED = os.environ.get("PRUNETUNE_FUZZ_SEED")


@dataclass(frozen=True)
class Reader:
    """One reader under test.

    Attributes:
        form: What is damaged, see `fuzzing.damage`.
        make: Writes a valid input below a folder; the file that is then damaged.
        read: What the program does with that file.
        share: Of the inputs, for readers that take long.
    """

    form: str
    make: Callable[[Path], Path]
    read: Callable[[Path], object]
    share: float = 1.0


def _written(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def _lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


ROWS = [{"question": f"What is {i} + 2?", "answer": f"It is {i + 2}.\n#### {i + 2}"} for i in range(12)]
RECIPE: dict[str, Any] = {
    "model": "demo",
    "data": [{"type": "demo", "size": 2000, "seed": 1}, {"type": "generator", "name": "gsm_symbolic", "size": 50}],
    "prune": {"target": 0.6, "step": 0.1, "layers": 2, "align": 8},
    "score": {"criterion": "contribution", "samples": 16, "held_out": 8, "max_length": 64},
    "protect": {"data": [{"type": "demo", "size": 100}], "share": 0.05},
    "recover": [{"type": "cpt", "samples": 64, "batch_size": 8, "learning_rate": 1e-3}, {"type": "grpo", "samples": 8}],
    "evaluate": {"tasks": [{"name": "demo", "n": 20}, {"name": "gsm8k", "path": "x"}], "round_n": 5},
    "prompt": {"template": "plain"},
    "seed": 3,
}


def _scores(folder: Path) -> Path:
    torch.manual_seed(0)
    made = Scores(torch.rand(4, 8), torch.rand(4), torch.rand(4), "contribution-mean", "l2", "abc", "def", 99)
    made.write(folder / "s.safetensors")
    return folder / "s.safetensors"


def _plan_from(path: Path) -> object:
    s = Scores.read(path)
    return make_plan(s.neurons.tolist(), s.layers.tolist(), s.model_sha, n_neurons=2, n_layers=1)


def _patch(folder: Path) -> Path:
    tensors = {f"model.layers.{i}.mlp.down_proj.weight": torch.rand(4, 6) for i in range(2)}
    Patch(tensors, (LayerFit(0, 0.1, 0.5, 0.25), LayerFit(1, None, 0.5, 0.5)), 100, 20).write(folder / "p.safetensors")
    return folder / "p.safetensors"


def _config(folder: Path) -> Path:
    tiny_folder(folder / "model", "gemma2")
    return folder / "model" / "config.json"


def _index(folder: Path) -> Path:
    tiny_folder(folder / "model")
    whole = folder / "model" / "model.safetensors"
    whole.rename(folder / "model" / "model-00001-of-00001.safetensors")
    from safetensors import safe_open

    with safe_open(folder / "model" / "model-00001-of-00001.safetensors", framework="pt") as f:
        names = list(f.keys())
    weights = {name: "model-00001-of-00001.safetensors" for name in names}
    return _written(folder / "model" / INDEX, {"metadata": {"total_size": 1}, "weight_map": weights})


def _described(config: dict[str, Any]) -> object:
    return description(config, target=0.8, step=0.1, gpu="A100-80G", tokens=10**6)


def _checked(folder: Path) -> Path:
    check_model_folder(folder)
    return folder


def _gguf(folder: Path) -> Path:
    """The header of a file of four layers, as the gguf package writes it, without the weights."""
    from gguf import GGUFWriter

    writer = GGUFWriter(str(folder / "m.gguf"), "llama")
    writer.add_block_count(4)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_token_list(["a", "b", "c", "d"])
    writer.add_tensor("token_embd.weight", torch.zeros(4, 32).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return folder / "m.gguf"


def _tokenizer(folder: Path) -> Path:
    tiny_folder(folder / "model")
    return folder / "model" / "tokenizer_config.json"


def _stage(folder: Path) -> Path:
    return next(fake_run(folder / "run").glob("01-*/stage.json"))


def _summary(folder: Path) -> Path:
    return fake_run(folder / "run") / "summary.json"


def _samples(folder: Path) -> Path:
    return next(fake_run(folder / "run", tasks={"demo": 20}).glob("01-*/eval/demo.jsonl"))


def _run_of(path: Path) -> object:
    run = read_run(next(p for p in path.parents if p.name == "run"))
    return run.final, run.tasks, run.seconds(), run.recovery_tokens(), run.plans()


def _job(folder: Path) -> Path:
    job = TuneJob(
        model=folder / "model", out=folder / "out", work=folder / "work", method=Cpt(samples=8),
        sources=(FileData(path=str(folder / "rows.jsonl")),), device="cpu",
    )  # fmt: skip
    job.write(folder / "job.json")
    return folder / "job.json"


def _plan_for_a_model(path: Path) -> object:
    plan = PrunePlan.read(path)
    check_shape(plan, {"num_hidden_layers": 4, "intermediate_size": 8})
    return plan.kept_layers, [plan.kept("neurons", i) for i in plan.kept_layers], plan.new_width


PLAN = {
    "model_sha": "abc",
    "depth": 4,
    "width": 8,
    "drop_layers": [1],
    "drop_neurons": {str(i): [0, 3] for i in (0, 2, 3)},
}
READERS: dict[str, Reader] = {
    "recipe": Reader("yaml", lambda at: _written(at / "r.yaml", RECIPE), Recipe.read),
    "plan": Reader("json", lambda at: _written(at / "p.json", PLAN), _plan_for_a_model),
    "scores": Reader("safetensors", _scores, _plan_from),
    "patch": Reader("safetensors", _patch, Patch.read),
    "index": Reader("json", _index, lambda path: open_shards(path.parent)),
    "config": Reader("json", _config, lambda path: _described(model_config(str(path)))),
    "config of weights": Reader("json", _config, lambda path: _checked(path.parent)),
    "weights": Reader("bytes", lambda at: _config(at).parent / "model.safetensors", lambda p: _checked(p.parent)),
    "config loaded": Reader("json", _config, lambda path: load_config(path.parent), share=0.2),
    "generation config": Reader(
        "json", lambda at: _config(at).parent / "generation_config.json", lambda path: load_tokenizer(path.parent), share=0.2
    ),
    "vocabulary": Reader("json", lambda at: _tokenizer(at).parent / "tokenizer.json", lambda path: load_tokenizer(path.parent), share=0.2),
    "gguf": Reader("bytes", _gguf, lambda path: _described(gguf_config(path))),
    "config values": Reader("json", _config, lambda path: config_values(path.parent), share=0.2),
    "tokenizer": Reader("json", _tokenizer, lambda path: load_tokenizer(path.parent), share=0.2),
    "rows": Reader("jsonl", lambda at: _lines(at / "d.jsonl", ROWS), lambda path: read_source(FileData(path=str(path)))),
    "rows of JSON": Reader("json", lambda at: _written(at / "d.json", ROWS), lambda path: read_source(FileData(path=str(path))), share=0.3),
    "rows of text": Reader(
        "bytes", lambda at: _lines(at / "d.txt", ROWS),
        lambda path: read_source(FileData(path=str(path))), share=0.3,
    ),
    "task rows": Reader(
        "jsonl", lambda at: _lines(at / "t.jsonl", ROWS),
        lambda path: build_task(TaskConfig(name="own", path=str(path), verifier="number")),
    ),
    "boxed task rows": Reader(
        "jsonl", lambda at: _lines(at / "t.jsonl", [{**r, "answer": r"\boxed{7}"} for r in ROWS]),
        lambda path: build_task(TaskConfig(name="own", path=str(path), verifier="boxed")), share=0.3,
    ),
    "squad": Reader(
        "json",
        lambda at: _written(at / "s.json", {"data": [{"paragraphs": [{"context": "It rained.", "qas": [
            {"id": "a", "question": "What?", "answers": [{"text": "rain"}]}]}]}]}),
        lambda path: build_task(TaskConfig(name="squad", path=str(path))), share=0.3,
    ),
    "stage record": Reader("json", _stage, _run_of, share=0.15),
    "summary": Reader("json", _summary, _run_of, share=0.15),
    "samples": Reader("jsonl", _samples, lambda path: read_samples(path.parents[1], "demo"), share=0.2),
    "samples to go on from": Reader("jsonl", _samples, read_own, share=0.2),
    "job": Reader("json", _job, TuneJob.read, share=0.2),
}  # fmt: skip


@pytest.mark.parametrize("name", READERS)
@pytest.mark.timeout(7200)
def test_a_value_or_a_message(name: str, tmp_path: Path) -> None:
    reader = READERS[name]
    file = reader.make(tmp_path)
    valid = file.read_bytes()
    assert judge(lambda: reader.read(file)) is None and reader.read(file) is not None, "the valid input is read"
    found: dict[str, tuple[int, str]] = {}
    for seed in range(max(1, int(COUNT * reader.share))) if SEED is None else [int(SEED)]:
        raw = damage(random.Random(f"{name} {seed}"), valid, reader.form)
        file.write_bytes(raw)
        if (wrong := judge(lambda: reader.read(file))) is not None:
            found.setdefault(re.sub(r"0x\w+|\d+", "N", wrong)[:60], (seed, wrong))
    assert not found, f"{len(found)} findings by seed: " + "; ".join(f"{s}: {w}" for s, w in list(found.values())[:20])


def test_the_judge_sees_what_it_should(tmp_path: Path) -> None:
    def forever() -> None:
        while True:
            pass

    def swallows() -> None:
        try:
            bytearray(3 * 2**30)
        except Exception as e:
            raise ValueError("hidden") from e

    from tests import fuzzing

    assert (
        judge(lambda: json.loads("{"))
        == "JSONDecodeError: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"
    )
    assert "wrote" in str(judge(lambda: (tmp_path / "x").write_text("")))
    assert "wrote" in str(judge(lambda: shutil.rmtree(tmp_path / "none", ignore_errors=True)))
    assert judge(lambda: bytearray(3 * 2**30)) == "more than 2 GB" and judge(swallows) == "ValueError: hidden"
    before, fuzzing.SECONDS = fuzzing.SECONDS, 0.2
    try:
        assert judge(forever) == "more than 0.2 s"
    finally:
        fuzzing.SECONDS = before
    assert judge(lambda: 1) is None
