"""The trainer of the token-level methods: transformers.Trainer with another loss head and a fixed order of data.

    fit(stage)                                   # cpt: next-token loss over whole sequences
    fit(stage, completion_only=True)             # sft
    fit(stage, objective=teacher)                # distill: another term on the same logits

The trained weights are fp32; products run in bf16 (autocast) where the device is faster with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments

from prunetune.errors import TuneError
from prunetune.models.families import check_packing, families
from prunetune.models.folders import pad_id
from prunetune.models.head import head_of
from prunetune.models.head_loss import Term, chunked, counted, cross_entropy, on_logits
from prunetune.tune.methods.base import Method
from prunetune.tune.training.average import Average, covered
from prunetune.tune.training.batches import Row, Rows, collate, filled, make_rows, ordered, packed
from prunetune.tune.training.checkpoints import Guard
from prunetune.tune.training.given import Stage, Trained
from prunetune.tune.training.machine import is_sharded
from prunetune.tune.training.skeleton import Frame, frame_of

Objective = Callable[[dict[str, Tensor], Tensor, Tensor], Term]
"""(inputs of the model, labels [batch, length], counted labels [tokens]) -> the term of `loss.chunked`."""


class BoundedTrainer(Trainer):
    """transformers.Trainer whose loss never holds [tokens, vocabulary] logits (see `models/head_loss.py`)."""

    def __init__(
        self,
        *,
        compute: torch.dtype,
        head: str,
        objective: Objective | None,
        **values: Any,
    ) -> None:
        super().__init__(**values)
        self.compute, self.head = compute, head
        self.objective: Objective | None = objective
        self.recent: list[Tensor] = []

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean loss over the tokens that count in the whole optimiser step, over all devices."""
        self.recent = [*self.recent, inputs["input_ids"]][-self.args.gradient_accumulation_steps :]
        inputs = dict(inputs)
        index = inputs.pop("index")
        if self.head == "plain" and self.objective is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs.pop("labels")
        if self.head == "plain":
            output = model(**inputs, use_cache=False)
            logits, targets = counted(output.logits, labels)
            total = on_logits(logits, self._term({**inputs, "index": index}, labels, targets))
            total = total + self._balance(model, output, targets)
        else:
            total = self._bounded(model, inputs, labels, index)
        items = (labels[:, 1:] != -100).sum() if num_items_in_batch is None else num_items_in_batch
        return total * self.accelerator.num_processes / items

    def _bounded(self, model: Any, inputs: dict[str, Any], labels: Tensor, index: Tensor) -> Tensor:
        # output_hidden_states=-1: only the head's own input; the model's forward makes one useless row of logits.
        output = model(**inputs, output_hidden_states=-1, logits_to_keep=1, use_cache=False)
        hidden, targets = counted(output.hidden_states[-1], labels)
        plain = self.accelerator.unwrap_model(model)
        head = head_of(plain)
        total = chunked(
            head.reads(hidden),
            head.weight(),
            self._term({**inputs, "index": index}, labels, targets),
            softcap=head.softcap,
            compute=self.compute,
        )
        return total + self._balance(model, output, targets)

    def _balance(self, model: Any, output: Any, targets: Tensor) -> Tensor | float:
        """A mixture's auxiliary loss, where its config has the model give it (`output_router_logits`): for each token
        that counts, with the config's weight (`router_aux_loss_coef`).
        """
        aux = getattr(output, "aux_loss", None)
        if aux is None:
            return 0.0
        loss: Tensor = aux * (self.accelerator.unwrap_model(model).config.router_aux_loss_coef * len(targets))
        return loss

    def _term(self, inputs: dict[str, Any], labels: Tensor, targets: Tensor) -> Term:
        return self.objective(inputs, labels, targets) if self.objective else cross_entropy(targets)


def rows_of(stage: Stage, *, completion_only: bool) -> Rows:
    """The stage's examples as rows; TuneError if nothing can be learnt from them."""
    job = stage.job
    tokens = job.tokens if job.tokens is not None else job.method.tokens
    made = make_rows(
        stage.tokenizer,
        stage.examples,
        job.fmt,
        job.method.max_length,
        completion_only=completion_only,
        tokens=tokens,
    )
    if not made.rows:
        raise TuneError(
            "no example has a token to learn from",
            value=f"{made.used} examples, max_length {job.method.max_length}",
            fix="raise max_length, or look at the data's columns",
        )
    return made


