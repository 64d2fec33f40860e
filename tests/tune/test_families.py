"""Supervised fine-tuning and distillation of every family: the first step's loss is that of plain transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import tiny_folder, tiny_model
from tests.tiny_run import rows
from transformers import PreTrainedModel

from prunetune.data.stream import FileData, load_stream
from prunetune.models.families import FAMILIES
from prunetune.models.folders import load_tokenizer
from prunetune.models.head_loss import IGNORED
from prunetune.models.prompt import PromptFormat
from prunetune.tune.job import TuneJob
from prunetune.tune.methods import Distill, Method, Sft
from prunetune.tune.stage import run_job
from prunetune.tune.training.batches import make_rows

ONE: dict[str, Any] = {
    "learning_rate": 1e-3, "batch_size": 2, "micro_batch_size": 2, "max_length": 32, "precision": "fp32", "samples": 2,
}  # fmt: skip
TRAINED = list(FAMILIES)
"""What docs/families.md says of these families."""


def first_loss(at: Path, name: str, method: Method) -> float:
    sources = (FileData(path=str(at / "rows.jsonl")),)
    model, out = at / "model", at / name
    teacher = at / "teacher" if isinstance(method, Distill) else None
    job = TuneJob(
        model=model, out=out, work=at / f"{name}.work", method=method, sources=sources, device="cpu", teacher=teacher
    )
    return float(run_job(job).log[0]["loss"])


@torch.no_grad()
def of_labels(model: PreTrainedModel, ids: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Log-probabilities [labels, vocabulary] at the places that give what counts."""
    return model(ids[None], use_cache=False).logits[0, :-1][counts[1:]].float().log_softmax(-1)


@pytest.mark.parametrize("family", TRAINED)
def test_the_first_loss_is_that_of_plain_transformers(family: str, tmp_path: Path) -> None:
    still = {"attention_dropout": 0.0, "residual_dropout": 0.0} if family == "seed_oss" else {}  # its class has some
    tiny_folder(tmp_path / "model", family, **still)
    tiny_folder(tmp_path / "teacher", family, seed=5, **still)
    rows(tmp_path / "rows.jsonl", 2)
    stream = load_stream([FileData(path=str(tmp_path / "rows.jsonl"))], 0)
    made = make_rows(
        load_tokenizer(tmp_path / "model"), stream.take(0, 2), PromptFormat(), 32, completion_only=True
    ).rows
    student, teacher = tiny_model(family), tiny_model(family, seed=5)
    answers, divergences = [], []
    for row in made:
        ids, labels = torch.tensor(row.ids), torch.tensor(row.labels)
        counts = labels != IGNORED
        answers.append(-of_labels(student, ids, counts).gather(1, labels[counts, None]))
        whole = torch.ones_like(counts)
        z, u = (of_labels(m, ids, whole) for m in (student, teacher))
        divergences.append((u.exp() * (u - z)).sum(-1))
    assert 0 < sum(map(len, answers)) < sum(map(len, divergences)), "of a row the answer, or all of it"
    assert first_loss(tmp_path, "sft", Sft(**ONE)) == pytest.approx(torch.cat(answers).mean().item(), rel=1e-3)
    expected = torch.cat(divergences).mean().item()
    assert expected > 0.01
    assert first_loss(tmp_path, "distill", Distill(**ONE, kl_weight=1.0)) == pytest.approx(expected, rel=1e-3)
