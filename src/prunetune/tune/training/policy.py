"""Running TRL's GRPOTrainer on a stage: prompts, reward, reference model, checkpoints, and what is reported."""

from __future__ import annotations

import hashlib
import importlib.util
import math
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset
from torch.distributed.tensor import DTensor
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from prunetune.common import stopping
from prunetune.common.strict_json import or_null
from prunetune.errors import MissingExtra, TuneError
from prunetune.models.folders import require_end
from prunetune.tune.methods.grpo import Grpo
from prunetune.tune.stage import Stage, Trained
from prunetune.tune.training.arguments import arguments, world_size
from prunetune.tune.training.checkpoints import Clock, Guard, Steps, job_key, newest_checkpoint
from prunetune.tune.training.machine import compute_type, is_sharded, pick_memory_plan
from prunetune.tune.training.prompts import make_prompts
from prunetune.tune.training.reward import Reward, judge_of, reward_of
from prunetune.tune.training.trainer import log_entry, share_of_device, utilisation, whole_state

Rollout = Callable[[list[str], Any], dict[str, Any]]
"""TRL's `rollout_func`: (prompts of this process, trainer) -> {prompt_ids, completion_ids, logprobs}."""


def train_policy(stage: Stage, method: Grpo, rollout: Rollout | None = None) -> Trained:
    """See `Grpo.train`.

    Args:
        stage: Model, data, settings.
        method: The method's own settings.
        rollout: Where answers come from in place of sampling.

    Raises:
        TuneError: No task, no prompts, a verifier that does not fit the data or raises, a reference model that is not
            this step's input, or a loss that is not finite.
    """
    from trl import GRPOConfig, GRPOTrainer

    job, world = stage.job, world_size()
    task = judge_of(job)
    require_end(stage.tokenizer, "grpo")
    prompts, left_out = make_prompts(stage, method.max_length)
    reward = reward_of(task, stage.examples, method)
    batch = min(method.batch_size, len(prompts))
    steps = len(prompts) // batch
    longest = max(len(p.ids) for p in prompts) + (method.max_new_tokens or task.max_new_tokens)
    compute = compute_type(method.precision, stage.device)
    share = share_of_device(batch * method.group, world)
    micro, checkpointing = pick_memory_plan(
        method,
        config=stage.model.config,
        params=sum(p.numel() for p in stage.model.parameters()) * 5 // 4,  # and the reference
        longest=longest,
        compute=compute,
        device=stage.device,
        share=share,
    )
    key = job_key(job, micro, world, str(compute))
    checkpoint, before = newest_checkpoint(job.work, key)
    guard = Guard(job.work, float("inf"))
    stage.model.config._name_or_path = str(job.model)  # where TRL looks the reference up
    columns = {"prompt": [p.text for p in prompts], "index": [p.index for p in prompts]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TRL's and transformers' words to each other
        trainer = GRPOTrainer(
            model=stage.model,
            reward_funcs=reward.rewards,
            rollout_func=rollout,
            args=arguments(
                stage,
                GRPOConfig,
                compute=compute,
                micro=micro,
                accumulate=share // micro,
                steps=steps,
                checkpointing=checkpointing,
                num_generations=method.group,
                max_completion_length=longest - max(len(p.ids) for p in prompts),
                temperature=method.temperature,
                top_p=method.top_p,
                beta=method.beta,
                epsilon=method.epsilon,
                loss_type=method.loss_type,
                shuffle_dataset=False,
                max_steps=steps,
                **_rollouts(method, longest, stage.device.type == "cpu"),
            ),
            train_dataset=Dataset.from_dict(columns),
            processing_class=stage.tokenizer,
            callbacks=[
                Clock(job.work, key, method.checkpoint_minutes * 60, before),
                guard,
                Steps(stage.progress),
                Budget(job.tokens if job.tokens is not None else method.tokens),
            ],
        )
        check_reference(trainer, stage)
        trainer.remove_callback(PrinterCallback)
        begin = time.perf_counter()
        with stopping.deferred():
            trainer.train(resume_from_checkpoint=checkpoint)
    seconds = before + time.perf_counter() - begin
    log = [e for e in trainer.state.log_history if "loss" in e]
    tokens = int(log[-1].get("num_tokens") or 0) if log else 0
    steps = trainer.state.global_step
    return Trained(
        samples=min(len(stage.examples), batch * steps + left_out),
        tokens=tokens,
        seconds=seconds,
        steps=steps,
        log=[_entry(e) for e in log],
        truncated=left_out,
        mfu=utilisation(stage, tokens, longest / 2, seconds, compute) / world,
        notes=_notes(reward, log, left_out, method),
        state=whole_state(trainer),
        writes=trainer.is_world_process_zero(),
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


def _entry(log: dict[str, Any]) -> dict[str, Any]:
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
