"""A verifier that does not end is ended, and who is at work is said meanwhile; no other is touched."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.tiny_run import Lines

from prunetune.common.progress import watching
from prunetune.errors import TaskError
from prunetune.tasks import patience
from prunetune.tasks.patience import patient
from prunetune.tasks.problems import Problem
from prunetune.tasks.registry import TaskConfig, build_judge, build_task
from prunetune.tasks.verifiers import Verdict

CODE = """
import re, time
def loops(output, reference):
    while "ever" in output: pass
    return True
def catches(output, reference):
    while "ever" in output:
        try:
            while True: pass
        except Exception:
            pass
    return True
def backtracks(output, reference):
    return re.match(r"(a+)+$", "a" * 60 + "b" if "ever" in output else "a") is not None
def waits(output, reference):
    time.sleep(0.3)
    return True
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., TaskConfig]:
    monkeypatch.setattr(patience, "LIMIT", 0.2)
    monkeypatch.setattr(patience, "SOON", 0.05)
    (tmp_path / "judge.py").write_text(CODE)

    def named(function: str, answer: str = "b") -> TaskConfig:
        (tmp_path / "rows.jsonl").write_text(f'{{"question": "a?", "answer": "{answer}"}}\n')
        verifier = f"{tmp_path}/judge.py:{function}"
        return TaskConfig(name="mine", path=str(tmp_path / "rows.jsonl"), verifier=verifier, allow_custom_code=True)

    return named


@pytest.mark.parametrize("function", ["loops", "catches", "backtracks"])
def test_one_that_does_not_end_is_one_message(config: Callable[..., TaskConfig], function: str) -> None:
    task, before = build_task(config(function)), signal.getsignal(signal.SIGPROF)
    assert task.verify(task.problems[0], "b").correct
    with pytest.raises(TaskError) as e:
        task.verify(task.problems[0], "for ever")
    assert f"judge.py:{function} of the task mine does not end" in e.value.what
    assert task.problems[0].id in str(e.value.value) and "for ever" in str(e.value.value)
    assert "0.2 s of CPU time" in str(e.value.valid) and "judge.py" in str(e.value.fix)
    assert signal.getsignal(signal.SIGPROF) == before and signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)


def test_it_is_told_when_the_task_is_built_and_by_a_judge(config: Callable[..., TaskConfig]) -> None:
    with pytest.raises(TaskError, match="does not end"):
        build_task(config("loops", answer="for ever"))
    judge = build_judge(config("loops"))
    with pytest.raises(TaskError, match="does not end"):
        judge.verify(Problem("7", "?", "b"), "for ever")


def test_who_is_at_work_is_said_and_a_wait_is_not_ended(config: Callable[..., TaskConfig]) -> None:
    watch = Lines()
    with watching(watch):
        task = build_task(config("waits"))  # tries it, too
        for _ in range(2):  # no longer than what was said: nothing new
            assert task.verify(task.problems[0], "b").correct
    (line,) = watch.lines
    assert "judge.py:waits of mine is at work on row mine/0" in line


def test_outside_the_main_thread_it_is_said_at_least(config: Callable[..., TaskConfig]) -> None:
    task, watch, end = build_task(config("waits")), Lines(), []

    def judged() -> None:
        with watching(watch):  # a signal reaches the main thread alone
            end.append(task.verify(task.problems[0], "b"))

    thread = threading.Thread(target=judged)
    thread.start()
    thread.join()
    assert end[0].correct


def test_a_busy_thread_beside_it_takes_none_of_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "LIMIT", 0.1)
    busy = threading.Event()

    def spin() -> None:
        while not busy.is_set():
            pass

    def verify(problem: Problem, output: str) -> Verdict:
        time.sleep(0.4)
        return Verdict(True, None, "")

    thread = threading.Thread(target=spin)
    thread.start()
    try:
        assert patient(verify, "v", "t")(Problem("0", "?", "b"), "x").correct
    finally:
        busy.set()
        thread.join()


def test_one_is_watched_once_and_ours_are_not() -> None:
    def verify(problem: Problem, output: str) -> Verdict:
        return Verdict(True, None, "")

    once = patient(verify, "v", "t")
    assert patient(once, "v", "t") is once
    assert not isinstance(build_judge(TaskConfig(name="gsm8k")).verify, patience.Patient)
