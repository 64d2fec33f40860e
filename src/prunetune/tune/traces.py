"""A model's own verified solutions as recovery data: sample, keep what the task's verifier accepts, deduplicate, store.

Open chain-of-thought data do not bring every model back (the paper's Table 2: Qwen2.5); the traces of the unpruned
model itself are nearer to what it must remember.

    make_traces(TraceJob(model=original, out=Path("traces.jsonl"), sources=(...), task=TaskConfig(name="gsm8k")))
    recipe: data: [{type: file, path: traces.jsonl}]

`out` holds {question, answer} rows. It grows batch by batch, each with its own seed, so that a killed call goes on
where it was and ends with the same rows.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from prunetune.common.files import disk_errors, once, remove, write_json
from prunetune.common.outputs import claim
from prunetune.common.reading import read_model
from prunetune.common.strict_json import to_json_text
from prunetune.data.sources import Sampling
from prunetune.data.stream import DataSource, Example, load_stream
from prunetune.errors import TuneError
from prunetune.models.folders import load_model, load_tokenizer, model_sha, pad_id, require_end
from prunetune.models.prompt import PromptFormat, end_ids, prompt_ids, prompt_text
from prunetune.models.turns import whole_answer
from prunetune.tasks.problems import check_examples
from prunetune.tasks.registry import Problem, Task, TaskConfig, build_judge
from prunetune.tune.job import Progress


class TraceJob(Sampling):
    """What to sample, and from whom."""

    model: Path
    """Folder of the model to sample from: the original one."""
    out: Path
    """JSONL file to write."""
    sources: tuple[DataSource, ...]
    """Training questions with their right answers."""
    task: TaskConfig
    """Whose verifier judges."""
    data_seed: int = 0
    """Seed of the stream's shuffle."""
    start: int = Field(default=0, ge=0)
    """First question of the stream."""
    end: int | None = Field(default=None, ge=0)
    """One past the last; None: all."""
    seed: int = 0
    """Seed of the sampling."""
    fmt: PromptFormat = PromptFormat()
    """How questions become prompts."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to sample."""


@dataclass(frozen=True)
class Traces:
    """What came of it.

    Attributes:
        questions: Questions asked.
        solved: Questions with a right answer among the samples.
        kept: Rows written.
        correct: Share of all samples that were right.
    """

    questions: int
    solved: int
    kept: int
    correct: float


def make_traces(job: TraceJob, progress: Progress | None = None, key: object = None) -> Traces:
    """Sample, verify, write. What a killed call has done lies in `.NAME.work` beside the output until then.

    Args:
        job: What to do.
        progress: Gets (questions done, questions in all).
        key: For the output's note; default: the job.

    Raises:
        TuneError: No questions, or not one verified answer.
        NotWritable: Another job's unfinished work is there, or its output.
    """
    import torch

    from prunetune.tune.stage import own_randomness
    from prunetune.tune.training.machine import pick_device

    questions, task = _asked(job)
    own = [job.model_dump(mode="json", exclude={"out", "device", "model"}), model_sha(job.model)]
    work = job.out.with_name(f".{job.out.name}.work")
    part, note = work / "rows.jsonl", work / "state.json"
    with disk_errors(job.out):
        claim(work, own)
        done, counts = _resume(part, note)
        device = pick_device(job.device)
        with own_randomness(), part.open("a", encoding="utf-8") as f:
            tokenizer = load_tokenizer(job.model)
            require_end(tokenizer, "sampling whole answers")
            model = load_model(job.model, device=str(device))
            for start in range(done, len(questions), job.batch_size):
                batch = questions[start : start + job.batch_size]
                torch.manual_seed(job.seed * 1_000_003 + start)
                texts = sample_answers(model, tokenizer, batch, job, task)
                for i, (example, answers) in enumerate(zip(batch, texts, strict=True)):
                    right = [a for a in answers if _accepts(task, example, a, start + i)]
                    counts["correct"] += len(right)
                    kept = sorted(dict.fromkeys(a.strip() for a in right), key=lambda a: (len(a), a))[: job.keep]
                    counts["solved"] += bool(kept)
                    counts["kept"] += len(kept)
                    prompt = prompt_text(tokenizer, example.question, job.fmt, example.before) if kept else ""
                    for answer in kept:
                        f.write(to_json_text(_row(example, whole_answer(prompt, answer)), indent=None) + "\n")
                f.flush()
                write_json(note, {"done": start + len(batch), "bytes": f.tell(), "counts": counts})
                if progress is not None:
                    progress(start + len(batch), len(questions))
        if not counts["kept"]:
            raise TuneError(
                "the model solved none of the questions, so there are no traces of its own",
                value=f"{len(questions)} questions, {job.per_question} answers each",
                fix="use the data's own answers, or a model that can solve them",
            )
        share = counts["correct"] / (len(questions) * job.per_question)
        traces = Traces(len(questions), counts["solved"], counts["kept"], share)
        once(job.out, own if key is None else key, lambda tmp: shutil.copyfile(part, tmp), more=asdict(traces))
        remove(work)
    return traces


