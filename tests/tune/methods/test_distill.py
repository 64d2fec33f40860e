"""Distillation as a stage: it follows the teacher, its cache stands in for the teacher, and vocabularies must agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import tiny_folder
from tests.tune.test_job import SMALL, make_job, place, same
from transformers import AutoModelForCausalLM

from prunetune.data.stream import load_stream
from prunetune.errors import TuneError
from prunetune.models.folders import load_model, load_tokenizer
from prunetune.models.prompt import prompt_ids
from prunetune.tune.methods import Distill
from prunetune.tune.stage import run_job
from prunetune.tune.training.given import Stage
from prunetune.tune.training.onpolicy import acceptance

__all__ = ["place"]


@pytest.fixture(scope="module")
def teacher(place: Path) -> Path:
    return tiny_folder(place / "teacher", seed=5)


def kl(student: Path, teacher: Path) -> float:
    ids = torch.randint(4, 100, (4, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        z, u = (
            AutoModelForCausalLM.from_pretrained(f)(input_ids=ids).logits.log_softmax(-1) for f in (student, teacher)
        )
    return torch.nn.functional.kl_div(z, u, log_target=True, reduction="sum").item() / ids.numel()


def method(**values: Any) -> Distill:
    return Distill(**{**SMALL, "kl_weight": 1.0, **values})


def test_follows_the_teacher(place: Path, teacher: Path, tmp_path: Path) -> None:
    job = make_job(place, tmp_path / "out", method(epochs=3), teacher=teacher)
    result = run_job(job)
    assert result.log[-1]["loss"] < 0.7 * result.log[0]["loss"]
    assert kl(job.out, teacher) < 0.9 * kl(place / "model", teacher)
    assert (job.out / "config.json").read_bytes() == (job.model / "config.json").read_bytes()


def test_without_kl_it_is_cpt(place: Path, teacher: Path, tmp_path: Path) -> None:
    run_job(make_job(place, tmp_path / "cpt"))
    run_job(make_job(place, tmp_path / "out", method(kl_weight=0.0), teacher=teacher))
    assert same(tmp_path / "cpt", tmp_path / "out")


@pytest.mark.parametrize("head", ["bounded", "plain"])
def test_cached_top_k_needs_no_teacher_again(place: Path, teacher: Path, tmp_path: Path, head: str) -> None:
    own = tiny_folder(tmp_path / "teacher", seed=5)
    whole = run_job(make_job(place, tmp_path / "whole", method(kl_weight=0.5), teacher=own))
    kept = method(kl_weight=0.5, top_k=104, cache=str(tmp_path / "cache"), loss_head=head)
    first = run_job(make_job(place, tmp_path / "a", kept, teacher=own))
    assert [e["loss"] for e in first.log] == pytest.approx([e["loss"] for e in whole.log], rel=1e-3)
    cached = list((tmp_path / "cache").glob("*.safetensors"))
    made = cached[0].stat().st_mtime_ns
    again = run_job(make_job(place, tmp_path / "b", kept, teacher=own))
    assert len(cached) == 1 and cached[0].stat().st_mtime_ns == made
    assert [e["loss"] for e in again.log] == [e["loss"] for e in first.log] and same(tmp_path / "a", tmp_path / "b")


def test_resumes(place: Path, teacher: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    often = make_job(place, tmp_path / "out", method(checkpoint_minutes=1e-9), teacher=teacher)
    with pytest.raises(KeyboardInterrupt):
        run_job(often, stop)
    run_job(often)
    run_job(make_job(place, tmp_path / "straight", method(), teacher=teacher))
    assert same(tmp_path / "straight", often.out)


def test_on_policy(place: Path, teacher: Path, tmp_path: Path) -> None:
    values = {**SMALL, "mode": "on_policy", "max_new_tokens": 8, "micro_batch_size": 8, "acceptance": 0.0}
    job = make_job(place, tmp_path / "out", Distill(**values), teacher=teacher, end=32)
    result = run_job(job)
    assert (result.steps, result.samples) == (4, 32) and result.tokens > 0
    assert not same(job.model, job.out)


def test_a_student_that_is_too_far_off_learns_from_the_data(place: Path, teacher: Path, tmp_path: Path) -> None:
    values = {**SMALL, "mode": "on_policy", "max_new_tokens": 8, "micro_batch_size": 8, "kl_weight": 1.0}
    job = make_job(place, tmp_path / "far", Distill(**values, acceptance=0.99), teacher=teacher, end=32)
    result = run_job(job)
    assert "the teacher would accept" in result.notes[0] and "99% were asked" in result.notes[0]
    run_job(make_job(place, tmp_path / "data", method(micro_batch_size=8), teacher=teacher, end=32))
    assert same(job.out, tmp_path / "data")


def test_acceptance_is_the_overlap_of_the_two_distributions(place: Path, teacher: Path, tmp_path: Path) -> None:
    """One is its own teacher: all is accepted. Another: one minus the total variation, token by token."""
    job = make_job(place, tmp_path / "out", Distill(mode="on_policy", max_new_tokens=1), teacher=teacher)
    tokenizer, examples = load_tokenizer(place / "model"), load_stream(job.sources, 0).take(0, 4)
    stage = Stage(job, lambda: load_model(place / "model"), tokenizer, examples, torch.device("cpu"), 0, None)
    assert acceptance(stage, stage.settings(Distill), stage.model) == pytest.approx(1.0, abs=1e-5)
    other = load_model(teacher)
    shares = []
    for e in examples:  # one new token each: the overlap at the prompt's end
        ids = torch.tensor([prompt_ids(tokenizer, e.question, job.fmt)])
        p, q = (m(input_ids=ids).logits[0, -1].softmax(-1) for m in (stage.model, other))
        shares.append(1 - 0.5 * (p - q).abs().sum().item())
    assert acceptance(stage, stage.settings(Distill), other) == pytest.approx(sum(shares) / 4, rel=1e-4)


def test_errors(place: Path, teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(TuneError, match="needs a teacher"):
        run_job(make_job(place, tmp_path / "out", method()))
    other = tiny_folder(tmp_path / "other", vocab_size=110)
    with pytest.raises(TuneError, match="another vocabulary"):
        run_job(make_job(place, tmp_path / "out", method(), teacher=other))
    with pytest.raises(ValueError, match="cache needs top_k"):
        Distill(cache="x")
    with pytest.raises(ValueError, match="on_policy"):
        Distill(mode="on_policy", top_k=3)
