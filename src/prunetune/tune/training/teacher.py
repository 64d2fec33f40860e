"""The teacher of a distillation stage: loaded once, checked against the student, run beside it or cached on disk."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from prunetune.common.files import json_sha, once
from prunetune.errors import TuneError
from prunetune.models.folders import load_config, load_model, load_tokenizer, model_sha, resolve_model
from prunetune.models.head import head_of
from prunetune.models.head_loss import IGNORED, Term, chunk_tokens, counted
from prunetune.tune.methods.distill import Distill
from prunetune.tune.training.batches import Row, Rows, collate
from prunetune.tune.training.given import Stage
from prunetune.tune.training.kl import TopK, Whole, distillation, top_k
from prunetune.tune.training.machine import compute_type
from prunetune.tune.training.trainer import Objective


def teacher_folder(stage: Stage, method: Distill) -> Path:
    """Folder of the teacher; TuneError unless there is one and it speaks the student's vocabulary."""
    folder = resolve_model(method.teacher) if method.teacher else stage.job.teacher
    if folder is None:
        raise TuneError(
            "distillation needs a teacher", value=None, fix="give teacher: a model with the same vocabulary"
        )
    ours, its = stage.model.config.vocab_size, getattr(load_config(folder), "vocab_size", None)
    if ours != its or load_tokenizer(folder).get_vocab() != stage.tokenizer.get_vocab():
        raise TuneError(
            "the teacher has another vocabulary than the student",
            value=f"{folder}: {its} tokens",
            valid=f"a model with the student's tokenizer and {ours} tokens",
            fix="distil from the original of the pruned model, or use sft on the teacher's texts",
        )
    return folder


def load_teacher(stage: Stage, folder: Path) -> PreTrainedModel:
    """The teacher, frozen, in the compute type."""
    compute = compute_type(stage.job.method.precision, stage.device)
    return load_model(folder, dtype=compute, device=str(stage.device)).requires_grad_(False)


def objective_of(stage: Stage, method: Distill, made: Rows) -> Objective:
    """The loss term of a stage: the teacher at hand, or its k most likely tokens from the cache."""
    folder = teacher_folder(stage, method)
    compute = compute_type(method.precision, stage.device)
    if method.top_k is None:
        model = load_teacher(stage, folder)

        def beside(inputs: dict[str, Tensor], labels: Tensor, targets: Tensor) -> Term:
            return distillation(
                targets,
                states(model, inputs, labels, compute),
                share=method.kl_weight,
                temperature=method.temperature,
            )

        return beside
    cached = cache(stage, method, folder, made.rows)

    def from_cache(inputs: dict[str, Tensor], labels: Tensor, targets: Tensor) -> Term:
        rows = [int(i) for i in inputs["index"] if i >= 0]
        indices = torch.cat([cached.indices[i] for i in rows]).to(targets.device)
        log_probs = torch.cat([cached.log_probs[i] for i in rows]).to(targets.device)
        return distillation(targets, TopK(indices, log_probs), share=method.kl_weight, temperature=method.temperature)

    return from_cache


@torch.no_grad()
def states(model: PreTrainedModel, inputs: dict[str, Any], labels: Tensor, compute: torch.dtype) -> Whole:
    """The teacher's hidden states at the tokens that count, and its head."""
    given = {k: v for k, v in inputs.items() if k != "index"}
    out = model(**given, output_hidden_states=-1, logits_to_keep=1, use_cache=False)
    hidden, _ = counted(out.hidden_states[-1], labels)
    head = head_of(model)
    return Whole(head.reads(hidden), head.weight(), head.softcap, compute)


class Cached:
    """The k most likely tokens of each row, read from disk as they are needed."""

    def __init__(self, path: Path, rows: Sequence[Row]) -> None:
        counts = [sum(label != IGNORED for label in r.labels) for r in rows]
        ends = torch.tensor([0, *counts]).cumsum(0).tolist()
        with safe_open(path, framework="pt") as f:
            whole = TopK(f.get_tensor("indices"), f.get_tensor("log_probs"))
        self.indices = [whole.indices[a:b] for a, b in pairwise(ends)]
        self.log_probs = [whole.log_probs[a:b] for a, b in pairwise(ends)]


def cache(stage: Stage, method: Distill, folder: Path, rows: Sequence[Row]) -> Cached:
    """Make the cache with one pass of the teacher, unless it is there for the same teacher, rows and k."""
    k, temperature = min(method.top_k or 1, stage.model.config.vocab_size), method.temperature
    content = json_sha([(r.ids, r.labels) for r in rows])
    key = {"teacher": model_sha(folder), "rows": content, "k": k, "temperature": temperature, "v": 1}
    place = Path(method.cache).expanduser() if method.cache else stage.job.work
    path = place / f"teacher-{json_sha(key)}.safetensors"

    def make(tmp: Path) -> None:
        model = load_teacher(stage, folder)
        compute = compute_type(method.precision, stage.device)
        chunk = chunk_tokens(model.config.vocab_size, stage.device)
        parts = []
        for row in rows:
            batch = {name: t.to(stage.device) for name, t in collate([row]).items()}
            labels = batch.pop("labels")
            parts.append(top_k(states(model, batch, labels, compute), k, temperature, chunk))
        tensors = {
            "indices": torch.cat([p.indices for p in parts]).cpu(),
            "log_probs": torch.cat([p.log_probs for p in parts]).cpu(),
        }
        save_file(tensors, tmp)

    return Cached(once(path, key, make), rows)
