"""What every trainer does around its own loss: divide a step over devices and memory, go on from a checkpoint, report.

frame = frame_of(stage, batch=32, params=..., longest=512)
trainer = SomeTrainer(args=frame.arguments(SomeConfig, steps), callbacks=[*frame.callbacks(guard), ...])
return frame.trained(trainer, frame.run(trainer), samples=..., tokens=..., mean_length=...)
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from prunetune.common import stopping
from prunetune.errors import MissingExtra, TuneError
from prunetune.models.cost import attention_products, training_flops
from prunetune.models.shape import Shape
from prunetune.tune.job import Entry
from prunetune.tune.trackers import PROJECT, plugged_callbacks, reported, run_name
from prunetune.tune.training.checkpoints import Clock, Deadline, Guard, Steps, job_key, newest_checkpoint
from prunetune.tune.training.given import Stage, Trained
from prunetune.tune.training.machine import compute_type, is_sharded, pick_memory_plan, product_flops
from prunetune.tune.training.telling import Telling, TokensAt

OPTIMIZERS: dict[str, str] = {
    "adamw": "adamw_torch_fused",
    "adamw_8bit": "adamw_8bit",
    "paged_adamw": "paged_adamw_32bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
    "adafactor": "adafactor",
    "sgd": "sgd",
}
"""Our names -> those of transformers."""

QUIET: dict[str, Any] = {
    "num_train_epochs": 1,
    "remove_unused_columns": False,
    "logging_steps": 1,
    "logging_nan_inf_filter": False,
    "save_strategy": "no",
    "save_total_limit": 2,
    "disable_tqdm": True,
    "log_level": "error",
    "ddp_find_unused_parameters": False,
}
"""Arguments that are the same for all: one pass over rows in our order, our own checkpoints, nothing noisy."""


@dataclass(frozen=True)
class Finished:
    """What a trainer did: wall time with that before a kill, optimiser steps, its log of losses."""

    seconds: float
    steps: int
    log: list[dict[str, Any]]

    @property
    def tokens(self) -> int:
        """TRL's count of the tokens of prompts and answers."""
        return int(self.log[-1].get("num_tokens") or 0) if self.log else 0


@dataclass(frozen=True)
class Frame:
    """How a stage is trained.

    Attributes:
        stage: Model, data, settings.
        world: Processes that train together.
        compute: Type of the products.
        rate: Peak learning rate.
        micro: Sequences of one forward pass on one device.
        accumulate: Forward passes of one optimiser step on one device.
        checkpointing: Whether activations are recomputed in the backward pass.
        key: What a checkpoint must agree on to be gone on from.
        checkpoint: The one to go on from.
        before: Seconds trained before it.
    """

    stage: Stage
    world: int
    compute: torch.dtype
    rate: float
    micro: int
    accumulate: int
    checkpointing: bool
    key: str
    checkpoint: str | None
    before: float

    def arguments(self, kind: type[TrainingArguments], steps: int, **more: Any) -> Any:
        """The trainer's arguments.

        Args:
            kind: TrainingArguments, or TRL's subclass of it.
            steps: Optimiser steps in all, for the warm-up.
            more: Arguments of the subclass.
        """
        method, cpu = self.stage.job.method, self.stage.device.type == "cpu"
        if "8bit" in method.optimizer or "paged" in method.optimizer:
            _need_bitsandbytes(method.optimizer, cpu)
        name = "activation_checkpointing" if hasattr(kind, "activation_checkpointing") else "gradient_checkpointing"
        again: dict[str, Any] = {name: self.checkpointing}
        again[f"{name}_kwargs"] = {"use_reentrant": False} if self.checkpointing else None
        return kind(
            output_dir=str(self.stage.job.work),
            per_device_train_batch_size=self.micro,
            gradient_accumulation_steps=self.accumulate,
            learning_rate=self.rate,
            lr_scheduler_type=method.scheduler,
            warmup_steps=int(method.warmup * steps),  # rounded down: the first warm-up step has a rate of zero
            optim=OPTIMIZERS[method.optimizer],
            weight_decay=method.weight_decay,
            adam_beta2=method.adam_beta2,
            max_grad_norm=method.max_grad_norm,
            bf16=self.compute == torch.bfloat16,
            use_cpu=cpu,
            seed=self.stage.seed,
            dataloader_pin_memory=not cpu,
            report_to=reported(self._log),
            run_name=run_name(self.stage.job),
            project=PROJECT,
            **again,
            **QUIET,
            **more,
        )

    @property
    def _log(self) -> tuple[str, ...]:
        """The trackers and callbacks that the recipe names."""
        told = self.stage.job.telemetry
        return told.log if told else ()

    def callbacks(self, guard: Guard, *, copies: int = 3, tokens_at: TokensAt | None = None) -> list[TrainerCallback]:
        """Checkpoints (of `copies` times the trained weights), the guard, progress, plugins': in this order."""
        job = self.stage.job
        clock = Clock(job.work, self.key, job.method.checkpoint_minutes * 60, self.before, copies)
        told = [Steps(self.stage.progress), Telling(job, tokens_at)]
        late = [Deadline(job.seconds - self.before)] if job.seconds else []
        return [*late, clock, guard, *told, *plugged_callbacks(self._log)]

    def run(self, trainer: Trainer) -> Finished:
        """Train to the end; a signal stops it after a checkpoint."""
        trainer.remove_callback(PrinterCallback)
        begin = time.perf_counter()
        with stopping.deferred():
            trainer.train(resume_from_checkpoint=self.checkpoint)
        log = [e for e in trainer.state.log_history if "loss" in e]
        return Finished(self.before + time.perf_counter() - begin, trainer.state.global_step, log)

    def trained(self, trainer: Trainer, done: Finished, *, tokens: int, mean_length: float, **more: Any) -> Trained:
        """The result; `more` are further fields of `Trained`, its `log` in our names unless given."""
        return Trained(
            tokens=tokens,
            seconds=done.seconds,
            steps=done.steps,
            planned=trainer.state.max_steps,
            mfu=utilisation(self.stage, tokens, mean_length, done.seconds, self.compute) / self.world,
            state=whole_state(trainer),
            writes=trainer.is_world_process_zero(),
            **{"log": [log_entry(e) for e in done.log], **more},
        )


