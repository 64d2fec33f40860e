"""What a person sees: lines on stderr, never on stdout; nothing when quiet."""

from __future__ import annotations

from prunetune.common.progress import Watch, _sparse


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
