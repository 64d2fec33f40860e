"""Two processes that share the questions give the answers, verdicts, files and losses of one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.in_processes import in_processes
from tests.tiny import tiny_model, tiny_tokenizer

from prunetune.common.device import Processes
from prunetune.evaluation import spread
from prunetune.evaluation.evaluate import evaluate
from prunetune.evaluation.loss import losses_of
from prunetune.evaluation.spread import Limits, Scored, answered
from prunetune.models.generation import Answer
from prunetune.models.prompt import PromptFormat
from prunetune.tasks.registry import Problem, Task
from prunetune.tasks.verifiers import Verdict

LIMITS = Limits(12, ())


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model("llama")


def prompts(count: int) -> list[list[int]]:
    made = torch.Generator().manual_seed(3)
    return [torch.randint(3, 100, (20 - i,), generator=made).tolist() for i in range(count)]


@pytest.mark.parametrize("count", [2, 5])
def test_answers_come_in_the_batches_and_the_order_of_one_process(count: int, model: Any) -> None:
    one = list(answered(model, tiny_tokenizer(), prompts(11), LIMITS, 3))
    for each in in_processes(count, lambda p: list(answered(model, tiny_tokenizer(), prompts(11), LIMITS, 3, p))):
        assert each == one


def test_where_memory_runs_out_in_one_process_its_batches_alone_are_halved(model: Any, monkeypatch: Any) -> None:
    one = list(answered(model, tiny_tokenizer(), prompts(8), LIMITS, 4))
    real = spread.generate

    def work(processes: Processes) -> list[list[Answer]]:
        def small(model: Any, tokenizer: Any, rows: Sequence[list[int]], *rest: Any) -> list[Answer]:
            if processes.rank == 1 and len(rows) > 3:
                raise torch.OutOfMemoryError("too much")
            return real(model, tokenizer, rows, *rest)

        monkeypatch.setattr(spread, "generate", small)
        return list(answered(model, tiny_tokenizer(), prompts(8), LIMITS, 4, processes))

    assert in_processes(2, work) == [one, one]


def test_losses_are_those_of_one_process_bit_for_bit(model: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("prunetune.evaluation.loss.LOGIT_ELEMENTS", 104 * 40)  # a few rows at once
    rows: list[Scored] = [(p, [(3, len(p))]) for p in prompts(9)]
    one = losses_of(model, rows, "x")
    assert in_processes(2, lambda p: losses_of(model, rows, "x", p)) == [one, one]


class Elsewhere:
    """Two processes, asked one call at a time."""

    def __init__(self, model: Any) -> None:
        self.folder, self.config, self.model = Path(), model.config, model

    def answers(self, tokenizer: Any, asked: Sequence[list[int]], limits: Limits, size: Any) -> Iterator[list[Answer]]:
        yield from in_processes(2, lambda p: list(answered(self.model, tokenizer, asked, limits, size, p)))[0]

    def losses(self, rows: Sequence[Scored]) -> list[tuple[float, int]]:
        return in_processes(2, lambda p: losses_of(self.model, rows, "x", p))[0]

    def alone(self) -> Any:
        return self.model


def task() -> Task:
    problems = tuple(Problem(str(i), "abcdefgh"[: i % 7 + 1] * 2, str(i)) for i in range(10))
    verify = lambda p, text: Verdict(len(text) % 2 == int(p.id) % 2, text[:3], "")  # noqa: E731
    return Task(name="t", version="1", problems=problems, verify=verify, stop=(), max_new_tokens=9)


def test_a_task_has_the_verdicts_and_the_file_of_one_process(model: Any, tmp_path: Path) -> None:
    ways: dict[str, Any] = {"fmt": PromptFormat(), "batch_size": 3}
    one = evaluate(model, tiny_tokenizer(), task(), out=tmp_path / "one" / "t.jsonl", **ways)
    two = evaluate(Elsewhere(model), tiny_tokenizer(), task(), out=tmp_path / "two" / "t.jsonl", **ways)
    assert 0 < one.correct < one.n
    assert {**two.to_json(), "seconds": 0} == {**one.to_json(), "seconds": 0}
    first, second = (
        [{**json.loads(x), "seconds": 0} for x in (tmp_path / name / "t.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    assert first == second
