"""Evaluation: figures, samples on disk, resume, memory."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.killing import killed_after
from tests.tiny import brief_folder, tiny_model, tiny_tokenizer
from transformers import PreTrainedModel

import prunetune.evaluation.spread as module
from prunetune.cli.measuring import eval_model, eval_tasks
from prunetune.common.progress import Watch
from prunetune.errors import BadCheckpoint, MissingPath, TaskError
from prunetune.evaluation.evaluate import EvalResult, _sample, evaluate, read_samples
from prunetune.evaluation.loss import perplexity
from prunetune.models.generation import Answer
from prunetune.models.prompt import PromptFormat, prompt_ids
from prunetune.tasks.registry import Problem, Task, TaskConfig, Verdict, build_task

FMT = PromptFormat(question="{question}=")


def problems(n: int) -> tuple[Problem, ...]:
    return tuple(Problem(f"p{i}", "1+" * (i % 5) + str(i), str(i % 2)) for i in range(n))


def judge(problem: Problem, output: str) -> Verdict:
    """Right or wrong by the problem alone, so that the figures are known."""
    correct = problem.reference == "1"
    return Verdict(correct, output[:3], "" if correct else "even", {"f1": 0.5 if correct else 0.25})


def task(n: int = 10, **changes: Any) -> Task:
    values: dict[str, Any] = {
        "name": "t",
        "version": "1",
        "problems": problems(n),
        "verify": judge,
        "stop": (),
        "max_new_tokens": 6,
        **changes,
    }
    return Task(**values)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model("llama")


def test_accuracy_with_its_standard_error(model: PreTrainedModel) -> None:
    result = evaluate(model, tiny_tokenizer(), task(9, seed=3), fmt=FMT, out=None)
    assert (result.correct, result.n, result.value, result.seed) == (4, 9, 4 / 9, 3)
    assert result.stderr == pytest.approx(math.sqrt(4 / 9 * 5 / 9 / 8))
    lengths = [len(prompt_ids(tiny_tokenizer(), p.question, FMT)) for p in problems(9)]
    assert result.prompt_tokens == pytest.approx(sum(lengths) / 9)
    assert 0 < result.new_tokens <= 6
    assert result.scores["f1"] == pytest.approx((4 * 0.5 + 5 * 0.25) / 9)
    assert result.scores["f1_stderr"] == pytest.approx(0.125 * 2 * math.sqrt(4 / 9 * 5 / 9 / 8))
    assert EvalResult.from_json(json.loads(json.dumps(result.to_json()))) == result


def test_every_sample_is_on_disk_and_batch_size_does_not_matter(model: PreTrainedModel, tmp_path: Path) -> None:
    texts = []
    for size in (1, 3, None):
        out = tmp_path / f"{size}.jsonl"
        evaluate(model, tiny_tokenizer(), task(), fmt=FMT, out=out, batch_size=size)
        samples = {s.id: s for s in read_samples(out)}
        assert set(samples) == {p.id for p in problems(10)}
        assert samples["p3"].prompt == "1+1+1+3=" and samples["p3"].correct is True
        texts.append([(s.output, s.new_tokens, s.prompt_tokens) for _, s in sorted(samples.items())])
    assert texts[0] == texts[1] == texts[2]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of prompts of every call of `generate`."""
    calls: list[int] = []
    real = module.generate

    def counting(model: Any, tokenizer: Any, prompts: list[list[int]], *rest: Any) -> Any:
        calls.append(len(prompts))
        return real(model, tokenizer, prompts, *rest)

    monkeypatch.setattr(module, "generate", counting)
    return calls


def test_a_killed_evaluation_asks_only_what_is_missing(
    model: PreTrainedModel, tmp_path: Path, asked: list[int]
) -> None:
    out = tmp_path / "t.jsonl"
    whole = evaluate(model, tiny_tokenizer(), task(), fmt=FMT, out=out, batch_size=2)
    lines = out.read_text().splitlines(keepends=True)
    out.write_text("".join(lines[:5]) + lines[5][:20])  # killed inside the sixth line
    asked.clear()
    seen: list[tuple[int, int]] = []
    again = evaluate(
        model, tiny_tokenizer(), task(), fmt=FMT, out=out, batch_size=2, progress=lambda *p: seen.append(p)
    )
    assert sum(asked) == 5
    assert seen == [(5, 10), (7, 10), (9, 10), (10, 10)]
    assert len(read_samples(out)) == 10 == len({s.id for s in read_samples(out)})
    assert (again.value, again.new_tokens) == (whole.value, whole.new_tokens)
    asked.clear()
    evaluate(model, tiny_tokenizer(), task(), fmt=FMT, out=out)
    assert asked == []


def test_a_command_killed_half_way_goes_on(tmp_path: Path, asked: list[int]) -> None:
    """The command itself, ended by SIGKILL once some answers are on disk."""
    folder, out = brief_folder(tmp_path / "model"), tmp_path / "out" / "demo.jsonl"
    args = ["eval", str(folder), "--task", "demo", "--n", "12", "--batch-size", "1", "--device", "cpu",
            "--out", str(out.parent), "--json"]  # fmt: skip
    killed_after(args, out, lines=2)
    finished = read_samples(out)
    assert 2 <= len(finished) < 12
    tasks = eval_tasks(["demo"], {}, n=12)
    options: dict[str, Any] = {"batch_size": 1, "chat": False, "backend": "transformers", "device": "cpu"}
    (again,) = eval_model(str(folder), tasks, out.parent, watch=Watch(quiet=True), **options)
    assert sum(asked) == 12 - len(finished)
    assert read_samples(out)[: len(finished)] == finished and len(read_samples(out)) == 12
    (straight,) = eval_model(str(folder), tasks, None, watch=Watch(quiet=True), **options)
    assert dataclasses.replace(again, seconds=0.0) == dataclasses.replace(straight, seconds=0.0)


