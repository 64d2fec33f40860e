"""What runs each recovery method, by the method's `type`: its trainer, and what is known to fail before one is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from prunetune.data.stream import Example
from prunetune.tune.job import TuneJob
from prunetune.tune.methods import Cpt, Distill, Grpo, Sft
from prunetune.tune.training.given import Stage, Trained, settings
from prunetune.tune.training.local.run import check_local, train_local
from prunetune.tune.training.onpolicy import acceptance, distill_on_policy
from prunetune.tune.training.policy import train_policy
from prunetune.tune.training.reward import judge_of, reward_of
from prunetune.tune.training.teacher import load_teacher, objective_of, teacher_folder
from prunetune.tune.training.trainer import fit, rows_of


def train_cpt(stage: Stage) -> Trained:
    """Next-token loss over whole sequences, or over answers alone."""
    method = stage.settings(Cpt)
    return fit(stage, completion_only=method.completion_only, packing=method.packing)


def train_sft(stage: Stage) -> Trained:
    """Next-token loss over answers alone."""
    return fit(stage, completion_only=True, packing=stage.settings(Sft).packing)


def train_distill(stage: Stage) -> Trained:
    """Beside the teacher: on the stage's examples, or on the student's own answers if they are near enough to its."""
    method, notes = stage.settings(Distill), list[str]()
    if method.mode == "on_policy":
        teacher = load_teacher(stage, teacher_folder(stage, method))
        share = acceptance(stage, method, teacher)
        if share >= method.acceptance:
            return distill_on_policy(stage, method, teacher)
        notes.append(
            f"distilled on the data, not on its own answers: the teacher would accept {share:.0%} of their tokens, "
            f"{method.acceptance:.0%} were asked (acceptance)"
        )
        del teacher
    made = rows_of(stage, completion_only=method.completion_only)
    trained = fit(stage, objective=objective_of(stage, method, made), made=made)
    return replace(trained, notes=[*notes, *trained.notes])


def check_reward(job: TuneJob, examples: Sequence[Example]) -> None:
    """TuneError or TaskError for a verifier that cannot be used, or that cannot judge these answers."""
    reward_of(judge_of(job, examples), examples, settings(job, Grpo))


def check_nothing(job: TuneJob, examples: Sequence[Example]) -> None:
    """Nothing is known to fail before a model is loaded."""


@dataclass(frozen=True)
class Runner:
    """What runs a method."""

    train: Callable[[Stage], Trained]
    check: Callable[[TuneJob, Sequence[Example]], None] = check_nothing


RUNNERS: Mapping[str, Runner] = {
    "cpt": Runner(train_cpt),
    "sft": Runner(train_sft),
    "distill": Runner(train_distill),
    "grpo": Runner(train_policy, check_reward),
    "local": Runner(train_local, check_local),
}
