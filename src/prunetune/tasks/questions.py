"""Tasks of plain questions, each with one right answer: from a file, the hub or a generator, under a named verifier."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass

from prunetune.data.files import hub_rows
from prunetune.errors import TaskError
from prunetune.tasks.own import find_verifier, fingerprint
from prunetune.tasks.patience import patient
from prunetune.tasks.problems import Problem, check_reference, draw, place_of, problems_of, rows_of
from prunetune.tasks.task import Task, TaskConfig, adapted, make_task
from prunetune.tasks.verifiers import VERIFIERS, is_worked, reference_number, refusal


@dataclass(frozen=True)
class Judge:
    """How a task of plain questions is judged: by which verifier, on how long an answer."""

    verifier: str
    max_new_tokens: int


JUDGES: dict[str, Judge] = {
    "demo": Judge("number", 64),
    "gsm8k": Judge("number", 400),
    "gsm_symbolic": Judge("number", 400),
    "math": Judge("boxed", 1024),
}
"""Tasks that can judge answers to other questions than their own."""


def asked(config: TaskConfig, file: str, hub: tuple[str, str | None]) -> Task:
    """A task of rows with question and answer, from a file or the hub, each reference fit for its verifier."""
    judge = judged(config, ())
    if config.path is None:
        where, rows = f"{hub[0]}, test", list(hub_rows(*hub, "test", columns=None, limit=None))
    else:
        where, rows = rows_of(config.path, file)
    found = problems_of(config.name, rows, config.columns, where)
    drawn = draw(found, config.n, config.seed, config.name)
    for problem in drawn if judge.slow else found:  # of a slow verifier only what is asked
        place = place_of(where, int(problem.id.rpartition("/")[2]))
        check_reference(problem.reference, judge.refuses, place)
    if config.verifier:  # a verifier of one's own is tried once before any work
        judge.verify(drawn[0], drawn[0].reference)
    return dataclasses.replace(judge, problems=drawn, note=_note(config, drawn, len(found)))


def _note(config: TaskConfig, drawn: Sequence[Problem], rows: int) -> str:
    """How many of the rows are asked, and who judges them; where references have no mark, what is taken of them."""
    if config.verifier is None and config.path is None:
        return ""
    name = _verifier_of(config)
    said = f"{config.name}: {len(drawn):,} of {rows:,} rows are asked, judged by {name}"
    worked = next((p.reference for p in drawn if name == "number" and is_worked(p.reference)), None)
    if worked is None:
        return said
    taken = f"{reference_number(worked)} of {worked.split(chr(10))[-1].strip()!r}"
    return f"{said}; a row's answer without #### counts by the number behind its last = ({taken})"


def judged(config: TaskConfig, problems: tuple[Problem, ...]) -> Task:
    """A task with the verifier that its name or its config says."""
    judge = JUDGES.get(config.name, Judge("", 512))
    name = _verifier_of(config)
    verify = find_verifier(name, config.allow_custom_code)
    version = "2" if config.verifier is None else f"2 {fingerprint(config.verifier)}"
    judging = adapted(verify)
    if name not in VERIFIERS:
        judging = patient(judging, name, config.name)
    task = make_task(config, version, problems, judging, max_new_tokens=judge.max_new_tokens)
    return dataclasses.replace(task, refuses=functools.partial(refusal, name), slow=name == "boxed")


def _verifier_of(config: TaskConfig) -> str:
    if config.verifier is None and config.name not in JUDGES:
        raise own_rows_need(config)
    return config.verifier or JUDGES[config.name].verifier


def own_rows_need(config: TaskConfig) -> TaskError:
    """The error for rows of your own without a file or a verifier."""
    return TaskError(
        "your own rows need `path` and `verifier`",
        value=config.name,
        valid="number, boxed, exact, file.py:function",
        fix="add `path: rows.jsonl` and `verifier: number` (--task NAME=rows.jsonl --verifier number)",
    )
