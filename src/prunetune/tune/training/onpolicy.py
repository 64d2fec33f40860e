"""On-policy distillation by TRL's DistillationTrainer: the student samples answers, the teacher grades every token."""

from __future__ import annotations

import warnings

from datasets import Dataset

from prunetune.tune.methods.distill import Distill
from prunetune.tune.training.checkpoints import Guard
from prunetune.tune.training.given import Stage, Trained
from prunetune.tune.training.prompts import make_prompts
from prunetune.tune.training.skeleton import frame_of
from prunetune.tune.training.teacher import load_teacher, teacher_folder


def distill_on_policy(stage: Stage, method: Distill) -> Trained:
    """Train on the student's own answers. The settings of the data mode that concern the loss have no part here."""
    from trl import DistillationConfig, DistillationTrainer

    prompts, left_out = make_prompts(stage, method.max_length)
    batch = min(method.batch_size, len(prompts))
    steps = len(prompts) // batch
    longest = max(len(p.ids) for p in prompts) + method.max_new_tokens
    held = sum(p.numel() for p in stage.model.parameters()) * 5 // 4  # and the teacher
    frame = frame_of(stage, batch=batch, params=held, longest=longest)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TRL's and transformers' words to each other
        trainer = DistillationTrainer(
            model=stage.model,
            teacher_model=load_teacher(stage, teacher_folder(stage, method)),
            args=frame.arguments(
                DistillationConfig,
                steps,
                temperature=method.temperature,
                beta=method.beta,
                max_completion_length=method.max_new_tokens,
                shuffle_dataset=False,
                max_steps=steps,
            ),
            train_dataset=Dataset.from_dict({"prompt": [p.text for p in prompts]}),
            processing_class=stage.tokenizer,
            callbacks=frame.callbacks(Guard(stage.job.work, method.diverged_at)),
        )
        done = frame.run(trainer)
    return frame.trained(
        trainer,
        done,
        samples=min(len(stage.examples), batch * steps + left_out),
        tokens=done.tokens,
        mean_length=longest / 2,
        truncated=left_out,
        notes=[f"{left_out} prompts longer than {method.max_length} tokens were left out"] if left_out else [],
    )
