"""Evaluation tasks: problems with a verifier, from built-in entries (`TASKS`) or a user's own rows.

    task = build_task(TaskConfig(name="gsm_symbolic", n=200))
    task.verify(task.problems[0], "… #### 42").correct

    TaskConfig(name="my questions", path="rows.jsonl", verifier="number")      # no code of ours touched
    TaskConfig(name="lm-eval:gsm8k", path="$PRUNETUNE_DATA/gsm8k", n=50)       # lm-eval's own, run by `harness.py`

A task's `version` rises when its problems, prompt or verdicts would change; figures of two versions do not compare.
"""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from prunetune.data.files import Row, expand_path, hub_rows, read_rows
from prunetune.data.generators import gym_entries
from prunetune.errors import MissingPath, TaskError, UnknownName
from prunetune.models.prompt import PromptFormat
from prunetune.tasks import mbpp, squad
from prunetune.tasks.sandbox.grader import grader
from prunetune.tasks.verifiers import VERIFIERS, Verdict, Verifier, extract_answer, find_verifier

__all__ = ["TASKS", "VERIFIERS", "Problem", "Task", "TaskConfig", "Verdict", "build_task", "draw", "local_file"]

NEXT_QUESTION = ("Question:",)  # a model that goes on with a question of its own has ended its answer


class TaskConfig(BaseModel):
    """One evaluation task, as a recipe names it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """A built-in task (`TASKS`), `reasoning-gym:NAME`, `lm-eval:NAME`, or any name of your own together with `path`."""
    n: int | None = Field(default=None, gt=0)
    """How many problems: drawn by `seed`. None: all (200 of a generator). Of lm-eval: the first ones of each task."""
    seed: int = 0
    """Seed of the draw, or of the generator. Of lm-eval: 0 is its own seeds, any other stands for all of them."""
    max_new_tokens: int | None = Field(default=None, gt=0)
    """Longest answer. None: the task's own limit."""
    path: str | None = None
    """Local file (or folder, for a built-in task) with the rows; `~` and `$VARIABLES` are filled in."""
    columns: dict[str, str] | None = None
    """`question` and `answer` -> columns of the rows, where they differ from the usual ones."""
    verifier: str | None = None
    """For your own rows: `number`, `boxed`, `exact`, or `file.py:function` (with `allow_custom_code`)."""
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
class Problem:
    """One question.

    Attributes:
        id: Stable name; results of two models are paired by it.
        question: As it goes into the prompt.
        reference: The right answer, in the form that the verifier reads.
        extra: What the verifier needs beyond the reference.
    """

    id: str
    question: str
    reference: str
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)


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

    def first(self, n: int | None) -> Task:
        """The same task on its first `n` problems. A perplexity is always measured whole."""
        if n is None:
            return self
        if self.harness is None:
            return dataclasses.replace(self, problems=self.problems[:n])
        fewer = dataclasses.replace(self.harness, limit=min(n, self.harness.limit or n))
        return dataclasses.replace(self, harness=fewer)


def build_task(config: TaskConfig) -> Task:
    """The task with its problems, read or generated.

    Raises:
        UnknownName: neither a built-in task nor rows of your own.
        TaskError: settings that this task cannot use, or fewer problems than asked for.
    """
    check_task(config)
    return TASKS.get(config.name.partition(":")[0], _rows)(config)


def check_task(config: TaskConfig) -> None:
    """Raise UnknownName for a task that is neither built in nor rows of your own. Reads nothing."""
    kind, _, variant = config.name.partition(":")
    if kind in TASKS and (kind in VARIED) == bool(variant):
        return
    if config.path is None or kind in VARIED:
        raise UnknownName("task", config.name, [f"{n}:NAME" if n in VARIED else n for n in TASKS])


def has_verifier(config: TaskConfig) -> bool:
    """Whether answers of a task can be judged one by one, as a reward needs it. Reads nothing."""
    return config.name.partition(":")[0] not in ("lm-eval", "perplexity")


def _gsm8k(config: TaskConfig) -> Task:
    rows = _read(config, "test.jsonl", ("openai/gsm8k", "main"), {"question": "question", "answer": "answer"})
    return _task(config, "1", _problems("gsm8k", rows, config), _plain("number"), max_new_tokens=400)


def _math(config: TaskConfig) -> Task:
    columns = {"question": "problem", "answer": "answer"}
    rows = _read(config, "test.jsonl", ("HuggingFaceH4/MATH-500", None), columns)
    return _task(config, "1", _problems("math", rows, config), _plain("boxed"), max_new_tokens=1024)


