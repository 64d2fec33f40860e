"""Running TRL's GRPOTrainer on a stage: prompts, reward, reference model, checkpoints, and what is reported."""

from __future__ import annotations

import hashlib
import importlib.util
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from datasets import Dataset
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from prunetune.common.strict_json import or_null
from prunetune.errors import MissingExtra, TuneError
from prunetune.models.folders import require_end
from prunetune.models.generation import check_router
from prunetune.tune.job import Entry
from prunetune.tune.methods.grpo import Grpo
from prunetune.tune.training.checkpoints import Guard
from prunetune.tune.training.given import Stage, Trained
from prunetune.tune.training.machine import is_sharded
from prunetune.tune.training.prompts import Prompt, make_prompts
from prunetune.tune.training.reward import Reward, judge_of, reward_of
from prunetune.tune.training.skeleton import Frame, frame_of, log_entry

Rollout = Callable[[list[str], Any], dict[str, Any]]
"""TRL's `rollout_func`: (prompts of this process, trainer) -> {prompt_ids, completion_ids, logprobs}."""


def train_policy(stage: Stage, rollout: Rollout | None = None) -> Trained:
    """Sample, reward, update.

    Args:
        stage: Model, data, settings.
        rollout: Where answers come from in place of sampling.

    Raises:
        TuneError: No task, no prompts, a verifier that does not fit the data or raises, a reference model that is not
            this step's input, or a loss that is not finite.
    """
    method, task = stage.settings(Grpo), judge_of(stage.job)
    require_end(stage.tokenizer, "grpo")
    check_router(stage.model.config)
    prompts, left_out = make_prompts(stage, method.max_length)
    reward = reward_of(task, stage.examples, method)
    batch, answer = min(method.batch_size, len(prompts)), method.max_new_tokens or task.max_new_tokens
    longest = max(len(p.ids) for p in prompts) + answer
    held = sum(p.numel() for p in stage.model.parameters()) * 5 // 4  # and the reference
    frame = frame_of(stage, batch=batch * method.group, params=held, longest=longest)
    stage.model.config._name_or_path = str(stage.job.model)  # where TRL looks the reference up
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TRL's and transformers' words to each other
        sampling = {"max_completion_length": answer, **_rollouts(method, longest, stage.device.type == "cpu")}
        trainer = _trainer(frame, prompts, len(prompts) // batch, reward, sampling, rollout)
        check_reference(trainer, stage)
        done = frame.run(trainer)
    return frame.trained(
        trainer,
        done,
        samples=min(len(stage.examples), batch * done.steps + left_out),
        tokens=done.tokens,
        mean_length=longest / 2,
        log=[_entry(e) for e in done.log],
        truncated=left_out,
        notes=_notes(reward, done.log, left_out, method),
    )


def _trainer(
    frame: Frame,
    prompts: list[Prompt],
    steps: int,
    reward: Reward,
    sampling: dict[str, Any],
    rollout: Rollout | None,
) -> Any:
    """TRL's trainer of a stage."""
    from trl import GRPOConfig, GRPOTrainer

    stage, job, method = frame.stage, frame.stage.job, frame.stage.settings(Grpo)
    return GRPOTrainer(
        model=stage.model,
        reward_funcs=reward.rewards,
        rollout_func=rollout,
        args=frame.arguments(
            GRPOConfig,
            steps,
            num_generations=method.group,
            temperature=method.temperature,
            top_p=method.top_p,
            beta=method.beta,
            epsilon=method.epsilon,
            loss_type=method.loss_type,
            shuffle_dataset=False,
            max_steps=steps,
            **sampling,
        ),
        train_dataset=Dataset.from_dict({"prompt": [p.text for p in prompts], "index": [p.index for p in prompts]}),
        processing_class=stage.tokenizer,
        callbacks=[
            *frame.callbacks(Guard(job.work, float("inf"))),
            Budget(job.tokens if job.tokens is not None else method.tokens),
        ],
    )


class Budget(TrainerCallback):
    """Ends training once prompts and completions hold so many tokens."""

    def __init__(self, tokens: int | None) -> None:
        self.tokens = tokens

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        """Look at TRL's own count."""
        if self.tokens is not None and (logs or {}).get("num_tokens", 0) >= self.tokens:
            control.should_training_stop = True


FIGURES = {
    "reward": "reward",
    "reward_std": "reward_std",
    "accuracy": "accuracy",
    "kl": "kl",
    "completion_tokens": "completions/mean_length",
    "clipped": "completions/clipped_ratio",
    "no_signal": "frac_reward_zero_std",
    "entropy": "entropy",
}
"""Our names for what TRL logs beside the loss."""

PAGE, TOGETHER = 32, 64


def _rollouts(method: Grpo, longest: int, cpu: bool) -> dict[str, Any]:
    """How TRL is to sample. On a CPU it would fill half the machine's memory with an empty cache for every step."""
    if method.rollouts == "vllm":
        if importlib.util.find_spec("vllm") is None:
            raise MissingExtra("vllm", "vllm", "rollouts: vllm")
        return {"use_vllm": True, **{f"vllm_{name}": value for name, value in method.vllm.items()}}
    pages = {"page_size": PAGE, "num_blocks": TOGETHER * math.ceil(longest / PAGE), "max_batch_tokens": 512}
    return {
        "use_transformers_continuous_batching": method.rollouts == "continuous",
        "transformers_continuous_batching_config": pages if cpu else None,
    }


def tensors_sha(model: torch.nn.Module, like: torch.nn.Module | None = None) -> str:
    """SHA-256 (hex) of a model's tensors by name, in the types of `like`; tied names count once.

    Weights that are spread over devices are gathered one by one, by all processes together.
    """
    digest, types = hashlib.sha256(), {n: p.dtype for n, p in (like or model).named_parameters()}
    for name, tensor in sorted(model.named_parameters()):
        digest.update(name.encode())
        whole = _whole(tensor).to("cpu", types.get(name))
        digest.update(whole.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a parameter of which this process may hold a part (FSDP2, ZeRO-3)."""
    if hasattr(tensor, "ds_id"):
        from deepspeed.zero import GatheredParameters

        with GatheredParameters([tensor]):
            return tensor.detach().clone()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


def check_reference(trainer: Any, stage: Stage) -> None:
    """TuneError unless TRL's reference holds exactly the weights that this step starts from, in every process.

    Where weights are spread, the processes after the first may not have read the input: the first compares.
    """
    reference = trainer.ref_model  # None: beta is 0, or the adapters are switched off for it
    if reference is None:
        return
    plain = trainer.accelerator.unwrap_model(reference)
    found, ours = tensors_sha(plain), tensors_sha(stage.model, like=plain)
    if found != ours and (trainer.is_world_process_zero() or not is_sharded()):
        raise TuneError(
            "the KL reference is not this step's own input",
            value=str(plain.config._name_or_path),
            valid=str(stage.job.model),
            fix="report this: TRL looked the reference up elsewhere",
        )


def _entry(log: Mapping[str, Any]) -> Entry:
    return {
        **log_entry(log),
        **{
            name: or_null(log.get(trl)) for name, trl in FIGURES.items()
        },  # TRL has NaN where there was nothing to count
    }


def _notes(reward: Reward, log: list[dict[str, Any]], left_out: int, method: Grpo) -> list[str]:
    notes = reward.notes()
    if left_out:
        notes.append(f"{left_out} prompts longer than {method.max_length} tokens were left out")
    clipped = [e.get("completions/clipped_ratio") or 0.0 for e in log]
    if clipped and sum(clipped) / len(clipped) > 0.1:
        notes.append(f"{sum(clipped) / len(clipped):.0%} of the sampled answers hit the length limit")
    return notes
