"""Local recovery of a whole model, block by block, from the folders of the cut model and of the original.

    kept layer i, which was layer o_i of the original, stands for the original's layers o_i, ..., o_(i+1) - 1: for
    itself and those behind it that went; the first one also for those before it, the last one for all that follow.

    input "original":  the original's hidden states before the first layer that the block stands for
    input "current":   those that the cut model, recovered so far, has there
    target:            the original's hidden states behind the last layer that the block stands for

One layer of the original or one block of the cut model is in memory at a time, and of the block in training also its
gradients and moments. Hidden states of all rows stay in host memory. A block that is done lies in the job's work
folder, so that a killed job goes on behind it; at the end the shards are written tensor by tensor.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from prunetune.common.events import Journal, Pace
from prunetune.common.files import fresh, once
from prunetune.common.memory import used_bytes
from prunetune.common.notes import read_note
from prunetune.data.stream import Example
from prunetune.errors import TuneError
from prunetune.models.families import family_of
from prunetune.models.folders import copy_files, load_config
from prunetune.models.headers import read_header
from prunetune.models.shards import ShardReader, open_shards, rewrite
from prunetune.pruning.compensate import calibration_and_held_out
from prunetune.pruning.experts.tensors import dense_only
from prunetune.pruning.layerwise import LayerSource, OneLayer, one_layer, open_source
from prunetune.tune.job import TuneJob
from prunetune.tune.methods.local import Local
from prunetune.tune.training.batches import Row, ordered
from prunetune.tune.training.checkpoints import job_key
from prunetune.tune.training.given import Stage, Trained
from prunetune.tune.training.local.blocks import Block, train_block
from prunetune.tune.training.local.streams import Hidden, passed, start, walked
from prunetune.tune.training.trainer import rows_of


def check_local(job: TuneJob, examples: Sequence[Example]) -> None:
    """TuneError unless there is an original whose hidden states the layers can be taught. No weights are read."""
    if job.teacher is None:
        raise TuneError("local recovery needs the original model", fix="--original MODEL, the model before it was cut")
    ours, its = load_config(job.model), load_config(job.teacher)
    for config in (ours, its):
        dense_only(family_of(config), "local recovery", "another method: cpt, sft or distill")
    for name in ("hidden_size", "vocab_size"):
        if getattr(ours, name) != getattr(its, name):
            raise TuneError(
                f"this is not the original of the model: another {name}",
                value=f"{job.teacher}: {getattr(its, name)}",
                valid=str(getattr(ours, name)),
                fix="local recovery follows cuts of layers, neurons and heads: give the model that was cut so",
            )
    _origins(job, ours.num_hidden_layers, its.num_hidden_layers)


def _origins(job: TuneJob, ours: int, its: int) -> tuple[int, ...]:
    """Of each layer of the model, its place in the original."""
    if job.origins is None and ours == its:
        return tuple(range(ours))
    found = job.origins or ()
    if len(found) != ours or list(found) != sorted(set(found)) or not all(0 <= i < its for i in found):
        raise TuneError(
            "local recovery must know which layers of the original are left",
            value=f"{ours} layers, of {its}" + (f"; given: {list(found)}" if found else ""),
            fix="--plan PLAN, the plan that the model was cut by",
        )
    return found


@dataclass(frozen=True)
class _Work:
    """What stays the same for all blocks.

    Attributes:
        stage: The job.
        method: Its settings.
        student: The cut model's folder, layers in fp32.
        rows: Of data.
        fitted: Rows that are trained on.
        held_out: Places of those that decide.
        blocks: Layers of each block.
        key: Of the job.
    """

    stage: Stage
    method: Local
    student: LayerSource
    rows: Sequence[Row]
    fitted: Sequence[Row]
    held_out: Sequence[int]
    blocks: Sequence[range]
    key: str

    @property
    def steps(self) -> int:
        """Optimiser steps of a block."""
        a_pass = math.ceil(len(self.fitted) / self.method.batch_size)
        return min(self.method.steps, self.method.epochs * a_pass)

    def batches(self, n: int) -> list[list[int]]:
        """Rows of each step of block `n`."""
        size = self.method.batch_size
        a_pass = math.ceil(len(self.fitted) / size)
        passes = math.ceil(self.steps / a_pass)
        order = [
            [r.index for r in one[i : i + size]]
            for p in range(passes)
            for one in [ordered(self.fitted, size, self.stage.seed + 7919 * n + p)]
            for i in range(0, len(one), size)
        ]
        return order[: self.steps]


def train_local(stage: Stage) -> Trained:
    """Train every block in turn, and write the model."""
    begin, job, method = time.monotonic(), stage.job, stage.settings(Local)
    if job.teacher is None:
        raise TuneError("local recovery needs the original model", fix="--original MODEL, the model before it was cut")
    most = max(1, method.steps) * method.batch_size * 4 // 3 + 4  # of which a fourth is held out
    made = rows_of(dataclasses.replace(stage, examples=stage.examples[:most]), completion_only=False)
    fitted, held_out = calibration_and_held_out(made.rows)
    if not fitted:
        raise TuneError(
            "local recovery needs rows to train on and rows to decide by",
            value=f"{len(made.rows)} rows",
            fix="more data, or a larger budget (tokens, samples)",
        )
    student = open_source(job.model, device=stage.device, dtype=torch.float32)
    blocks = [range(i, min(i + method.block, student.depth)) for i in range(0, student.depth, method.block)]
    work = _Work(
        stage, method, student, made.rows, fitted, [r.index for r in held_out], blocks, job_key(job, stage.seed)
    )
    notes, log = _walk(work, open_source(job.teacher, device=stage.device, quick=True), begin), list[dict[str, Any]]()
    for layers, note in zip(blocks, notes, strict=True):
        step = (log[-1]["step"] if log else 0) + note["steps"]
        log.append({"step": step, "layer": layers.start, "before": note["before"], "after": note["after"]})
    _write(work)
    better = sum(n["after"] < n["before"] for n in notes)
    means = [sum(n[k] for n in notes) / len(notes) for k in ("before", "after")]
    told = f"{better} of {len(notes)} blocks came nearer to the original: mean held-out error {means[0]:.4g}"
    return Trained(
        samples=made.used,
        tokens=round(sum(n["tokens"] for n in notes) / len(notes)),
        seconds=sum(n["spent"] for n in notes),
        steps=sum(n["steps"] for n in notes),
        log=log,
        truncated=made.truncated,
        data_tokens=sum(r.real for r in made.rows),
        notes=[f"{told} -> {means[1]:.4g}; the others stayed as they were"],
        writes=False,
    )


def _file(work: _Work, n: int) -> Path:
    return work.stage.job.work / f"block-{n:03d}.safetensors"


def _walk(work: _Work, original: LayerSource, begin: float) -> list[dict[str, Any]]:
    """Train the blocks, each once; what the files' notes say of them."""
    origins = _origins(work.stage.job, work.student.depth, original.depth)
    ends = [*origins[1:], original.depth]  # one past the last layer that a kept layer stands for
    ids = [r.ids for r in work.rows]
    truth, notes, tell, first = start(original, ids), list[dict[str, Any]](), _Teller(work), 0
    current = start(work.student, ids) if work.method.input != "original" else []
    for n, layers in enumerate(work.blocks):
        since, more = time.monotonic(), dict[str, Any]()
        target = walked(original, range(first, ends[layers[-1]]), truth)
        pairs = {"original": [(truth, target)], "current": [(current, target)]}
        pairs["both"] = pairs["original"] + pairs["current"]

        def make(tmp: Path, n: int = n, since: float = since, more: dict[str, Any] = more, pairs: Any = pairs) -> None:
            until = begin + work.stage.job.seconds * (n + 1) / len(work.blocks) if work.stage.job.seconds else None
            more |= _train(work, n, pairs[work.method.input], tell, until, tmp)
            more["spent"] = time.monotonic() - since

        path = once(_file(work, n), [work.key, n], make, more=more)
        note = read_note(path)
        notes.append(note.more if note else more)
        tell(n + 1, 0, None)
        if work.method.input != "original" and layers[-1] + 1 < work.student.depth:
            current = passed(_layers(work, n, load_file(path)), current, work.stage.device)
        truth, first = target, ends[layers[-1]]
    return notes


