"""The embedded model's own solutions: verified, deduplicated, resumable, and readable as recovery data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.tiny import tiny_folder

from prunetune.data.stream import DemoData, FileData, load_stream
from prunetune.errors import TuneError
from prunetune.models.folders import resolve_model
from prunetune.tasks.registry import TaskConfig, build_task
from prunetune.tune.traces import TraceJob, make_traces


def trace_job(out: Path, **values: Any) -> TraceJob:
    base: dict[str, Any] = {
        "model": resolve_model("demo"), "out": out, "sources": (DemoData(size=40),), "task": TaskConfig(name="demo"),
        "end": 24, "per_question": 3, "batch_size": 8, "temperature": 1.5, "max_new_tokens": 64, "device": "cpu",
    }  # fmt: skip
    return TraceJob(**{**base, **values})


def test_only_right_answers_stay_and_a_killed_call_goes_on(tmp_path: Path) -> None:
    seen: list[int] = []
    traces = make_traces(trace_job(tmp_path / "a.jsonl", keep=2), lambda done, total: seen.append(done))
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert seen == [8, 16, 24] and traces.questions == 24 and len(rows) == traces.kept >= traces.solved > 12
    assert 0.5 < traces.correct <= 1
    task, own = (
        build_task(TaskConfig(name="demo", n=1)),
        {e.question: e for e in load_stream([DemoData(size=40)], 0).examples},
    )
    for row in rows:
        problem = task.problems[0].__class__("x", row["question"], own[row["question"]].answer)
        assert task.verify(problem, row["answer"]).correct
    assert len({(r["question"], r["answer"]) for r in rows}) == len(rows)

    def stop(done: int, total: int) -> None:
        if done == 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_traces(trace_job(tmp_path / "b.jsonl", keep=2), stop)
    assert not (tmp_path / "b.jsonl").exists()
    seen.clear()
    assert make_traces(trace_job(tmp_path / "b.jsonl", keep=2), lambda done, total: seen.append(done)) == traces
    assert seen == [24] and (tmp_path / "b.jsonl").read_bytes() == (tmp_path / "a.jsonl").read_bytes()
    assert len(load_stream([FileData(path=str(tmp_path / "b.jsonl"))], 0)) == len(rows)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".a.jsonl.key", ".b.jsonl.key", "a.jsonl", "b.jsonl"]


def test_a_model_that_solves_nothing_has_no_traces(tmp_path: Path) -> None:
    model = tiny_folder(tmp_path / "random")
    with pytest.raises(TuneError, match="solved none"):
        make_traces(trace_job(tmp_path / "a.jsonl", model=model, end=4))
    with pytest.raises(TuneError, match="no questions"):
        make_traces(trace_job(tmp_path / "a.jsonl", end=0))
