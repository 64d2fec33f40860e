"""On-policy distillation by TRL's DistillationTrainer: the student samples answers, the teacher grades every token.

A student that is far from its teacher writes what the teacher has no opinion on, and learns little from its grades
(https://arxiv.org/abs/2604.13016): `acceptance` says how near it is, and the caller falls back to the data if too far.
"""

from __future__ import annotations

import warnings

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel

from prunetune.models.batches import mask_of, padded
from prunetune.models.folders import pad_id
from prunetune.models.prompt import end_ids
from prunetune.tune.methods.distill import Distill
from prunetune.tune.training.checkpoints import Guard
from prunetune.tune.training.given import Stage, Trained
from prunetune.tune.training.prompts import make_prompts
from prunetune.tune.training.skeleton import frame_of

PROBED = 16
"""Prompts whose answers say how near the student is."""


@torch.no_grad()
def acceptance(stage: Stage, method: Distill, teacher: PreTrainedModel) -> float:
    """Share of the student's sampled tokens that the teacher would accept, between 0 and 1.

    The mean over the tokens of the student's answers to the first prompts of sum_v min(p_student(v), p_teacher(v)), the
    acceptance rate of speculative sampling (Leviathan et al. 2023, https://arxiv.org/abs/2211.17192, theorem 3.5).
    """
    prompts, _ = make_prompts(stage, method.max_length)
    rows = [list(p.ids) for p in prompts[:PROBED]]
    student, pad = stage.model, pad_id(stage.tokenizer)
    ids, mask = padded(rows, pad, left=True), mask_of(rows, left=True)
    ends = set(end_ids(stage.tokenizer, student.generation_config))
    with torch.random.fork_rng():
        torch.manual_seed(stage.seed)
        made: Tensor = student.generate(  # type: ignore[operator]  # a pretrained model's type leaves it out
            input_ids=ids.to(student.device), attention_mask=mask.to(student.device), do_sample=True,
            temperature=method.temperature, top_k=0, top_p=1.0, max_new_tokens=method.max_new_tokens,
            eos_token_id=list(ends) or None, pad_token_id=pad,
        )  # fmt: skip
    overlaps = []
    for row, new in zip(rows, made[:, ids.shape[1] :].tolist(), strict=True):
        end = next((i for i, token in enumerate(new) if token in ends), len(new) - 1)
        whole = torch.tensor([row + new[: end + 1]], device=student.device)
        ours, its = (_chances(model, whole, len(row), method.temperature) for model in (student, teacher))
        overlaps.append(torch.minimum(ours, its).sum(-1))
    return float(torch.cat(overlaps).mean())


def _chances(model: PreTrainedModel, row: Tensor, start: int, temperature: float) -> Tensor:
    """What a model thinks of each token of a row [1, tokens] from `start` on: [tokens - start, vocabulary]."""
    logits: Tensor = model(input_ids=row, use_cache=False).logits[0, start - 1 : -1]
    return (logits.float() / temperature).softmax(-1)


def distill_on_policy(stage: Stage, method: Distill, teacher: PreTrainedModel) -> Trained:
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
            teacher_model=teacher,
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