def _rows(config: TaskConfig) -> Task:
    if config.path is None or config.verifier is None:
        raise TaskError(
            "your own rows need `path` and `verifier`",
            value=config.name,
            valid="number, boxed, exact, file.py:function",
            fix="add `path: rows.jsonl` and `verifier: number`",
        )
    rows = read_rows(expand_path(config.path), config.columns or {"question": "question", "answer": "answer"})
    verify = find_verifier(config.verifier, config.allow_custom_code)
    return _task(config, "1", _problems(config.name, rows, config), _adapt(verify), max_new_tokens=512)


def _gsm_symbolic(config: TaskConfig) -> Task:
    entries = gym_entries("gsm_symbolic", config.n or 200, config.seed, "test", config.options)
    problems = tuple(_generated(str(e["question"]), str(e["answer"])) for e in entries)
    return _task(config, "1", problems, _plain("number"), max_new_tokens=400)


def _demo(config: TaskConfig) -> Task:
    from prunetune.data.demo.problems import problems

    drawn = tuple(_generated(q, a) for q, a in problems(config.n or 200, config.seed, "test"))
    return _task(config, "1", drawn, _plain("number"), max_new_tokens=64)


def _gym(config: TaskConfig) -> Task:
    name = config.name.partition(":")[2]
    if name in EXECUTING and not config.allow_code_execution:
        raise TaskError(
            "this task's scorer evaluates the model's answer as Python code, which runs only if you allow it",
            value=config.name,
            fix="allow_code_execution: true (--allow-code-execution), or choose another task",
        )
    entries = gym_entries(name, config.n or 200, config.seed, "test", config.options)
    problems = tuple(_generated(str(e["question"]), str(e["answer"]), e["drawn"]) for e in entries)

    def verify(problem: Problem, output: str) -> Verdict:
        answer = extract_answer(output)
        job = {**problem.extra, "question": problem.question, "answer": answer}
        reply = grader("gym-code" if name in EXECUTING else "gym").ask(job)
        if "error" in reply:
            return Verdict(False, answer, f"not graded: {reply['error']}")
        correct = reply["score"] >= 1.0
        return Verdict(correct, answer, "" if correct else f"score {reply['score']:g}", {"score": reply["score"]})

    return _task(config, "1", problems, verify, max_new_tokens=512)


def _mbpp(config: TaskConfig) -> Task:
    if not config.allow_code_execution:
        raise TaskError(
            "this task runs what the model wrote, which happens only if you allow it",
            value=config.name,
            fix="allow_code_execution: true (--allow-code-execution)",
        )
    names = ("task_id", "text", "code", "test_list", "test_setup_code")
    columns = {name: name for name in names}
    if config.path is None:
        where = ("google-research-datasets/mbpp", "full")
        rows = [row for split in ("prompt", "test") for row in hub_rows(*where, split, columns=columns, limit=None)]
    else:
        path = local_file(config.path, "mbpp.jsonl")
        if path.name.startswith("sanitized"):
            columns = {name: name for name in ("task_id", "prompt", "code", "test_list", "test_imports")}
        rows = read_rows(path, columns)
    template = PromptFormat(question=mbpp.prompt(rows, int(config.options.get("shots", 3))), answer="{answer}")
    tests = mbpp.test_rows(rows)
    problems = draw([Problem(f"mbpp/{r['task_id']}", mbpp.question(r), mbpp.reference(r)) for r in tests], config)

    def verify(problem: Problem, output: str) -> Verdict:
        return mbpp.verify(output, problem.reference, allowed=config.allow_code_execution)

    config = config.model_copy(update={"prompt": config.prompt or template})
    return _task(config, "2", problems, verify, max_new_tokens=512, stop=mbpp.STOP)


def _squad(config: TaskConfig) -> Task:
    if config.path is None:
        names = ("id", "context", "question", "answers")
        rows = hub_rows("rajpurkar/squad", None, "validation", columns={n: n for n in names}, limit=None)
        found = squad.from_rows(rows)
    else:
        path = expand_path(config.path)
        inside = sorted(path.glob("*.json")) if path.is_dir() else []
        found = squad.read(inside[0] if len(inside) == 1 else path)
    problems = draw([Problem(f"squad/{i}", q, a) for i, q, a in found], config)
    template = PromptFormat(question=squad.PROMPT)
    config = config.model_copy(update={"prompt": config.prompt or template})
    return _task(config, "1", problems, _adapt(squad.verify), max_new_tokens=32, stop=squad.STOP, metric="exact_match")