@pytest.mark.parametrize("change", ["key", "limit", "format", "version"])
def test_samples_of_another_setting_are_not_mixed_in(model: PreTrainedModel, tmp_path: Path, change: str) -> None:
    out = tmp_path / "t.jsonl"
    evaluate(model, tiny_tokenizer(), task(), fmt=FMT, out=out, key="model a")
    line = json.loads(out.read_text().splitlines()[0]) | {"output": "STALE"}
    out.write_text(json.dumps(line) + "\n")
    tasks = {"limit": task(max_new_tokens=5), "version": task(version="2")}
    evaluate(
        model,
        tiny_tokenizer(),
        tasks.get(change, task()),
        fmt=PromptFormat(question="{question} =") if change == "format" else FMT,
        out=out,
        key="model b" if change == "key" else "model a",
    )
    assert "STALE" not in out.read_text()


def test_more_problems_reuse_those_already_asked(model: PreTrainedModel, tmp_path: Path) -> None:
    out = tmp_path / "t.jsonl"
    evaluate(model, tiny_tokenizer(), task(4), fmt=FMT, out=out)
    before = out.read_text()
    assert evaluate(model, tiny_tokenizer(), task(10), fmt=FMT, out=out).n == 10
    assert out.read_text().startswith(before)
    assert evaluate(model, tiny_tokenizer(), task(4), fmt=FMT, out=out).n == 4


def test_the_batch_is_halved_when_memory_runs_out(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    real, sizes = module.generate, []

    def small(model: Any, tokenizer: Any, prompts: list[list[int]], *rest: Any) -> Any:
        sizes.append(len(prompts))
        if len(prompts) > 3:
            raise torch.OutOfMemoryError("too much")
        return real(model, tokenizer, prompts, *rest)

    monkeypatch.setattr(module, "generate", small)
    assert evaluate(model, tiny_tokenizer(), task(), fmt=FMT, out=None).n == 10
    assert sizes == [10, 5, 3, 3, 3, 1]

    def never(*_: Any) -> Any:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory")

    monkeypatch.setattr(module, "generate", never)
    with pytest.raises(TaskError, match="does not fit into memory"):
        evaluate(model, tiny_tokenizer(), task(), fmt=FMT, out=None)


def test_other_errors_are_not_taken_for_lack_of_memory(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(module, "generate", broken)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        evaluate(model, tiny_tokenizer(), task(), fmt=FMT, out=None)


def test_the_tasks_own_prompt_format_wins(model: PreTrainedModel, tmp_path: Path) -> None:
    own = task(prompt=PromptFormat(question="own {question}"))
    evaluate(model, tiny_tokenizer(), own, fmt=FMT, out=tmp_path / "t.jsonl")
    assert all(s.prompt.startswith("own ") for s in read_samples(tmp_path / "t.jsonl"))


def test_a_spoilt_sample_file_and_an_empty_task_are_errors(model: PreTrainedModel, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text("{bad}\n{}\n")
    with pytest.raises(BadCheckpoint, match="not valid JSON"):
        read_samples(tmp_path / "t.jsonl")
    with pytest.raises(TaskError, match="no problems"):
        evaluate(model, tiny_tokenizer(), task(0), fmt=FMT, out=None)


def test_a_perplexity_is_a_result_like_any_other(model: PreTrainedModel, tmp_path: Path) -> None:
    (tmp_path / "t.raw").write_text("The quick brown fox. " * 20)
    config = TaskConfig(name="perplexity", path=str(tmp_path / "t.raw"), options={"window": 64})
    result = evaluate(model, tiny_tokenizer(), build_task(config), fmt=FMT, out=None)
    wanted = perplexity(model, tiny_tokenizer(), "The quick brown fox. " * 20, window=64)
    assert (result.metric, result.value, result.n) == ("perplexity", wanted.perplexity, wanted.tokens)
    assert result.scores == {"bits_per_byte": wanted.bits_per_byte}
    with pytest.raises(TaskError, match="needs a text file"):
        build_task(TaskConfig(name="perplexity"))
    with pytest.raises(MissingPath):
        build_task(TaskConfig(name="perplexity", path="/nowhere.txt"))


def test_a_score_that_is_no_number_is_told_with_its_problem(model: PreTrainedModel, tmp_path: Path) -> None:
    def broken(problem: Problem, output: str) -> Verdict:
        return Verdict(True, output, "", {"f1": math.nan if problem.id == "p2" else 1.0})

    with pytest.raises(TaskError, match="score that is no number: f1 is nan") as e:
        evaluate(model, tiny_tokenizer(), task(4, verify=broken), fmt=FMT, out=tmp_path / "t.jsonl")
    assert e.value.value == "p2"


def test_every_answer_has_what_was_extracted() -> None:
    """`null` where one's own verifier says right or wrong alone: who reads the file finds the key in every line."""
    problem, answer = Problem("1", "1?", "2"), Answer("2", 1, "end")
    said = [_sample(problem, "1?", 2, answer, Verdict(True, found, ""), 0.1).to_json() for found in (None, "2")]
    assert [line["extracted"] for line in said] == [None, "2"]