def _asked(job: TraceJob) -> tuple[list[Example], Task]:
    """The questions, and what judges answers to them."""
    stream = load_stream(job.sources, job.data_seed)
    questions = [e for e in stream.take(job.start, len(stream) if job.end is None else job.end) if e.question]
    if not questions:
        raise TuneError("there are no questions to sample answers of", value=str(job.sources), fix="give questions")
    task = build_judge(job.task)
    check_examples(questions, task)
    task.verify(_problem(questions[0], 0), questions[0].answer)  # a verifier of one's own is tried before any work
    return questions, task


class _State(BaseModel):
    """How far a call had come."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    done: int = Field(0, ge=0)
    bytes: int = Field(0, ge=0)
    counts: dict[str, int] = {"correct": 0, "solved": 0, "kept": 0}


def _resume(part: Path, note: Path) -> tuple[int, dict[str, int]]:
    """Questions done by an earlier call of the same job; what it wrote after its last note is cut off."""
    if not (part.exists() and note.exists()):
        remove(part)
        return 0, dict(_State().counts)
    found = read_model(note, _State, "note of a started call", fix="remove it to begin anew")
    with part.open("r+b") as f:
        f.truncate(found.bytes)
    return found.done, dict(found.counts)


def _row(example: Example, answer: str) -> dict[str, Any]:
    """A row as `data` reads it: question and answer, or the whole conversation."""
    if not example.before:
        return {"question": example.question, "answer": answer}
    turns = [*example.before, ("user", example.question), ("assistant", answer)]
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


def _problem(example: Example, index: int) -> Problem:
    return Problem(str(index), example.question, example.answer)


def _accepts(task: Task, example: Example, answer: str, index: int) -> bool:
    return task.verify(_problem(example, index), answer).correct


def sample_answers(model: Any, tokenizer: Any, batch: list[Example], job: TraceJob, task: Task) -> list[list[str]]:
    """`per_question` sampled answers of each question, without end token, cut at the task's stop texts."""
    import torch
    from transformers import GenerationConfig, LogitsProcessorList

    from prunetune.models.batches import mask_of, padded
    from prunetune.models.generation import Numbers, without_router

    prompts = [prompt_ids(tokenizer, e.question, job.fmt, e.before) for e in batch]
    pad = pad_id(tokenizer)
    ids, mask = padded(prompts, pad, left=True).to(model.device), mask_of(prompts, left=True).to(model.device)
    width = ids.shape[1]
    ends = end_ids(tokenizer, model.generation_config)
    config = GenerationConfig(
        do_sample=True,
        temperature=job.temperature,
        top_p=job.top_p,
        top_k=0,
        num_return_sequences=job.per_question,
        max_new_tokens=job.max_new_tokens or task.max_new_tokens,
        eos_token_id=list(ends) or None,
        pad_token_id=pad,
    )
    with torch.inference_mode():
        numbers = LogitsProcessorList([Numbers(model, mask)])
        made = model.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=config,
            logits_processor=numbers,
            **without_router(model),
        )
    out = made[:, width:].tolist()
    texts = []
    for row in out:
        end = next((i for i, token in enumerate(row) if token in ends), None)
        if end is None:
            texts.append("")  # cut by the length limit: no whole solution
            continue
        text = str(tokenizer.decode(row[:end], skip_special_tokens=True))
        texts.append(text[: min([at for s in task.stop if (at := text.find(s)) >= 0], default=len(text))])
    n = job.per_question
    return [texts[i * n : (i + 1) * n] for i in range(len(batch))]
