"""events.jsonl: whole lines whoever writes, a torn end left out and mended, not too many lines, the time left."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from prunetune.common import events
from prunetune.common.events import Journal, Pace, last_events
from prunetune.errors import NotWritable


def test_what_is_written_is_read(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "e.jsonl")
    journal.stage = "01-width-8"
    journal.write(kind="step", action="tune cpt", step=3, of=9, loss=1.5, lr=1e-4)
    (event,) = last_events(journal.path)
    assert (event.stage, event.action, event.step, event.of, event.loss, event.lr) == (
        "01-width-8", "tune cpt", 3, 9, 1.5, 1e-4,
    )  # fmt: skip
    assert set(json.loads(journal.path.read_text())) == {"time", "kind", "stage", "action", "step", "of", "loss", "lr"}


@pytest.mark.parametrize("cut", [1, 10, 60])
def test_a_torn_last_line_is_left_out_and_mended(tmp_path: Path, cut: int) -> None:
    """Without the mend the next event would be lost: it would stand on the torn line."""
    path = tmp_path / "e.jsonl"
    journal = Journal.open(path)
    for step in (1, 2):
        journal.write(kind="step", action="score", step=step, of=3)
    path.write_bytes(path.read_bytes()[:-cut])
    assert [e.step for e in last_events(path)] == [1]
    Journal.open(path).write(kind="step", action="score", step=3, of=3)
    assert [e.step for e in last_events(path)] == [1, 3]
    assert path.read_bytes().endswith(b"}\n")


def test_a_file_that_is_one_torn_line_is_emptied(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    path.write_bytes(b"{" + b"x" * 9_000)
    Journal.open(path)
    assert path.read_bytes() == b""


def test_lines_of_several_processes_do_not_mix(tmp_path: Path) -> None:
    path, children = tmp_path / "e.jsonl", []
    for number in range(4):
        if not (child := os.fork()):
            for step in range(50):
                Journal(path, "x" * 300).write(kind="step", action=str(number), step=step)
            os._exit(0)
        children.append(child)
    assert all(os.waitpid(child, 0)[1] == 0 for child in children)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted((int(r["action"]), r["step"]) for r in rows) == [(n, s) for n in range(4) for s in range(50)]


def test_only_the_end_of_a_long_file_is_read(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "e.jsonl")
    for step in range(50):
        journal.write(kind="step", action="score", step=step)
    found = [e.step for e in last_events(journal.path, most=500)]
    assert found == list(range(50 - len(found), 50))
    assert 2 <= len(found) <= 5


def test_steps_are_told_not_too_often_and_the_last_one_always(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(events.time, "monotonic", lambda: now[0])
    journal = Journal.open(tmp_path / "e.jsonl")
    with journal.action("score") as progress:
        for done in range(1, 51):
            now[0] += 0.125  # exact in binary
            progress(done, 50)
    found = last_events(journal.path)
    assert [e.step for e in found] == [1, 9, 17, 25, 33, 41, 49, 50]
    assert found[1].left == pytest.approx(5.1, abs=0.05)  # 41 steps of an eighth of a second


def test_the_time_left_counts_the_steps_of_this_start_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(events.time, "monotonic", lambda: now[0])
    pace = Pace(400)
    now[0] += 10
    assert pace.left(405, 410) == 10.0  # not 5 / 405 of ten seconds


def test_a_full_disk_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(number: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(NotWritable, match="no space left"):
        Journal(tmp_path / "e.jsonl").write(kind="run", state="started")
