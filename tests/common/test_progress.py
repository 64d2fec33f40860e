"""What a person sees: lines on stderr, never on stdout; nothing when quiet."""

from __future__ import annotations

import time
from typing import Any

import pytest

from prunetune.common import memory, notes, progress
from prunetune.common.progress import Watch, _sparse, bar, watching


def test_lines_go_to_stderr(capsys):
    Watch().line("hello [bold]there[/bold]")
    seen = capsys.readouterr()
    assert (seen.out, seen.err) == ("", "hello there\n")


def test_quiet_is_quiet(capsys):
    watch = Watch(quiet=True)
    watch.line("hello")
    with watch.bar("work") as bar:
        bar(1, 2)
    assert capsys.readouterr() == ("", "")


def test_without_a_terminal_progress_is_a_line_with_the_time_left(capsys):
    progress = _sparse(Watch(), "score", seconds=0)
    progress(1, 4)
    progress(4, 4)  # the end needs no line
    assert capsys.readouterr().err.count("score: 1/4") == 1


def test_bar_on_a_terminal_shows_the_count(capsys, monkeypatch):
    watch = Watch()
    watch.tty = True
    with watch.bar("score") as bar:
        bar(1, 4)
    assert capsys.readouterr().out == ""


def test_a_bar_below_shows_on_the_watch_in_charge_and_nowhere_without_one(capsys, monkeypatch):
    monkeypatch.setattr(progress, "SPARSE", 0.0)
    monkeypatch.setattr(progress, "_sparse", lambda watch, name: _sparse(watch, name, 0.0))
    with bar("alone") as done:
        done(1, 2)
    with watching(Watch()), bar("load", 2) as done:
        done(1, 2)
    with watching(Watch(quiet=True)), bar("quiet", 2) as done:
        done(1, 2)
    assert [line.split(":")[0].strip() for line in capsys.readouterr().err.splitlines()] == ["load"]


def test_on_a_terminal_parts_stand_under_their_whole(capsys, monkeypatch):
    monkeypatch.setattr(progress, "SOON", 0.0)
    watch = Watch()
    watch.tty = True
    with watch.bar("probe", 3), watch.bar("held-out loss", 4) as inner:
        inner(1, 4)
        live: Any = Watch._live
        assert [(t.description, t.total) for t in live.tasks] == [("probe", 3), ("held-out loss", 4)]
        watch.line("a line between")
    assert Watch._live is None and "a line between" in capsys.readouterr().err


def test_a_step_that_fails_takes_its_bar_with_it():
    watch = Watch()
    watch.tty = True
    with pytest.raises(ValueError, match="no"), watch.bar("score"):
        raise ValueError("no")
    assert Watch._live is None


class Told(Watch):
    """What its bars were told."""

    def __init__(self):
        super().__init__()
        self.calls = []

    @progress.contextmanager
    def bar(self, name, total=None):
        yield lambda done, total: self.calls.append((name, done, total))


def test_a_large_file_is_hashed_under_a_bar_with_the_same_hash(tmp_path, monkeypatch):
    path = tmp_path / "weights"
    path.write_bytes(bytes(range(256)) * 20_000)
    whole = notes.full_sha(path)
    monkeypatch.setattr(notes, "PIECE", 1 << 20)
    notes._seen.clear()
    with watching(Told()) as told:
        assert notes.full_sha(path) == whole
    assert told.calls[-1] == ("hash weights (MB)", 5, 5) and len(told.calls) == 5


def test_memory_that_fills_is_told():
    calls = []
    with memory.filling(lambda done, total: calls.append((done, total)), 200 * 10**6, every=0.01):
        block = bytearray(b"x") * (100 * 10**6)
        time.sleep(0.1)
    assert len(block) and all(total == 200 and 0 <= done <= total for done, total in calls)
    assert max(done for done, _ in calls) > 50
