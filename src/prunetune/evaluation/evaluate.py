"""Accuracy of a model on a task: greedy answers, verdicts, and every sample on disk as it is finished.

    result = evaluate(model, tokenizer, task, fmt=PromptFormat(), out=stage / "eval" / "gsm8k.jsonl")

`out` holds one JSON line a question, appended batch by batch; a killed evaluation goes on where it was.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunetune.common.device import free_device_memory
from prunetune.common.memory import is_memory
from prunetune.common.stats import mean_stderr, stderr
from prunetune.errors import TaskError
from prunetune.evaluation.loss import perplexity
from prunetune.evaluation.samples import append_samples, open_samples, read_samples, seal_samples
from prunetune.models.generation import Answer, generate
from prunetune.models.prompt import PromptFormat, prompt_ids, prompt_text
from prunetune.tasks.registry import Problem, Task

__all__ = ["EvalResult", "evaluate", "guess_batch", "read_samples", "summarise"]

Progress = Callable[[int, int], None]
LARGEST_BATCH = {"cpu": 64, "cuda": 512, "mps": 64}


@dataclass(frozen=True)
class EvalResult:
    """One task's figure.

    Attributes:
        value: Share of correct answers (or the perplexity, where `metric` says so).
        stderr: Standard error of that share (`common.stats.stderr`); zero where all or none are right: see `wilson`.
        n: Questions (tokens, of a perplexity).
        seed: Seed of the choice of questions.
        prompt_tokens: Mean prompt length.
        new_tokens: Mean answer length, end token included.
        seconds: Time spent generating and verifying.
        correct: Questions answered correctly.
        truncated: Answers cut by the length limit.
        scores: Means of further scores, such as `f1`, each with `…_stderr`.
        shots: Worked examples in each prompt (lm-eval's tasks).
        limit: Only the first so many questions of each of lm-eval's tasks were asked. None: all.
    """

    task: str
    version: str
    metric: str
    value: float
    stderr: float
    n: int
    seed: int
    prompt_tokens: float
    new_tokens: float
    seconds: float
    correct: int
    truncated: int = 0
    scores: dict[str, float] = field(default_factory=dict)
    shots: int = 0
    limit: int | None = None

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> EvalResult:
        """From `to_json`'s value."""
        return cls(**value)


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    *,
    fmt: PromptFormat,
    out: Path | None,
    batch_size: int | None = None,
    progress: Progress | None = None,
    key: object = None,
) -> EvalResult:
    """Measure a model on a task.

    Args:
        model: In any dtype, on any device.
        tokenizer: Its tokenizer.
        task: Problems and verifier.
        fmt: Prompt format, unless the task has its own.
        out: JSONL of all samples. Finished questions in it are not asked again, if it was made with the same task,
            prompt format, limits and `key`; otherwise it is made anew. (lm-eval's tasks name the file themselves.)
        batch_size: None: as large as fits; halved whenever memory runs out.
        progress: Called with (questions done, questions in all).
        key: Whatever else decides the answers, such as the hash of the model.
    """
    fmt = task.prompt or fmt
    if task.text is not None:
        return _evaluate_text(model, tokenizer, task)
    if task.harness is not None:
        from prunetune.evaluation import lm_eval as harness

        loaded, folder = harness.Loaded(model, tokenizer, key), out.parent if out else None
        chat = fmt.template == "chat"
        return harness.evaluate_task(loaded, task, chat=chat, out=folder, batch_size=batch_size, progress=progress)
    if not task.problems:
        raise TaskError("this task has no problems", value=task.name, fix="ask for at least one")
    settings = [task.name, task.version, task.stop, task.max_new_tokens, fmt.model_dump(), key]
    records = open_samples(out, settings) if out else {}
    wanted = {p.id for p in task.problems}
    records = {i: r for i, r in records.items() if i in wanted}
    todo = [(p, prompt_ids(tokenizer, p.question, fmt)) for p in task.problems if p.id not in records]
    todo.sort(key=lambda pair: -len(pair[1]))  # longest first: too large a batch shows at once
    size = batch_size or guess_batch(model, max((len(i) for _, i in todo), default=1) + task.max_new_tokens)
    if progress:
        progress(len(records), len(task.problems))
    while todo:
        batch = todo[:size]
        start = time.perf_counter()
        answers = _try_generate(model, tokenizer, [ids for _, ids in batch], task)
        if answers is None:
            if len(batch) == 1:
                raise TaskError(
                    "one question does not fit into memory", value=len(batch[0][1]), fix="use a larger device"
                )
            size = math.ceil(len(batch) / 2)
            continue
        new = [_record(task, p, len(ids), a) for (p, ids), a in zip(batch, answers, strict=True)]
        share = (time.perf_counter() - start) / len(batch)
        for record, (problem, _) in zip(new, batch, strict=True):
            record["prompt"] = prompt_text(tokenizer, problem.question, fmt)
            record["seconds"] = share
            records[problem.id] = record
        if out:
            append_samples(out, new)
        todo = todo[len(batch) :]
        if progress:
            progress(len(records), len(task.problems))
    if out:
        seal_samples(out)
    return summarise(task, [records[p.id] for p in task.problems])


