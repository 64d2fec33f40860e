"""Jinja2 templates with our filters: Markdown cells and fences that no model output can break, HTML always escaped."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from prunetune.common import units as human
from prunetune.report.pairs import SideBySide


def cell(text: object) -> str:
    """Text inside a Markdown table cell: pipes escaped, one line, no HTML."""
    return str(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def fence(text: str, language: str = "text") -> str:
    """A fenced code block whose fence is longer than any run of backticks inside."""
    ticks = "`" * max(3, 1 + max((len(m) for m in re.findall(r"`+", text)), default=0))
    return f"{ticks}{language}\n{text.strip()}\n{ticks}"


def unbroken(text: str) -> str:
    """The same with no line break between a number and its unit."""
    text = re.sub(r"(?<=\d) (?=[%a-zA-Z]{1,3}\b|%)", "\u00a0", text)
    return re.sub(r"\b([np]) ([=<]) (?=\d)", "\\1\u00a0\\2\u00a0", text)


def paired(p: SideBySide, first: str, second: str) -> str:
    """One sentence on the same questions answered by two models, with McNemar's exact test."""
    c = p.counts
    change, low, high = map(human.points, (c.difference, *c.interval()))
    return (
        f"Of {c.n:,} questions both are right on {c.both:,}, {first} alone on {c.lost:,}, {second} alone on "
        f"{c.gained:,}, neither on {c.neither:,}. {second.capitalize()} minus {first}: {change} points "
        f"(95 % interval {low} to {high}; McNemar's exact {human.p_value(c.mcnemar())})."
    )


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("prunetune.report", "templates"),
        autoescape=select_autoescape(enabled_extensions=("html.j2",), default=False),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=False,
    )
    made.filters.update(cell=cell, fence=fence, nb=unbroken)
    made.globals.update(paired=paired)
    return made


def render(template: str, **values: Any) -> str:
    """Fill a template of `prunetune/templates`; an undefined name is an error."""
    return _environment().get_template(template).render(**values)


def source(template: str) -> str:
    """A template file's text as it is."""
    return (resources.files("prunetune.report") / "templates" / template).read_text(encoding="utf-8")
