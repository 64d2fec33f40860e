"""Accuracy of a model on a task: greedy answers, verdicts, and every sample on disk as it is finished.

    result = evaluate(model, tokenizer, task, fmt=PromptFormat(), out=stage / "eval" / "gsm8k.jsonl")

`out` holds one JSON line a question, appended batch by batch; a killed evaluation goes on where it was.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunetune.common.stats import mean_stderr, stderr
from prunetune.errors import TaskError
from prunetune.evaluation import lm_eval as harness
from prunetune.evaluation.fitting import guess_batch
from prunetune.evaluation.loss import perplexity
from prunetune.evaluation.result import EvalResult
from prunetune.evaluation.samples import Sample, append_samples, open_samples, read_samples, seal_samples
from prunetune.evaluation.spread import Limits, Spread, answered
from prunetune.models.generation import Answer
from prunetune.models.prompt import PromptFormat, prompt_ids, prompt_text
from prunetune.tasks.registry import Problem, Task
from prunetune.tasks.verifiers import Verdict

__all__ = ["EvalResult", "evaluate", "guess_batch", "read_samples", "summarise"]

Progress = Callable[[int, int], None]


def evaluate(
    model: PreTrainedModel | Spread,
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
        model: In any dtype, on any device, or on several.
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
        here = model.alone() if isinstance(model, Spread) else model
        loaded, folder = harness.Loaded(here, tokenizer, key), out.parent if out else None
        chat = fmt.template == "chat"
        return harness.evaluate_task(loaded, task, chat=chat, out=folder, batch_size=batch_size, progress=progress)
    if not task.problems:
        raise TaskError("this task has no problems", value=task.name, fix="ask for at least one")
    settings = [task.name, task.version, task.stop, task.max_new_tokens, fmt.model_dump(), key]
    wanted = {p.id for p in task.problems}
    records = {i: r for i, r in (open_samples(out, settings, Sample) if out else {}).items() if i in wanted}
    todo = [(p, prompt_ids(tokenizer, p.question, fmt)) for p in task.problems if p.id not in records]
    todo.sort(key=lambda pair: -len(pair[1]))  # longest first: too large a batch shows at once
    if progress:
        progress(len(records), len(task.problems))
    limits, start = Limits(task.max_new_tokens, task.stop), time.perf_counter()
    for answers in answered(model, tokenizer, [ids for _, ids in todo], limits, batch_size) if todo else ():
        batch, todo = todo[: len(answers)], todo[len(answers) :]
        verdicts = [_judged(task, p, a) for (p, _), a in zip(batch, answers, strict=True)]
        share = (time.perf_counter() - start) / len(batch)
        new = [
            _sample(p, prompt_text(tokenizer, p.question, fmt), len(ids), answer, verdict, share)
            for (p, ids), answer, verdict in zip(batch, answers, verdicts, strict=True)
        ]
        records |= {r.id: r for r in new}
        if out:
            append_samples(out, new)
        if progress:
            progress(len(records), len(task.problems))
        start = time.perf_counter()
    if out:
        seal_samples(out)
    return summarise(task, [records[p.id] for p in task.problems])


def summarise(task: Task, records: Sequence[Sample]) -> EvalResult:
    """The figure of a task from its samples' records."""
    n = len(records)
    correct = sum(r.correct for r in records)
    share = correct / n
    scores: dict[str, float] = {}
    for name in sorted({name for r in records for name in r.scores}):
        values = [float(r.scores.get(name, 0.0)) for r in records]
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
        prompt_tokens=sum(r.prompt_tokens or 0 for r in records) / n,
        new_tokens=sum(r.new_tokens or 0 for r in records) / n,
        seconds=sum(r.seconds for r in records),
        correct=correct,
        truncated=sum(r.ended == "length" for r in records),
        scores=scores,
    )


def _evaluate_text(model: PreTrainedModel | Spread, tokenizer: PreTrainedTokenizerBase, task: Task) -> EvalResult:
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


def _judged(task: Task, problem: Problem, answer: Answer) -> Verdict:
    verdict = task.verify(problem, answer.text)
    for name, score in verdict.scores.items():
        if not math.isfinite(score):
            raise TaskError(
                f"the verifier of {task.name} gave a score that is no number: {name} is {score}",
                value=problem.id,
                fix="mend the verifier; answers already judged are kept",
            )
    return verdict


def _sample(
    problem: Problem, prompt: str, prompt_tokens: int, answer: Answer, verdict: Verdict, seconds: float
) -> Sample:
    return Sample(
        id=problem.id,
        question=problem.question,
        prompt=prompt,
        reference=problem.reference,
        output=answer.text,
        extracted=verdict.extracted,
        correct=verdict.correct,
        reason=verdict.reason,
        prompt_tokens=prompt_tokens,
        new_tokens=answer.new_tokens,
        ended=answer.ended,
        scores=dict(verdict.scores),
        seconds=seconds,
    )