def world_size(device: torch.device) -> int:
    """Processes that train together. Accelerate joins those on CPUs only if it is told that they are."""
    from accelerate import PartialState

    return int(PartialState(cpu=device.type == "cpu").num_processes)


def _need_bitsandbytes(optimizer: str, cpu: bool) -> None:
    import importlib.util

    if cpu:
        raise TuneError(
            "this optimiser needs a GPU", value=optimizer, valid="adamw, adafactor, sgd", fix="optimizer: adamw"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtra("bitsandbytes", "deepspeed", f"the optimiser {optimizer}")


def frame_of(stage: Stage, *, batch: int, params: int, longest: int) -> Frame:
    """Divide a step over devices and memory, and look for a checkpoint to go on from.

    Args:
        stage: Model, data, settings.
        batch: Sequences of one optimiser step, over all devices.
        params: Parameters that training holds.
        longest: Tokens of the longest row.

    Raises:
        TuneError: `batch` is no multiple of the number of devices.
    """
    method, world = stage.job.method, world_size(stage.device)
    compute, share = compute_type(method.precision, stage.device), share_of_device(batch, world)
    micro, checkpointing = pick_memory_plan(
        method,
        config=stage.model.config,
        params=params,
        longest=longest,
        compute=compute,
        device=stage.device,
        share=share,
    )
    key = job_key(stage.job, micro, world, str(compute))
    checkpoint, before = newest_checkpoint(stage.job.work, key)
    rate = method.rate(sum(p.numel() for p in stage.model.parameters()))
    return Frame(stage, world, compute, rate, micro, share // micro, checkpointing, key, checkpoint, before)


def share_of_device(batch_size: int, world: int) -> int:
    """Sequences of an optimiser step on one device."""
    if batch_size % world:
        raise TuneError("batch_size must be a multiple of the number of devices", value=batch_size, valid=str(world))
    return batch_size // world


def whole_state(trainer: Trainer) -> dict[str, Tensor] | None:
    """All weights, gathered on the first process, where they are spread over several; else None."""
    if not is_sharded():
        return None
    state: dict[str, Tensor] = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    return state


def log_entry(log: Mapping[str, Any]) -> Entry:
    """An entry of the trainer's log in our names."""
    return {
        "step": log["step"], "loss": log["loss"], "lr": log.get("learning_rate"), "grad_norm": log.get("grad_norm")
    }  # fmt: skip


def utilisation(stage: Stage, tokens: int, mean_length: float, seconds: float, compute: torch.dtype) -> float:
    """FLOPs of the model a second, over what a plain matrix product reaches on this device."""
    table = stage.model.get_input_embeddings().get_parameter("weight")
    tied = getattr(stage.model.get_output_embeddings(), "weight", None) is table
    products = sum(p.numel() for p in stage.model.parameters()) - (0 if tied else table.numel())
    shape = Shape.loose(stage.model.config)
    flops = training_flops(tokens, mean_length, products, attention_products(shape))
    return flops / max(seconds, 1e-9) / product_flops(stage.device, compute)
