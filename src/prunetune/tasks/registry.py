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
from collections.abc import Callable, Mapping
from typing import Any

from prunetune.common.plugins import joined, names
from prunetune.data.decode import read_text
from prunetune.data.files import expand_path, hub_rows, read_rows
from prunetune.data.generators import gym_entries
from prunetune.errors import MissingPath, TaskError, UnknownName
from prunetune.models.prompt import PromptFormat
from prunetune.tasks import mbpp, squad
from prunetune.tasks.patience import patient
from prunetune.tasks.problems import Problem, draw, local_file
from prunetune.tasks.questions import JUDGES, asked, judged, own_rows_need
from prunetune.tasks.sandbox import gym
from prunetune.tasks.sandbox.grader import grader
from prunetune.tasks.task import Harness, Task, TaskConfig, adapted, make_task
from prunetune.tasks.verifiers import VERIFIERS, Verdict, extract_answer, verify_exact

__all__ = [
    "JUDGES", "TASKS", "VERIFIERS", "Harness", "Problem", "Task", "TaskConfig", "Verdict", "build_judge", "build_task",
]  # fmt: skip


def build_task(config: TaskConfig) -> Task:
    """The task with its problems, read or generated, and each of them fit to be judged.

    Raises:
        UnknownName: neither a built-in task nor rows of your own.
        DataError: a question or a reference that is no text.
        MissingPath: its file, or its verifier's, is not there.
        TaskError: settings that this task cannot use, fewer problems than asked for, or a reference that its verifier
            cannot read.
    """
    check_task(config)
    kind = config.name.partition(":")[0]
    if config.verifier is not None and kind in TASKS and kind not in {*JUDGES, "rows", "lm-eval"}:
        raise TaskError(
            f"{config.name} has a verifier of its own", value=config.verifier, valid=[*JUDGES, "your own rows"]
        )
    try:
        task = joined("task", TASKS).get(kind, _rows)(config)
        foreign = kind not in TASKS and kind in names("task")
        return dataclasses.replace(task, verify=patient(task.verify, kind, config.name)) if foreign else task
    except MissingPath as e:
        raise MissingPath(f"{e.what}, for the task {config.name}", value=e.value, valid=e.valid, fix=e.fix) from None


def build_judge(config: TaskConfig) -> Task:
    """The verifier of a task with its limits, without its problems: for answers to other questions, as a reward or
    one's own traces need it. Reads no data, except of a task whose verifier goes with its problems.

    Raises:
        As `build_task`.
    """
    kind = config.name.partition(":")[0]
    if kind not in JUDGES and (kind in TASKS and kind != "rows"):
        return build_task(config if config.n else config.model_copy(update={"n": 1}))
    if kind not in JUDGES and config.verifier is None:
        check_task(config)
    return judged(config, ())


def check_task(config: TaskConfig) -> None:
    """Raise UnknownName for a task that is neither built in nor rows of your own. Reads nothing."""
    kind, _, variant = config.name.partition(":")
    known = [*TASKS, *names("task")]
    if kind in known and (kind in VARIED) == bool(variant):
        return
    if config.path is None or kind in VARIED:
        raise UnknownName("task", config.name, [f"{n}:NAME" if n in VARIED else n for n in known])


def has_verifier(config: TaskConfig) -> bool:
    """Whether answers of a task can be judged one by one, as a reward needs it. Reads nothing."""
    return config.name.partition(":")[0] not in ("lm-eval", "perplexity")


def _gsm8k(config: TaskConfig) -> Task:
    return asked(config, "test.jsonl", ("openai/gsm8k", "main"))


def _math(config: TaskConfig) -> Task:
    return asked(config, "test.jsonl", ("HuggingFaceH4/MATH-500", None))


def _rows(config: TaskConfig) -> Task:
    if config.path is None:
        raise own_rows_need(config)
    return asked(config, "test.jsonl", ("", None))


def _gsm_symbolic(config: TaskConfig) -> Task:
    entries = gym_entries("gsm_symbolic", config.n or 200, config.seed, "test", config.options)
    return judged(config, tuple(_generated(str(e["question"]), str(e["answer"])) for e in entries))


