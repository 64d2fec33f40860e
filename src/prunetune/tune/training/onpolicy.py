"""On-policy distillation by TRL's DistillationTrainer: the student samples answers, the teacher grades every token."""

from __future__ import annotations

import time
import warnings

from datasets import Dataset
from transformers import PrinterCallback

from prunetune.common import stopping
from prunetune.tune.methods.distill import Distill
from prunetune.tune.stage import Stage, Trained
from prunetune.tune.training.arguments import arguments, world_size
from prunetune.tune.training.checkpoints import Clock, Guard, Steps, job_key, newest_checkpoint
from prunetune.tune.training.machine import compute_type, pick_memory_plan
from prunetune.tune.training.prompts import make_prompts
from prunetune.tune.training.teacher import load_teacher, teacher_folder
from prunetune.tune.training.trainer import log_entry, share_of_device, utilisation, whole_state


def distill_on_policy(stage: Stage, method: Distill) -> Trained:
    """See `Distill.train`. The settings of the data mode that concern the loss (kl_weight, top_k) have no part here."""
    from trl import DistillationConfig, DistillationTrainer

    job, world = stage.job, world_size()
    prompts, left_out = make_prompts(stage, method.max_length)
    batch = min(method.batch_size, len(prompts))
    steps = len(prompts) // batch
    longest = max(len(p.ids) for p in prompts) + method.max_new_tokens
    compute = compute_type(method.precision, stage.device)
    share = share_of_device(batch, world)
    micro, checkpointing = pick_memory_plan(
        method,
        config=stage.model.config,
        params=sum(p.numel() for p in stage.model.parameters()) * 5 // 4,  # and the teacher
        longest=longest,
        compute=compute,
        device=stage.device,
        share=share,
    )
    key = job_key(job, micro, world, str(compute))
    checkpoint, before = newest_checkpoint(job.work, key)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TRL's and transformers' words to each other
        trainer = DistillationTrainer(
            model=stage.model,
            teacher_model=load_teacher(stage, teacher_folder(stage, method)),
            args=arguments(
                stage,
                DistillationConfig,
                compute=compute,
                micro=micro,
                accumulate=share // micro,
                steps=steps,
                checkpointing=checkpointing,
                temperature=method.temperature,
                beta=method.beta,
                max_completion_length=method.max_new_tokens,
                shuffle_dataset=False,
                max_steps=steps,
            ),
            train_dataset=Dataset.from_dict({"prompt": [p.text for p in prompts]}),
            processing_class=stage.tokenizer,
            callbacks=[
                Clock(job.work, key, method.checkpoint_minutes * 60, before),
                Guard(job.work, method.diverged_at),
                Steps(stage.progress),
            ],
        )
        trainer.remove_callback(PrinterCallback)
        begin = time.perf_counter()
        with stopping.deferred():
            trainer.train(resume_from_checkpoint=checkpoint)
    seconds = before + time.perf_counter() - begin
    log = [e for e in trainer.state.log_history if "loss" in e]
    tokens = int(log[-1].get("num_tokens") or 0) if log else 0
    return Trained(
        samples=min(len(stage.examples), batch * steps + left_out),
        tokens=tokens,
        seconds=seconds,
        steps=trainer.state.global_step,
        log=[log_entry(e) for e in log],
        truncated=left_out,
        mfu=utilisation(stage, tokens, longest / 2, seconds, compute) / world,
        notes=[f"{left_out} prompts longer than {method.max_length} tokens were left out"] if left_out else [],
        state=whole_state(trainer),
        writes=trainer.is_world_process_zero(),
    )
