"""Jobs by `accelerate launch`, as `python -m prunetune.tune` runs them, but GRPO takes answers that are given beforehand.

Which answers, the prompt alone decides: so one process and two train on the same ones. In each process the check of
the KL reference is asked about a wrong one as well.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.tiny import tiny_model

from prunetune.common.files import write_json
from prunetune.errors import TuneError
from prunetune.tune.job import TuneJob, TuneResult, result_path
from prunetune.tune.stage import run_job
from prunetune.tune.training.given import Stage, Trained
from prunetune.tune.training.policy import check_reference, train_policy
from prunetune.tune.training.trainers import RUNNERS, Runner


def rollout(prompts: list[str], trainer: Any) -> dict[str, Any]:
    """One to four digits and the end token, by the prompt and the answer's place in its group."""
    tokenizer, group = trainer.processing_class, trainer.num_generations
    answers = []
    for i, prompt in enumerate(prompts):
        rng = random.Random(f"{prompt}{i % group}")
        answers.append("".join(rng.choice("0179") for _ in range(rng.randint(1, 4))))
    ids = [[*tokenizer(a, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id] for a in answers]
    return {"prompt_ids": [tokenizer(p)["input_ids"] for p in prompts], "completion_ids": ids, "logprobs": None}


def train_fixed(stage: Stage) -> Trained:
    """GRPO on given answers."""
    wrong = SimpleNamespace(
        ref_model=tiny_model(seed=1),
        accelerator=SimpleNamespace(unwrap_model=lambda model: model),
        is_world_process_zero=lambda: False,
    )
    with pytest.raises(TuneError, match="not this step's own input"):
        check_reference(wrong, stage)
    return train_policy(stage, rollout)


def run_fixed(job: TuneJob) -> TuneResult:
    """Run a GRPO job on given answers in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RUNNERS, "grpo", Runner(train_fixed))
        return run_job(job)


if __name__ == "__main__":
    for job in map(TuneJob.read, map(Path, sys.argv[1:])):
        result = run_fixed(job) if job.method.type == "grpo" else run_job(job)
        if os.environ.get("RANK", "0") == "0":  # as `prunetune.tune` does: two writers take each other's file away
            write_json(result_path(job), result.to_json())