def _perplexity(config: TaskConfig) -> Task:
    if config.path is None:
        raise TaskError("perplexity needs a text file", value=config.name, fix="path: $PRUNETUNE_DATA/…/wiki.test.raw")
    path = expand_path(config.path)
    if not path.is_file():
        raise MissingPath("no such text file", value=str(path), fix="check `path` of the task")
    task = _task(config, "1", (), _plain("exact"), max_new_tokens=1, metric="perplexity")
    window = int(config.options.get("window", 1024))
    return dataclasses.replace(task, text=path.read_text(encoding="utf-8"), window=window, windows=config.n)


def _harness(config: TaskConfig) -> Task:
    from prunetune.tasks.lm_eval import check_tasks

    name = config.name.partition(":")[2]
    unused = [k for k in ("columns", "verifier", "stop", "max_new_tokens") if getattr(config, k) is not None]
    unused += [f"options.{k}" for k in config.options if k != "shots"]
    if unused:
        raise TaskError(
            f"lm-eval's {name} has its own data, prompts and verdicts, so this setting has no effect",
            value=unused[0],
            valid="n, seed, path, prompt, allow_code_execution, options.shots",
        )
    version = check_tasks([name], {name: config.path} if config.path else {}, config.allow_code_execution)
    shots = config.options.get("shots")
    task = _task(config, f"lm-eval {version}", (), _plain("exact"), max_new_tokens=1)
    job = Harness(name, config.path, config.n, shots, config.seed or None, config.allow_code_execution)
    return dataclasses.replace(task, harness=job)


TASKS: dict[str, Callable[[TaskConfig], Task]] = {
    "demo": _demo,
    "gsm8k": _gsm8k,
    "gsm_symbolic": _gsm_symbolic,
    "lm-eval": _harness,
    "math": _math,
    "mbpp": _mbpp,
    "perplexity": _perplexity,
    "reasoning-gym": _gym,
    "rows": _rows,
    "squad": _squad,
}

VARIED = ("lm-eval", "reasoning-gym")  # these need a name behind the colon

# reasoning-gym scorers that pass the model's answer to `eval` or to sympy's parser, which evaluates it.
EXECUTING = frozenset({
    "binary_matrix", "countdown", "intermediate_integration", "n_queens", "polynomial_multiplication", "puzzle24",
    "simple_integration", "spiral_matrix", "string_insertion",
})  # fmt: skip


# -------------------------------------------------------------------------------------------------------- shared parts


def _task(
    config: TaskConfig,
    version: str,
    problems: tuple[Problem, ...],
    verify: Callable[[Problem, str], Verdict],
    *,
    max_new_tokens: int,
    stop: tuple[str, ...] = NEXT_QUESTION,
    metric: str = "accuracy",
) -> Task:
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


def _read(config: TaskConfig, file: str, hub: tuple[str, str | None], columns: dict[str, str]) -> list[Row]:
    columns = config.columns or columns
    if config.path is None:
        return hub_rows(*hub, "test", columns=columns, limit=None)
    return read_rows(local_file(config.path, file), columns)


def local_file(path: str, file: str) -> Path:
    """The rows of a built-in task: the file itself, or `file` in a folder."""
    found = expand_path(path)
    if found.is_dir():
        found /= file
    if not found.is_file():
        raise MissingPath("no such data file", value=str(found), fix="check `path` of the task")
    return found


def _problems(prefix: str, rows: list[Row], config: TaskConfig) -> tuple[Problem, ...]:
    all_of_them = [Problem(f"{prefix}/{i}", str(r["question"]), str(r["answer"])) for i, r in enumerate(rows)]
    return draw(all_of_them, config)


def draw(problems: list[Problem], config: TaskConfig) -> tuple[Problem, ...]:
    """`n` of the problems, chosen by the seed, in their own order. All of them without `n`."""
    if config.n is None:
        return tuple(problems)
    if config.n > len(problems):
        raise TaskError(f"{config.name} has {len(problems)} problems", value=config.n, fix="ask for at most so many")
    chosen = random.Random(config.seed).sample(range(len(problems)), config.n)
    return tuple(problems[i] for i in sorted(chosen))


def _generated(question: str, reference: str, extra: Mapping[str, Any] | None = None) -> Problem:
    name = hashlib.sha256(question.encode()).hexdigest()[:12]
    return Problem(name, question, reference, extra or {})


def _plain(verifier: str) -> Callable[[Problem, str], Verdict]:
    return _adapt(find_verifier(verifier, allow_custom_code=False))


def _adapt(verify: Verifier) -> Callable[[Problem, str], Verdict]:
    return lambda problem, output: verify(output, problem.reference)
