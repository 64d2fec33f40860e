"""Tables as text: aligned, whole however wide, without control codes or markup, and without rich's eighty columns."""

from __future__ import annotations

import pytest

from prunetune.common.table import aligned

ROWS = [("a", "1.48 M", "x" * 150), ("[bold]long name[/bold]", "730 k", "y")]


def test_columns_stand_under_one_another():
    first, second = aligned([ROWS[0], ("long name", "730 k", "y")]).splitlines()
    assert first == "a          1.48 M  " + "x" * 150
    assert second == "long name   730 k  " + " " * 149 + "y"


@pytest.mark.parametrize("environment", [{}, {"FORCE_COLOR": "1", "COLUMNS": "40"}, {"TERM": "dumb"}])
def test_a_file_gets_the_whole_table_and_no_control_codes(environment, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    text = aligned(ROWS, ("", "parameters", "note"), rule=True)
    assert "\x1b" not in text and "[bold]long name[/bold]" in text and "x" * 150 in text
    lines = text.splitlines()
    assert len(lines) == 5 and set(lines[0]) == set(lines[2]) == {"─"}
    assert [line for line in lines if line != line.rstrip()] == []


def test_nothing_is_nothing():
    assert aligned([]) == ""
