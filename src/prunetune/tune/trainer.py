"""The trainer of the token-level methods: transformers.Trainer with another loss head and a fixed order of data.

    fit(stage)                                   # cpt: next-token loss over whole sequences
    fit(stage, completion_only=True)             # sft
    fit(stage, extra=teacher_term)               # distill: one more term on the same hidden states

The trained weights are fp32; products run in bf16 (autocast) where the device is faster with it.
"""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainingArguments

from prunetune.errors import TuneError, UnknownName
from prunetune.store import json_sha
from prunetune.tune.base import Method
from prunetune.tune.batches import Row, collate, filled, make_rows, ordered, packed
from prunetune.tune.checkpoints import Clock, Guard, Steps, newest_checkpoint
from prunetune.tune.loss import counted, next_token_loss
from prunetune.tune.machine import compute_type, pick_memory_plan, product_flops, train_flops
from prunetune.tune.stage import Stage, Trained

OPTIMIZERS: dict[str, str] = {
    "adamw": "adamw_torch_fused",
    "adamw_8bit": "adamw_8bit",
    "paged_adamw": "paged_adamw_32bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
    "adafactor": "adafactor",
    "sgd": "sgd",
}
"""Our names -> those of transformers."""


class BoundedTrainer(Trainer):
    """transformers.Trainer whose loss never holds [tokens, vocabulary] logits (see `loss.py`)."""

    def __init__(self, *, compute: torch.dtype, bounded: bool, **values: Any) -> None:
        super().__init__(**values)
        self.compute, self.bounded = compute, bounded
        self.recent: list[Tensor] = []

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean loss over the tokens that count in the whole optimiser step, over all devices."""
        self.recent = [*self.recent, inputs["input_ids"]][-self.args.gradient_accumulation_steps :]
        if not self.bounded or return_outputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        inputs = dict(inputs)
        labels = inputs.pop("labels")
        # output_hidden_states=-1: only the head's own input; the model's forward makes one useless row of logits.
        output = model(**inputs, output_hidden_states=-1, logits_to_keep=1, use_cache=False)
        hidden, targets = counted(output.hidden_states[-1], labels)
        plain = self.accelerator.unwrap_model(model)
        loss = next_token_loss(
            hidden,
            plain.get_output_embeddings().weight,
            targets,
            softcap=getattr(plain.config, "final_logit_softcapping", None),
            compute=self.compute,
        )
        items = (labels[:, 1:] != -100).sum() if num_items_in_batch is None else num_items_in_batch
        return loss * self.accelerator.num_processes / items


def fit(stage: Stage, *, completion_only: bool = False, packing: bool = False) -> Trained:
    """Train `stage.model` on the stage's examples, in place.

    Args:
        stage: Model, data, settings.
        completion_only: Only answers count in the loss.
        packing: Fill rows with several examples instead of grouping by length.

    Returns:
        Counts, times and the log.

    Raises:
        TuneError: If nothing can be trained on, or the loss diverges (evidence in the job's `work/diverged`).
    """
    method, job = stage.job.method, stage.job
    made = make_rows(
        stage.tokenizer,
        stage.examples,
        job.fmt,
        method.max_length,
        completion_only=completion_only,
        tokens=job.tokens if job.tokens is not None else method.tokens,
    )
    if not made.rows:
        raise TuneError(
            "no example has a token to learn from",
            value=f"{made.used} examples, max_length {method.max_length}",
            fix="raise max_length, or look at the data's columns",
        )
    compute = compute_type(method.precision, stage.device)
    args = _arguments(stage, compute)
    world = args.world_size
    if method.batch_size % world:
        raise TuneError(
            "batch_size must be a multiple of the number of devices", value=method.batch_size, valid=str(world)
        )
    params = sum(p.numel() for p in stage.model.parameters() if p.requires_grad)
    longest = method.max_length if packing else max(len(r.ids) for r in made.rows)
    micro, checkpointing = pick_memory_plan(
        method,
        config=stage.model.config,
        params=params,
        longest=longest,
        compute=compute,
        device=stage.device,
        share=method.batch_size // world,
    )
    rows = _order(made.rows, method, micro, stage.seed, packing)
    steps = math.ceil(len(rows) / method.batch_size)
    rows = filled(rows, micro * world)
    args = _arguments(stage, compute, micro=micro, steps=steps, checkpointing=checkpointing)

    key = json_sha([job.model_dump(mode="json", exclude={"out", "work", "device"}), micro, world, str(compute)])
    checkpoint, before = newest_checkpoint(job.work, key)
    clock = Clock(job.work, key, method.checkpoint_minutes * 60, before)
    guard = Guard(job.work, method.diverged_at)
    trainer = BoundedTrainer(
        compute=compute,
        bounded=method.loss_head != "plain",
        model=stage.model,
        args=args,
        train_dataset=rows,
        data_collator=lambda batch: collate(batch, stage.tokenizer.pad_token_id or 0),
        callbacks=[clock, guard, Steps(stage.progress)],
    )
    guard.batch = lambda: trainer.recent
    trainer.remove_callback(PrinterCallback)
    begin = time.perf_counter()
    trainer.train(resume_from_checkpoint=checkpoint)
    seconds = before + time.perf_counter() - begin
    tokens = sum(r.real for r in rows)
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    return Trained(
        model=trainer.accelerator.unwrap_model(trainer.model),
        samples=made.used,
        tokens=tokens,
        seconds=seconds,
        steps=steps,
        log=[_entry(e) for e in log],
        truncated=made.truncated,
        mfu=_utilisation(stage, tokens, tokens / len(rows), seconds, compute) / world,
        notes=_notes(made.empty, made.truncated, made.used, method),
        writes=trainer.is_world_process_zero(),
    )


def _order(rows: tuple[Row, ...], method: Method, micro: int, seed: int, packing: bool) -> list[Row]:
    if not packing:
        return ordered(rows, micro, seed, method.epochs)
    return [row for epoch in range(method.epochs) for row in packed(rows, method.max_length, seed + epoch)]


def _arguments(
    stage: Stage, compute: torch.dtype, *, micro: int = 1, steps: int = 1, checkpointing: bool = False
) -> TrainingArguments:
    """TrainingArguments of a method: our names to transformers' names, everything noisy off."""
    method = stage.job.method
    if method.optimizer not in OPTIMIZERS:
        raise UnknownName("optimizer", method.optimizer, OPTIMIZERS)
    common: dict[str, Any] = {
        "output_dir": str(stage.job.work),
        "per_device_train_batch_size": micro,
        "num_train_epochs": 1,
        "learning_rate": method.learning_rate,
        "lr_scheduler_type": method.scheduler,
        "warmup_steps": int(method.warmup * steps),
        "optim": OPTIMIZERS[method.optimizer],
        "weight_decay": method.weight_decay,
        "adam_beta2": method.adam_beta2,
        "max_grad_norm": method.max_grad_norm,
        "bf16": compute == torch.bfloat16,
        "use_cpu": stage.device.type == "cpu",
        "seed": stage.seed,
        "train_sampling_strategy": "sequential",
        "remove_unused_columns": False,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "save_total_limit": 2,
        "report_to": [],
        "disable_tqdm": True,
        "log_level": "error",
        "dataloader_pin_memory": stage.device.type == "cuda",
    }
    if checkpointing:
        name = (
            "activation_checkpointing"
            if hasattr(TrainingArguments, "activation_checkpointing")
            else "gradient_checkpointing"
        )
        common |= {name: True, f"{name}_kwargs": {"use_reentrant": False}}
    args = TrainingArguments(**common)
    share = method.batch_size // max(1, args.world_size)
    args.gradient_accumulation_steps = max(1, share // micro)
    return args


def _entry(log: dict[str, Any]) -> dict[str, Any]:
    return {
        "step": log["step"], "loss": log["loss"], "lr": log.get("learning_rate"), "grad_norm": log.get("grad_norm")
    }  # fmt: skip


def _utilisation(stage: Stage, tokens: int, mean_length: float, seconds: float, compute: torch.dtype) -> float:
    model = stage.model
    names = {n: p.numel() for n, p in model.named_parameters()}
    tied = not any(n.endswith("lm_head.weight") for n in names)
    products = sum(names.values()) - sum(size for n, size in names.items() if "embed_tokens" in n and not tied)
    flops = train_flops(model.config, products, tokens, mean_length)
    return flops / max(seconds, 1e-9) / product_flops(stage.device, compute)


def _notes(empty: int, truncated: int, used: int, method: Method) -> list[str]:
    notes = []
    if truncated:
        notes.append(f"{truncated} of {used} examples were cut to max_length {method.max_length}")
    if empty:
        notes.append(f"{empty} of {used} examples had no token that counts and were not trained on")
    return notes
