"""The reward of GRPO: accuracy_weight * (the task's own verifier says right) + format_weight * (right form)."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from prunetune.data.stream import Example
from prunetune.errors import NotFinite, PrunetuneError, TuneError
from prunetune.tasks.problems import check_examples
from prunetune.tasks.registry import Problem, Task, Verdict, build_judge
from prunetune.tasks.verifiers import last_box
from prunetune.tune.job import TuneJob
from prunetune.tune.methods.grpo import Grpo


def _thinks(answer: str) -> bool:
    head, opened, rest = answer.partition("<think>")
    thought, closed, said = rest.rpartition("</think>")
    return bool(opened and closed and not head.strip() and thought.strip() and said.strip())


FORMATS: dict[str, Callable[[str], bool]] = {
    "hashes": lambda answer: re.search(r"#### {0,9}[^\s#]", answer) is not None,
    "boxed": lambda answer: bool(last_box(answer)),
    "think": _thinks,
}
"""Whether an answer has a form; each in time linear in the answer."""


def form_of(answers: Sequence[str]) -> str | None:
    """The form that most of these answers have."""
    for name, fits in FORMATS.items():
        if answers and sum(map(fits, answers)) > len(answers) / 2:
            return name
    return None


@dataclass
class Reward:
    """Judges completions and keeps count.

    Attributes:
        task: Whose verifier judges; the one that evaluates.
        examples: The prompts' questions with their right answers.
        method: Weights and form.
        solved: Prompt -> how many of its answers were right, and of how many.
    """

    task: Task
    examples: Sequence[Example]
    method: Grpo
    form: str | None
    solved: dict[int, tuple[int, int]] = field(default_factory=dict)

    def rewards(self, completions: list[str], index: list[int], **more: Any) -> list[float | None]:
        """One a completion. `index` is the data set's column; `prompts` and `log_metric` are TRL's."""
        verdicts = [self.judge(i, text) for i, text in zip(index, completions, strict=True)]
        for i, verdict in zip(index, verdicts, strict=True):
            right, seen = self.solved.get(i, (0, 0))
            self.solved[i] = (right + verdict.correct, seen + 1)
        if "log_metric" in more and verdicts:
            more["log_metric"]("accuracy", sum(v.correct for v in verdicts) / len(verdicts))
        rewards = [
            self.method.accuracy_weight * v.correct + self.method.format_weight * self.in_form(v, text, prompt)
            for v, text, prompt in zip(verdicts, completions, more.get("prompts") or [""] * len(verdicts), strict=True)
        ]
        for reward, text in zip(rewards, completions, strict=True):
            if not math.isfinite(reward):
                raise NotFinite(
                    f"a reward is no number: {reward}",
                    value=text[-200:],
                    fix="look at the verifier, accuracy_weight and format_weight",
                )
        return list(rewards)

    def judge(self, index: int, text: str) -> Verdict:
        """The verifier's word on a completion; TuneError if it raises."""
        example = self.examples[index]
        problem = Problem(id=str(index), question=example.question, reference=example.answer)
        output = text[: min([at for s in self.task.stop if (at := text.find(s)) >= 0], default=len(text))]
        try:
            return self.task.verify(problem, output)
        except PrunetuneError:
            raise
        except (Exception, SystemExit) as e:
            raise TuneError(
                f"the verifier of {self.task.name} raised {type(e).__name__}: {e}",
                value=output[-200:],
                fix="mend the verifier; the run goes on from its last checkpoint",
            ) from e

    def in_form(self, verdict: Verdict, text: str, prompt: str = "") -> bool:
        """Whether a completion has the right form; a chat template may have opened `<think>` in the prompt already."""
        if self.form == "think" and prompt.rstrip().endswith("<think>"):
            text = f"<think>{text}"
        return FORMATS[self.form](text) if self.form else verdict.extracted is not None

    def check(self, sample: int = 16) -> None:
        """TuneError unless the verifier accepts the data's own answers: otherwise nothing could ever be rewarded."""
        some = range(min(sample, len(self.examples)))
        if not any(self.judge(i, self.examples[i].answer).correct for i in some):
            raise TuneError(
                f"the verifier of {self.task.name} accepts none of the data's own answers",
                value=self.examples[0].answer[-200:],
                fix="choose the task whose verifier fits the training data, such as its own evaluation task",
            )

    def notes(self) -> list[str]:
        """What the report should say about prompts without a learning signal."""
        n = len(self.solved)
        always = sum(right == seen for right, seen in self.solved.values())
        never = sum(right == 0 for right, _ in self.solved.values())
        out = [f"of {n} prompts {always} were always solved and {never} never: no learning signal there"]
        if n and never == n:
            out.append("the model never solved a single prompt: it was not recovered, and GRPO cannot do it from here")
        return out


def reward_of(task: Task, examples: Sequence[Example], method: Grpo) -> Reward:
    """The reward of a stage, checked against the data's own answers."""
    form = form_of([e.answer for e in examples]) if method.answer_format == "auto" else method.answer_format
    reward = Reward(task, examples, method, form)
    reward.check()
    return reward


def judge_of(job: TuneJob, examples: Sequence[Example] = ()) -> Task:
    """The task whose verifier gives the reward of a job, and can judge against these examples' answers.

    Raises:
        TuneError: The job names no task.
        TaskError: A verifier that cannot be used, or an answer that it cannot judge against.
    """
    if job.task is None:
        raise TuneError("grpo needs a task, whose verifier gives the reward", fix="name a task: demo, gsm8k, ...")
    task = build_judge(job.task)
    check_examples(examples, task)
    return task
