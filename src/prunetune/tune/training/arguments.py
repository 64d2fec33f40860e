"""A method's settings in the words of transformers' and TRL's trainers; everything noisy is off."""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainingArguments

from prunetune.errors import MissingExtra, TuneError
from prunetune.tune.stage import Stage

OPTIMIZERS: dict[str, str] = {
    "adamw": "adamw_torch_fused",
    "adamw_8bit": "adamw_8bit",
    "paged_adamw": "paged_adamw_32bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
    "adafactor": "adafactor",
    "sgd": "sgd",
}
"""Our names -> those of transformers."""


def world_size() -> int:
    """Processes that train together."""
    from accelerate import PartialState

    return int(PartialState().num_processes)


def arguments(
    stage: Stage,
    kind: type[TrainingArguments],
    *,
    compute: torch.dtype,
    micro: int,
    accumulate: int,
    steps: int,
    checkpointing: bool,
    **more: Any,
) -> Any:
    """The trainer's arguments.

    Args:
        stage: Settings and places.
        kind: TrainingArguments, or TRL's subclass of it.
        compute: Type of the products.
        micro: Sequences of one forward pass on one device.
        accumulate: Forward passes of one optimiser step.
        steps: Optimiser steps in all, for the warm-up.
        checkpointing: Recompute activations in the backward pass.
        more: Arguments of the subclass.
    """
    method, cpu = stage.job.method, stage.device.type == "cpu"
    if "8bit" in method.optimizer or "paged" in method.optimizer:
        _need_bitsandbytes(method.optimizer, cpu)
    name = "activation_checkpointing" if hasattr(kind, "activation_checkpointing") else "gradient_checkpointing"
    more |= {name: checkpointing, f"{name}_kwargs": {"use_reentrant": False} if checkpointing else None}
    return kind(
        output_dir=str(stage.job.work),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulate,
        num_train_epochs=1,
        learning_rate=method.learning_rate,
        lr_scheduler_type=method.scheduler,
        warmup_steps=int(method.warmup * steps),  # rounded down: the trainer's first warm-up step has a rate of zero
        optim=OPTIMIZERS[method.optimizer],
        weight_decay=method.weight_decay,
        adam_beta2=method.adam_beta2,
        max_grad_norm=method.max_grad_norm,
        bf16=compute == torch.bfloat16,
        use_cpu=cpu,
        seed=stage.seed,
        remove_unused_columns=False,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        save_total_limit=2,
        report_to=[],
        disable_tqdm=True,
        log_level="error",
        dataloader_pin_memory=not cpu,
        ddp_find_unused_parameters=False,
        **more,
    )


def _need_bitsandbytes(optimizer: str, cpu: bool) -> None:
    import importlib.util

    if cpu:
        raise TuneError(
            "this optimiser needs a GPU", value=optimizer, valid="adamw, adafactor, sgd", fix="optimizer: adamw"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtra("bitsandbytes", "deepspeed", f"the optimiser {optimizer}")
