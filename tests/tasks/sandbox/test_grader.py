"""The grading process: survives its answers, its caller's threads, and its own death."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from prunetune.tasks.sandbox.grader import Grader

HALF = {"output": r"\boxed{\frac12}", "reference": "0.5"}


def children(pid: int) -> list[int]:
    return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture
def math() -> Iterator[Grader]:
    grader = Grader("math")
    yield grader
    grader.close()


def test_an_answer_that_hangs_ends_in_about_a_second(math: Grader) -> None:
    assert math.ask(HALF)["correct"] is True
    cpu = time.process_time()
    assert math.ask({"output": "$10^{10^{10^{10}}}$", "reference": "3"})["error"] == "timed out"
    assert time.process_time() - cpu < 0.2  # the caller waits, it does not work
    assert math.ask(HALF)["correct"] is True


def test_a_killed_child_and_a_killed_server_are_replaced(math: Grader) -> None:
    math.ask(HALF)
    server = math._server
    assert server is not None
    for child in children(server.pid):
        os.kill(child, signal.SIGKILL)
    wrong = {**HALF, "reference": "3"}
    assert [math.ask(job)["correct"] for job in (HALF, wrong, HALF)] == [True, False, True]  # no reply out of step
    server.kill()
    server.wait()
    assert math.ask(HALF)["correct"] is True
    assert math._server is not server


def test_closing_leaves_nothing_running(math: Grader) -> None:
    math.ask(HALF)
    server = math._server
    assert server is not None
    grading = children(server.pid)
    assert grading
    math.close()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in grading) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in grading)


def test_a_grader_that_raises_is_a_reply_not_a_crash(math: Grader) -> None:
    assert "KeyError" in math.ask({"output": "1"})["error"]
    assert math.ask(HALF)["correct"] is True