def _layers(work: _Work, n: int, tensors: dict[str, Tensor]) -> list[OneLayer]:
    """A block in fp32, with memory of its own, with those of its tensors that training has changed."""
    own = work.student.read
    changed = dataclasses.replace(work.student, read=lambda name: tensors[name] if name in tensors else own(name))
    ones = [one_layer(changed, i) for i in work.blocks[n]]
    for one in ones:
        for weight in one.block.parameters():
            weight.data = weight.data.clone()
    return ones


def _train(
    work: _Work, n: int, pairs: Sequence[tuple[Hidden, Hidden]], tell: _Teller, until: float | None, tmp: Path
) -> dict[str, Any]:
    """Train a block, and write those of its tensors that change."""
    names = [work.student.names[layer] for layer in work.blocks[n]]
    stored = [{suffix: work.student.stored(name) for suffix, name in each.items()} for each in names]
    block = Block(_layers(work, n, {}), stored, pairs, work.held_out, work.stage.device)
    seed = work.stage.seed + n
    fit = train_block(block, work.method, work.batches(n), lambda done, loss: tell(n, done, loss), until, seed)
    save_file({names[i][suffix]: tensor for (i, suffix), tensor in fit.best.items()}, tmp)
    return {"before": fit.before, "after": fit.after, "steps": fit.steps, "tokens": fit.tokens}


class _Teller:
    """Tells of steps, all blocks together: the progress of the caller, and the lines of events.jsonl."""

    def __init__(self, work: _Work) -> None:
        told = work.stage.job.telemetry
        self.journal, self.pace = Journal(told.events, told.stage) if told else None, Pace()
        self.progress, self.each, self.blocks = work.stage.progress, max(1, work.steps), len(work.blocks)

    def __call__(self, n: int, done: int, loss: float | None) -> None:
        """Block `n` (from 0) is at its step `done`; the last look at a block comes as step 0 of the next."""
        step, of = n * self.each + done, self.blocks * self.each
        if self.progress is not None and (loss is not None or n == self.blocks):
            self.progress(step, of)
        if self.journal is not None and loss is not None and self.pace.due(step, of):
            loss, left, memory = (loss if math.isfinite(loss) else None), self.pace.left(step, of), used_bytes()
            self.journal.write(kind="step", action="tune local", step=step, of=of, left=left, loss=loss, memory=memory)


def _write(work: _Work) -> None:
    """The whole model, tensor by tensor: those that training has changed, and the input's own."""
    job = work.stage.job
    files = [_file(work, n) for n in range(len(work.blocks))]
    owner = {name: path for path in files for name in read_header(path)}
    shards = {path: {name: (name, i) for name, i in infos.items()} for path, infos in open_shards(job.model).items()}

    def change(name: str, tensor: Tensor) -> Tensor:
        if name not in owner:
            return tensor
        with ShardReader(owner[name]) as reader:
            return reader.read(name)

    with fresh(job.out) as tmp:
        tmp.mkdir()
        rewrite(shards, change, tmp)
        shutil.copyfile(job.model / "config.json", tmp / "config.json")
        copy_files(job.model, tmp)
