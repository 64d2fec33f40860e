"""A whole job on a tiny model: what it learns, what it writes, what it refuses, and that it repeats itself."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny import tiny_folder
from tests.tiny_run import rows, tiny_recipe
from transformers import AutoModelForCausalLM

from prunetune.common.progress import Watch
from prunetune.data.stream import FileData
from prunetune.errors import DataError, RecipeError, TuneError, UnsupportedModel
from prunetune.loop.context import prepare
from prunetune.tune.job import TuneJob, TuneResult
from prunetune.tune.methods import Cpt, Method, Sft
from prunetune.tune.methods.base import Lora, rate_for
from prunetune.tune.stage import run_job


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tune")
    tiny_folder(path / "model")
    rng = random.Random(0)
    pairs = rng.sample([(a, b) for a in range(20) for b in range(20)], 96)
    rows = [{"question": f"{a}+{b}", "answer": f"{a}+{b}={a + b}"} for a, b in pairs]
    (path / "data.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


PINNED = [4.705, 4.2654, 4.0582, 3.8718, 3.7138, 3.5673, 3.4074, 3.3397, 3.1929, 3.1868, 3.1472, 3.1663]
SMALL: dict[str, Any] = {
    "learning_rate": 3e-3,
    "batch_size": 8,
    "micro_batch_size": 4,
    "max_length": 64,
    "precision": "fp32",
}


def make_job(place: Path, out: Path, method: Method | None = None, **values: Any) -> TuneJob:
    base: dict[str, Any] = {
        "model": place / "model", "out": out, "work": out.with_name(f"{out.name}.work"),
        "method": method or Cpt(**SMALL), "sources": (FileData(path=str(place / "data.jsonl")),), "device": "cpu",
    }  # fmt: skip
    return TuneJob(**{**base, **values})


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(a: Path, b: Path) -> bool:
    left, right = tensors(a), tensors(b)
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def test_loss_goes_down_along_a_pinned_curve(place: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    result = run_job(make_job(place, tmp_path / "out"), lambda done, total: seen.append((done, total)))
    losses = [e["loss"] for e in result.log]
    assert losses == pytest.approx(PINNED, rel=2e-3)
    assert seen == [(i, 12) for i in range(1, 13)]
    assert (result.samples, result.steps, result.truncated) == (96, 12, 0)
    assert result.tokens > 2000 and result.tokens_per_s == pytest.approx(result.tokens / result.seconds)
    assert result.peak_bytes > 1e7 and 0 < result.mfu < 1
    assert result.log[0]["lr"] == pytest.approx(3e-3) and result.log[-1]["lr"] < 1e-4
    assert TuneResult.from_json(json.loads(json.dumps(result.to_json()))) == result


def test_same_seed_same_tensors_whatever_ran_before(place: Path, tmp_path: Path) -> None:
    run_job(make_job(place, tmp_path / "a"))
    torch.manual_seed(123)
    before = torch.random.get_rng_state()
    run_job(make_job(place, tmp_path / "b"))
    assert torch.equal(before, torch.random.get_rng_state())
    run_job(make_job(place, tmp_path / "c", seed=1))
    assert same(tmp_path / "a", tmp_path / "b")
    assert not same(tmp_path / "a", tmp_path / "c")


def test_output_is_a_plain_folder_in_the_inputs_types(place: Path, tmp_path: Path) -> None:
    source = tmp_path / "bf16"
    tiny_folder(source)
    AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16).save_pretrained(source)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"our_own_key": 1}))
    (source / "chat_template.jinja").write_text("{{ messages }}")
    run_job(make_job(place, tmp_path / "out", model=source))
    out = tmp_path / "out"
    for name in (
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "generation_config.json",
    ):
        assert (out / name).read_bytes() == (source / name).read_bytes(), name
    assert {f.name for f in out.iterdir()} == {f.name for f in source.iterdir()}
    before, after = tensors(source), tensors(out)
    assert {k: (t.dtype, t.shape) for k, t in before.items()} == {k: (t.dtype, t.shape) for k, t in after.items()}
    assert not torch.equal(before["model.layers.0.mlp.up_proj.weight"], after["model.layers.0.mlp.up_proj.weight"])


@pytest.mark.parametrize("change", [{"loss_head": "plain"}, {"gradient_checkpointing": True}, {"micro_batch_size": 8}])
def test_what_must_not_change_the_first_loss(place: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    small = {**SMALL, "batch_size": 96}
    first = run_job(make_job(place, tmp_path / "a", Cpt(**small)))
    other = run_job(make_job(place, tmp_path / "b", Cpt(**{**small, **change})))
    assert other.log[0]["loss"] == pytest.approx(first.log[0]["loss"], rel=1e-5)
    assert other.log[0]["grad_norm"] == pytest.approx(first.log[0]["grad_norm"], rel=1e-4)


def test_completion_only_counts_the_answer_alone(place: Path, tmp_path: Path) -> None:
    small = {**SMALL, "batch_size": 96}
    answers = run_job(make_job(place, tmp_path / "a", Cpt(**small, completion_only=True)))
    sft = run_job(make_job(place, tmp_path / "b", Sft(**small)))
    whole = run_job(make_job(place, tmp_path / "c", Cpt(**small)))
    assert sft.log[0]["loss"] == answers.log[0]["loss"] != whole.log[0]["loss"]


def test_packing_trains_the_same_tokens_in_fewer_rows(place: Path, tmp_path: Path) -> None:
    plain = run_job(make_job(place, tmp_path / "a"))
    dense = run_job(make_job(place, tmp_path / "b", Cpt(**SMALL, packing=True)))
    assert dense.tokens == plain.tokens and dense.steps < plain.steps


def test_nothing_is_packed_where_examples_would_see_each_other(place: Path, tmp_path: Path) -> None:
    """A convolution runs on from one example into the next: refused by a job, and by a run before any work."""
    hybrid = tiny_folder(tmp_path / "lfm2", "lfm2")
    job = make_job(place, tmp_path / "a", Cpt(**SMALL, packing=True), model=hybrid)
    with pytest.raises(UnsupportedModel, match="see each other") as e:
        run_job(job)
    assert "packing: false" in str(e.value) and not job.out.exists()
    run_job(make_job(place, tmp_path / "b", Cpt(**SMALL, samples=8), model=hybrid))
    packed = {"type": "cpt", "samples": 8, "packing": True, "max_length": 64}
    rows(place / "rows.jsonl")
    recipe = tiny_recipe(place, model=str(hybrid), recover=[packed])
    with pytest.raises(UnsupportedModel, match="see each other"):
        prepare(recipe, hybrid, Watch(quiet=True))


def test_budgets_in_samples_and_tokens(place: Path, tmp_path: Path) -> None:
    assert run_job(make_job(place, tmp_path / "a", start=8, end=24)).samples == 16
    assert run_job(make_job(place, tmp_path / "b", Cpt(**SMALL, samples=16))).samples == 16
    short = run_job(make_job(place, tmp_path / "c", tokens=200))
    assert 200 <= short.tokens < 264 and short.samples < 16


def test_cut_examples_are_counted(place: Path, tmp_path: Path) -> None:
    result = run_job(make_job(place, tmp_path / "a", Cpt(**{**SMALL, "max_length": 30})))
    assert 0 < result.truncated < 96 and f"{result.truncated} of 96" in result.notes[0]


def test_errors(place: Path, tmp_path: Path) -> None:
    with pytest.raises(TuneError, match="no data"):
        run_job(make_job(place, tmp_path / "a", start=5, end=5))
    with pytest.raises(DataError):
        run_job(make_job(place, tmp_path / "a", end=10_000))
    with pytest.raises(TuneError, match="no example has a token"):
        run_job(make_job(place, tmp_path / "a", Sft(**{**SMALL, "max_length": 8})))
    with pytest.raises(ValueError, match="does not divide"):
        Cpt(batch_size=8, micro_batch_size=3)
    with pytest.raises(ValueError, match="before start"):
        make_job(place, tmp_path / "a", start=9, end=5)
    with pytest.raises(RecipeError, match="no Apple GPU"):
        run_job(make_job(place, tmp_path / "a", device="mps"))
    assert not (tmp_path / "a").exists()


def test_a_diverging_loss_stops_with_its_evidence(place: Path, tmp_path: Path) -> None:
    wild = {**SMALL, "learning_rate": 1e3, "max_grad_norm": 0.0, "batch_size": 4}
    with pytest.raises(TuneError, match="diverged"):
        run_job(make_job(place, tmp_path / "a", Cpt(**wild)))
    evidence = tmp_path / "a.work" / "diverged"
    assert json.loads((evidence / "log.json").read_text())
    assert len(json.loads((evidence / "batch.json").read_text())[0]) == 4
    assert not (tmp_path / "a").exists()


def test_job_json_round_trip(place: Path, tmp_path: Path) -> None:
    job = make_job(place, tmp_path / "a", Sft(**SMALL, packing=True))
    job.write(tmp_path / "job.json")
    assert TuneJob.read(tmp_path / "job.json") == job
    (tmp_path / "job.json").write_text('{"model": "m"}')
    with pytest.raises(TuneError, match="not valid"):
        TuneJob.read(tmp_path / "job.json")


def test_the_learning_rate_follows_from_the_parameters_and_the_batch(place: Path, tmp_path: Path) -> None:
    assert rate_for(8_000_000_000, 32) == 8e-6  # the paper's
    assert rate_for(8_000_000_000, 128) == pytest.approx(2 * 8e-6)
    assert rate_for(20_000_000, 32) == pytest.approx(2.4e-4, rel=0.05) and rate_for(1_000, 32) == 3e-4
    assert rate_for(94_000_000, 4) == pytest.approx(3.6e-5, rel=0.05)
    assert rate_for(8_000_000_000, 32, lora=True) == pytest.approx(8e-5)
    assert Cpt(lora=Lora()).rate(8_000_000_000) == pytest.approx(8e-5) and Cpt(learning_rate=0.1).rate(8) == 0.1
    auto = {k: v for k, v in SMALL.items() if k != "learning_rate"}
    result = run_job(make_job(place, tmp_path / "plain", Cpt(**auto, samples=16, warmup=0.0)))
    assert result.log[0]["lr"] == pytest.approx(3e-4)  # some thousand parameters
