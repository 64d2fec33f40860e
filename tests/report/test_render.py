from __future__ import annotations

import pytest
from jinja2 import UndefinedError

from prunetune.common.stats import Paired
from prunetune.report.pairs import SideBySide
from prunetune.report.render import cell, fence, paired, render, source, unbroken


def test_a_cell_cannot_end_its_table() -> None:
    assert cell("a|b\nc <b> \\|") == "a\\|b c &lt;b> \\\\\\|"


@pytest.mark.parametrize(("text", "ticks"), [("plain", 3), ("a `b`", 3), ("```\ncode\n```", 4), ("``````", 7)])
def test_a_fence_is_longer_than_what_it_holds(text, ticks) -> None:
    lines = fence(text, "yaml").splitlines()
    assert lines[0] == "`" * ticks + "yaml"
    assert lines[-1] == "`" * ticks


def test_numbers_keep_their_units() -> None:
    assert unbroken("94.6 % of 163 k, p < 0.001, n = 240") == (
        "94.6\u00a0% of 163\u00a0k, p\u00a0<\u00a00.001, n\u00a0=\u00a0240"
    )


def test_the_paired_sentence() -> None:
    said = paired(SideBySide("t", Paired(70, 10, 3, 17), {}), "original", "final")
    assert said == (
        "Of 100 questions both are right on 70, original alone on 10, final alone on 3, neither on 17. "
        "Final minus original: −7.0 points (95 % interval −13.9 to +0.2; McNemar's exact p = 0.092)."
    )


def test_an_undefined_name_is_an_error() -> None:
    with pytest.raises(UndefinedError):
        render("report.md.j2")


def test_style_sheet_defines_every_variable_it_uses() -> None:
    import re

    css = source("report.css")
    defined = set(re.findall(r"(--[\w]+):", css))
    assert set(re.findall(r"var\((--[\w]+)\)", css)) <= defined
    assert {f"--s{i}" for i in range(8)} | {f"--h{i}" for i in range(6)} | {"--ink", "--grid", "--gone"} <= defined
