"""What a task is: how a recipe names it, and the value that evaluation, reward and traces use."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from prunetune.data.sources import Seed
from prunetune.models.prompt import PromptFormat
from prunetune.tasks.problems import Problem, Refuses
from prunetune.tasks.verifiers import Verdict, Verifier

NEXT_QUESTION = ("Question:",)  # a model that goes on with a question of its own has ended its answer


class TaskConfig(BaseModel):
    """One evaluation task, as a recipe names it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    name: str
    """A built-in task (`TASKS`), `reasoning-gym:NAME`, `lm-eval:NAME`, or any name of your own together with `path`."""
    n: int | None = Field(default=None, gt=0)
    """How many problems: drawn by `seed`. None: all (200 of a generator). Of lm-eval: the first ones of each task."""
    seed: Seed = 0
    """Seed of the draw, or of the generator. Of lm-eval: 0 is its own seeds, any other stands for all of them."""
    max_new_tokens: int | None = Field(default=None, gt=0)
    """Longest answer. None: the task's own limit."""
    path: str | None = None
    """Local file (or folder, for a built-in task) with the rows; `~` and `$VARIABLES` are filled in."""
    columns: dict[str, str] | None = None
    """`question` and `answer` -> columns of the rows, where they differ from the usual ones."""
    verifier: str | None = None
    """For your own rows: `number`, `boxed`, `exact`, or `file.py:function` (with `allow_custom_code`), which is
    `def function(output: str, reference: str) -> bool`. For demo, gsm8k, gsm_symbolic, math: another than its own."""
    allow_custom_code: bool = False
    """Run the verifier's file."""
    allow_code_execution: bool = False
    """Let a verifier execute what the model wrote (mbpp, some reasoning-gym scorers)."""
    stop: list[str] | None = None
    """Texts that end an answer. None: the task's own."""
    prompt: PromptFormat | None = None
    """Another prompt format than the recipe's."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of the task or of its generator; `shots` of mbpp and lm-eval's tasks."""


@dataclass(frozen=True)
class Harness:
    """One of lm-eval's tasks or groups, and how it is to be asked.

    Attributes:
        name: What lm-eval calls it.
        path: Local data in the source's format. None: from the hub.
        limit: First questions of each task only.
        shots: Worked examples. None: the task's own number.
        seed: None: lm-eval's own.
        allow_code_execution: Run what the model wrote, in the sandbox.
    """

    name: str
    path: str | None = None
    limit: int | None = None
    shots: int | None = None
    seed: int | None = None
    allow_code_execution: bool = False


@dataclass(frozen=True)
class Task:
    """Problems and how they are judged.

    Attributes:
        version: Rises when figures no longer compare.
        verify: (problem, output) -> Verdict.
        stop: Texts that end an answer.
        prompt: This task's own prompt format, if it has one.
        metric: What the share of correct answers is called.
        text: For a perplexity: the text to predict, instead of problems.
        window: Tokens in one window of it.
        windows: Windows to use. None: all.
        harness: For a task of lm-eval's, which has problems and a verifier of its own.
        refuses: Why its verifier cannot judge against a reference.
        slow: Whether that takes long to tell (about a millisecond).
        note: Who judges rows of one's own, and what of a reference is compared; "" for built-in tasks.
    """

    name: str
    version: str
    problems: tuple[Problem, ...] = field(repr=False)
    verify: Callable[[Problem, str], Verdict] = field(repr=False)
    stop: tuple[str, ...]
    max_new_tokens: int
    seed: int = 0
    prompt: PromptFormat | None = None
    metric: str = "accuracy"
    text: str | None = field(default=None, repr=False)
    window: int = 1024
    windows: int | None = None
    harness: Harness | None = None
    refuses: Refuses = field(default=lambda reference: None, repr=False)
    slow: bool = False
    note: str = ""

    def first(self, n: int | None) -> Task:
        """The same task on its first `n` problems. A perplexity is always measured whole."""
        if n is None:
            return self
        if self.harness is None:
            return dataclasses.replace(self, problems=self.problems[:n])
        fewer = dataclasses.replace(self.harness, limit=min(n, self.harness.limit or n))
        return dataclasses.replace(self, harness=fewer)


def make_task(
    config: TaskConfig,
    version: str,
    problems: tuple[Problem, ...],
    verify: Callable[[Problem, str], Verdict],
    *,
    max_new_tokens: int,
    stop: tuple[str, ...] = NEXT_QUESTION,
    metric: str = "accuracy",
) -> Task:
    """A task whose config may name its own stop texts, limit and prompt."""
    return Task(
        name=config.name,
        version=version,
        problems=problems,
        verify=verify,
        stop=stop if config.stop is None else tuple(config.stop),
        max_new_tokens=config.max_new_tokens or max_new_tokens,
        seed=config.seed,
        prompt=config.prompt,
        metric=metric,
    )


def adapted(verify: Verifier) -> Callable[[Problem, str], Verdict]:
    """A verifier of texts as a task's."""
    return lambda problem, output: verify(output, problem.reference)
