"""docs/quickstart.md, run as it stands: its files, its commands, and what it says is printed."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from itertools import islice
from pathlib import Path

import pytest
from typer.testing import CliRunner

from prunetune.cli.app import app

PAGE = Path(__file__).parents[1] / "docs" / "quickstart.md"
BLOCKS = re.findall(r"^```(python|console)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)
SECTIONS = re.findall(r"^## (.*)$", PAGE.read_text(encoding="utf-8"), re.M)


def words_of(line: str) -> str:
    """A printed line without its figures, which differ between machines, and without the room between columns."""
    line = re.sub(r"\([\d., to]+\)|± [\d.]+", " ", line)
    return " ".join(re.sub(r"-?[\d.,]+( [kMGT]\b)?", "#", line).replace("%", " ").split())


def shown_in(line: str, printed: list[str]) -> bool:
    """Whether a line of the page was printed; `…` stands for anything."""
    parts = [words_of(p) for p in line.split("…")]
    pattern = ".*".join(map(re.escape, parts))
    return any(re.fullmatch(pattern, words_of(p)) for p in printed)


def carry_out(command: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines that a command of the page prints."""
    program, *rest = shlex.split(command)
    if program == "python":
        runpy.run_path(rest[0])
        return capsys.readouterr().out.splitlines()
    if program == "head":
        with Path(rest[1]).open(encoding="utf-8") as file:
            return [line.rstrip("\n") for line in islice(file, int(rest[0][1:]))]
    assert program == "prunetune", command
    done = CliRunner().invoke(app, rest)
    capsys.readouterr()
    assert done.exit_code == 0, (command, done.output, done.exception)
    return done.output.splitlines()


@pytest.mark.slow
def test_the_quick_start_is_what_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One folder, empty at the beginning, for the whole page; one command after another."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["prunetune"])
    ran = 0
    for kind, text in BLOCKS:
        if kind == "python":
            name = re.match(r"# (\w+\.py)\n", text)
            assert name, "the first line of a block names its file"
            Path(name[1]).write_text(text, encoding="utf-8")
            continue
        for command, said in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, re.M):
            printed, ran = carry_out(command, capsys), ran + 1
            for line in filter(None, said.splitlines()):
                assert line == "…" or shown_in(line, printed), (command, line, printed)
    assert ran >= 9


def test_each_transcript_is_at_most_seven_commands() -> None:
    parts = re.split(r"^## .*$", PAGE.read_text(encoding="utf-8"), flags=re.M)[1:]
    counts = [len(re.findall(r"^\$ ", part, re.M)) for part in parts]
    assert len(counts) == len(SECTIONS) and max(counts) <= 7 and sum(counts) >= 9


def test_a_line_that_was_not_printed_is_seen() -> None:
    printed = ["  01-neurons-392   0.87 M  59.2%  sums 98.0 % ± 2.0  loss 0.003 -> 0.003", "result  good: 100.0 % kept"]
    assert shown_in("01-neurons-400  0.85 M  58.0%  sums 100.0 % (92.9 to 100.0)  loss 0.100 -> 0.2", printed)
    assert shown_in("result  good: …", printed)
    assert not shown_in("result  not good: …", printed) and not shown_in("report  runs/csv", printed)