def summarise(task: Task, records: Sequence[dict[str, Any]]) -> EvalResult:
    """The figure of a task from its samples' records."""
    n = len(records)
    correct = sum(r["correct"] for r in records)
    share = correct / n
    scores: dict[str, float] = {}
    for name in sorted({name for r in records for name in r["scores"]}):
        values = [float(r["scores"].get(name, 0.0)) for r in records]
        scores[name] = sum(values) / n
        scores[f"{name}_stderr"] = mean_stderr(values)
    return EvalResult(
        task=task.name,
        version=task.version,
        metric=task.metric,
        value=share,
        stderr=stderr(correct, n),
        n=n,
        seed=task.seed,
        prompt_tokens=sum(r["prompt_tokens"] for r in records) / n,
        new_tokens=sum(r["new_tokens"] for r in records) / n,
        seconds=sum(r["seconds"] for r in records),
        correct=correct,
        truncated=sum(r["ended"] == "length" for r in records),
        scores=scores,
    )


def _evaluate_text(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task) -> EvalResult:
    start = time.perf_counter()
    found = perplexity(model, tokenizer, task.text or "", window=task.window, limit=task.windows)
    return EvalResult(
        task=task.name,
        version=task.version,
        metric=task.metric,
        value=found.perplexity,
        stderr=found.stderr,
        n=found.tokens,
        seed=task.seed,
        prompt_tokens=float(found.window),
        new_tokens=0.0,
        seconds=time.perf_counter() - start,
        correct=0,
        scores={"bits_per_byte": found.bits_per_byte},
    )


def _record(task: Task, problem: Problem, prompt_tokens: int, answer: Answer) -> dict[str, Any]:
    verdict = task.verify(problem, answer.text)
    for name, score in verdict.scores.items():
        if not math.isfinite(score):
            raise TaskError(
                f"the verifier of {task.name} gave a score that is no number: {name} is {score}",
                value=problem.id,
                fix="mend the verifier; answers already judged are kept",
            )
    return {
        "id": problem.id,
        "question": problem.question,
        "prompt": "",
        "reference": problem.reference,
        "output": answer.text,
        "extracted": verdict.extracted,
        "correct": verdict.correct,
        "reason": verdict.reason,
        "prompt_tokens": prompt_tokens,
        "new_tokens": answer.new_tokens,
        "ended": answer.ended,
        "scores": dict(verdict.scores),
        "seconds": 0.0,
    }


def _try_generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]], task: Task
) -> list[Answer] | None:
    """The answers, or None if memory ran out."""
    try:
        return generate(model, tokenizer, prompts, task.max_new_tokens, task.stop)
    except (MemoryError, RuntimeError) as e:
        if not is_memory(e):
            raise
    free_device_memory()
    return None


def guess_batch(model: PreTrainedModel, tokens: int) -> int:
    """As many rows as half of the free memory holds of KV cache, up to what still pays on the device."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    row_bytes = 2 * config.num_hidden_layers * heads * head_dim * model.dtype.itemsize * tokens
    row_bytes += 16 * (config.vocab_size + tokens * config.hidden_size)  # logits in fp32, activations of the prompt
    if model.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(model.device)
    else:
        free = min(8 << 30, os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return max(1, min(LARGEST_BATCH.get(model.device.type, 64), free // 2 // row_bytes))
