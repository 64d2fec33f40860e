"""What `prunetune eval` does: tasks from the command line's words, and a model measured on them."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunetune.cli.made import is_eval
from prunetune.cli.options import judged_by, parse_task
from prunetune.cli.texts import check_tasks, format_of, placed, task_columns
from prunetune.common.files import read_json, write_json
from prunetune.common.outputs import own_folder
from prunetune.common.progress import Watch
from prunetune.errors import NotWritable, UnknownName
from prunetune.models.folders import load_tokenizer, model_sha, resolve_model
from prunetune.tasks.lm_eval import key_of
from prunetune.tasks.registry import Task, TaskConfig, build_task, check_task

if TYPE_CHECKING:
    from prunetune.evaluation.evaluate import EvalResult


def _claim(out: Path, sha: str) -> None:
    """One folder of answers belongs to one model."""
    note = out / "model.json"
    if note.is_file() and read_json(note) != {"model_sha": sha}:
        raise NotWritable("this folder holds another model's answers", value=str(out), fix="choose another --out")
    write_json(note, {"model_sha": sha})


def eval_tasks(
    names: Sequence[str],
    data: Mapping[str, str],
    *,
    path: str | None = None,
    verifier: str | None = None,
    columns: str | None = None,
    **more: Any,
) -> list[Task]:
    """Tasks by name, each with its own data: `gsm8k` of `data` serves `gsm8k`, `lm-eval:gsm8k` and `lm-eval:gsm8k_cot`.

    Args:
        names: Tasks as a recipe names them, or NAME=PATH.
        data: Task -> file or folder.
        path: Data of every task that `data` does not name.
        verifier: For rows of your own, or for tasks of plain questions.
        columns: `--columns`, for tasks that read rows.
        more: Further fields of each task's config.

    Raises:
        UnknownName: no such task, or data for a task that is not measured.
    """
    own = [parse_task(n) for n in names]
    data = {**data, **{t["name"].removeprefix("lm-eval:"): t["path"] for t in own if "path" in t}}
    names = [str(t["name"]) for t in own]
    found = {n: key_of(n.removeprefix("lm-eval:"), data) if n.startswith("lm-eval:") else n for n in names}
    for unused in data.keys() - set(found.values()):
        raise UnknownName("task with --data of its own", unused, [n.removeprefix("lm-eval:") for n in names])
    values = [
        {"name": n, "path": (p := data.get(key or "", path)), **task_columns(n, p, columns), **more}
        for n, key in found.items()
    ]
    configs = [TaskConfig.model_validate(v) for v in judged_by(values, verifier)]
    for config in configs:  # a misspelt name is told before any data are read
        check_task(config)
    return [build_task(config) for config in configs]


def _on_vllm(folder: Path, task: Task, out: Path | None, batch_size: int | None, chat: bool) -> EvalResult:
    from prunetune.evaluation.lm_eval import evaluate_task

    return evaluate_task(folder, task, chat=chat, out=out, batch_size=batch_size, backend="vllm")


def eval_model(
    model: str,
    tasks: Sequence[Task],
    out: Path | None,
    *,
    batch_size: int | None,
    chat: bool,
    backend: str,
    device: str,
    watch: Watch,
    launcher: str | None = None,
) -> list[EvalResult]:
    """Measure a model on tasks; with `out`, every sample is kept and a killed call resumes."""
    if backend not in ("transformers", "vllm"):
        raise UnknownName("backend", backend, ["transformers", "vllm"])
    with own_folder(out, "eval", is_eval) if out else contextlib.nullcontext():
        folder = resolve_model(model)
        sha = model_sha(folder)
        if out:
            _claim(out, sha)
        if backend == "vllm":
            return [_on_vllm(folder, task, out, batch_size, chat) for task in tasks]
        where = (placed(device, folder), launcher)
        return _on_transformers(folder, sha, tasks, out, where, batch_size=batch_size, chat=chat, watch=watch)


def _on_transformers(
    folder: Path,
    sha: str,
    tasks: Sequence[Task],
    out: Path | None,
    where: tuple[str, str | None],
    *,
    batch_size: int | None,
    chat: bool,
    watch: Watch,
) -> list[EvalResult]:
    """`where`: device and launcher."""
    from prunetune.evaluation.evaluate import evaluate
    from prunetune.loop.workers.pool import held

    tokenizer, fmt, results = load_tokenizer(folder), format_of(chat), []
    check_tasks(tokenizer, tasks, fmt, watch)
    with held(folder, *where) as model:
        for task in tasks:
            with watch.bar(f"evaluate {task.name}") as bar:
                file = out / f"{task.name.replace('/', '_')}.jsonl" if out else None
                given: Any = {"fmt": fmt, "out": file, "batch_size": batch_size, "key": sha}
                results.append(evaluate(model, tokenizer, task, **given, progress=bar))
    return results