def _demo(config: TaskConfig) -> Task:
    from prunetune.data.demo.problems import problems

    return judged(config, tuple(_generated(q, a) for q, a in problems(config.n or 200, config.seed, "test")))


def _gym(config: TaskConfig) -> Task:
    name = config.name.partition(":")[2]
    if name in EXECUTING and not config.allow_code_execution:
        raise TaskError(
            "this task's scorer evaluates the model's answer as Python code, which runs only if you allow it",
            value=config.name,
            fix="allow_code_execution: true (--allow-code-execution), or choose another task",
        )
    entries = gym_entries(name, config.n or 200, config.seed, "test", config.options)
    extras = [{**e["drawn"], "entry": gym.plain_entry(e)} for e in entries]
    problems = tuple(_generated(str(e["question"]), str(e["answer"]), x) for e, x in zip(entries, extras, strict=True))

    def verify(problem: Problem, output: str) -> Verdict:
        answer = extract_answer(output)
        job = {**problem.extra, "question": problem.question, "answer": answer}
        reply = grader("gym-code" if name in EXECUTING else "gym").ask(job)
        if "error" in reply:
            return Verdict(False, answer, f"not graded: {reply['error']}")
        correct = reply["score"] >= 1.0
        return Verdict(correct, answer, "" if correct else f"score {reply['score']:g}", {"score": reply["score"]})

    version = (
        "2" if name in EXECUTING or name in gym.CHECKS else "1"
    )  # 2: wrong answers that its scorer takes are wrong
    return make_task(config, version, problems, verify, max_new_tokens=512)


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
    found = [Problem(f"mbpp/{r['task_id']}", mbpp.question(r), mbpp.reference(r)) for r in tests]
    problems = draw(found, config.n, config.seed, config.name)

    def verify(problem: Problem, output: str) -> Verdict:
        return mbpp.verify(output, problem.reference, allowed=config.allow_code_execution)

    config = config.model_copy(update={"prompt": config.prompt or template})
    return make_task(config, "3", problems, verify, max_new_tokens=512, stop=mbpp.STOP)


def _squad(config: TaskConfig) -> Task:
    if config.path is None:
        names = ("id", "context", "question", "answers")
        rows = hub_rows("rajpurkar/squad", None, "validation", columns={n: n for n in names}, limit=None)
        found = squad.from_rows(rows)
    else:
        path = expand_path(config.path)
        inside = sorted(path.glob("*.json")) if path.is_dir() else []
        found = squad.read(inside[0] if len(inside) == 1 else path)
    problems = draw([Problem(f"squad/{i}", q, a) for i, q, a in found], config.n, config.seed, config.name)
    template = PromptFormat(question=squad.PROMPT)
    config = config.model_copy(update={"prompt": config.prompt or template})
    return make_task(
        config, "1", problems, adapted(squad.verify), max_new_tokens=32, stop=squad.STOP, metric="exact_match"
    )


def _perplexity(config: TaskConfig) -> Task:
    if config.path is None:
        raise TaskError("perplexity needs a text file", value=config.name, fix="path: $PRUNETUNE_DATA/…/wiki.test.raw")
    path = expand_path(config.path)
    if not path.is_file():
        raise MissingPath("no such text file", value=str(path), fix="check `path` of the task")
    task = make_task(config, "1", (), adapted(verify_exact), max_new_tokens=1, metric="perplexity")
    window = int(config.options.get("window", 1024))
    return dataclasses.replace(task, text=read_text(path), window=window, windows=config.n)


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
    task = make_task(config, f"lm-eval {version}", (), adapted(verify_exact), max_new_tokens=1)
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

# reasoning-gym scorers that would pass the answer to `eval` or to sympy's parser, which evaluates it.
EXECUTING = frozenset(gym.FORMS)


# -------------------------------------------------------------------------------------------------------- shared parts


def _generated(question: str, reference: str, extra: Mapping[str, Any] | None = None) -> Problem:
    name = hashlib.sha256(question.encode()).hexdigest()[:12]
    return Problem(name, question, reference, extra or {})