def fit(
    stage: Stage,
    *,
    completion_only: bool = False,
    packing: bool = False,
    objective: Objective | None = None,
    made: Rows | None = None,
) -> Trained:
    """Train `stage.model` on the stage's examples, in place.

    Args:
        stage: Model, data, settings.
        completion_only: Only answers count in the loss.
        packing: Fill rows with several examples instead of grouping by length.
        objective: Another loss than the next-token one.
        made: The rows, if they are made already.

    Returns:
        Counts, times and the log.

    Raises:
        TuneError: If nothing can be trained on, or the loss diverges (evidence in the job's `work/diverged`).
        UnsupportedModel: If rows of this model cannot be packed.
    """
    method = stage.job.method
    if method.average and is_sharded():
        raise TuneError(
            "weights that are spread over devices are not averaged",
            value=f"average: {method.average}",
            fix="average: 0, or a launcher that keeps them whole (ddp)",
        )
    if packing:
        check_packing(stage.model.config.model_type)
    made = made or rows_of(stage, completion_only=completion_only)
    frame = frame_of(
        stage,
        batch=method.batch_size,
        params=sum(p.numel() for p in stage.model.parameters() if p.requires_grad),
        longest=method.max_length if packing else max(len(r.ids) for r in made.rows),
    )
    rows = _order(made.rows, method, frame.micro, stage.seed, packing)
    steps = math.ceil(len(rows) / method.batch_size)
    rows = filled(rows, frame.micro * frame.world)
    trainer = _trainer(frame, rows, steps, objective)
    done = frame.run(trainer)
    tokens = sum(r.real for r in rows[: done.steps * method.batch_size])
    return frame.trained(
        trainer,
        done,
        samples=made.used,
        tokens=tokens,
        mean_length=tokens / min(len(rows), done.steps * method.batch_size),
        truncated=made.truncated,
        notes=_notes(made, method, steps),
    )


def _trainer(frame: Frame, rows: list[Row], steps: int, objective: Objective | None) -> BoundedTrainer:
    """The trainer of a stage, with what it does beside training."""
    stage = frame.stage
    method, pad, work = stage.job.method, pad_id(stage.tokenizer), stage.job.work
    known = stage.model.config.model_type in families()  # else its forward alone knows what becomes of the logits
    guard = Guard(work, method.diverged_at)
    real = [0, *accumulate(row.real for row in rows)]

    def tokens_at(step: int) -> int:
        return real[min(step * method.batch_size, len(rows))]

    trainer = BoundedTrainer(
        compute=frame.compute,
        head="plain" if method.loss_head == "plain" or is_sharded() or not known else "bounded",
        objective=objective,
        model=stage.model,
        args=frame.arguments(TrainingArguments, steps, train_sampling_strategy="sequential"),
        train_dataset=rows,
        data_collator=lambda batch: collate(batch, pad),
        callbacks=[
            *(
                [Average(steps, method.average, work, frame.checkpoint)] if method.average else []
            ),  # before it is marked
            *frame.callbacks(guard, copies=4 if method.average else 3, tokens_at=tokens_at),
        ],
    )
    guard.batch = lambda: trainer.recent
    return trainer


def _order(rows: tuple[Row, ...], method: Method, micro: int, seed: int, packing: bool) -> list[Row]:
    if not packing:
        return ordered(rows, micro, seed, method.epochs)
    return [row for epoch in range(method.epochs) for row in packed(rows, method.max_length, seed + epoch)]


def _notes(made: Rows, method: Method, steps: int) -> list[str]:
    notes = []
    if made.truncated:
        notes.append(f"{made.truncated} of {made.used} examples were cut to max_length {method.max_length}")
    if made.empty:
        notes.append(f"{made.empty} of {made.used} examples had no token that counts and were not trained on")
    if method.average:
        notes.append(f"the weights of the last {covered(steps, method.average)} of {steps} steps were averaged")
    return notes
