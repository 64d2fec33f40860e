"""Run folder -> report.md, report.html, figures/ and the model card. Reads records, computes no result of its own.

    write_report(Path("runs/demo"))

May be called at any time: a report of half a run says that it is one.
"""

from __future__ import annotations

import dataclasses
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from prunetune.common.files import replacing
from prunetune.common.progress import bar
from prunetune.errors import NotWritable
from prunetune.report.card import model_card
from prunetune.report.figures.draw import Plot, themed
from prunetune.report.figures.plots import plots
from prunetune.report.render import render, source
from prunetune.report.view import view
from prunetune.runs.ours import adopt_old, verify_run
from prunetune.runs.reading import RunRecord, read_run

__all__ = ["html", "markdown", "model_card", "write_report"]


def _version() -> str:
    try:
        return version("prunetune")
    except PackageNotFoundError:
        return "(not installed)"


def markdown(run: RunRecord, figures: list[Plot]) -> str:
    """The report as Markdown; figures are linked from `figures/`."""
    return render("report.md.j2", v=view(run), plots=figures)


def html(run: RunRecord, figures: list[Plot]) -> str:
    """The report as one HTML document that needs nothing else: styles and drawings are inside."""
    inline = [dataclasses.replace(p, svg=themed(p)) for p in figures]
    return render("report.html.j2", v=view(run), plots=inline, css=source("report.css"), version=_version())


def write_report(run: Path) -> None:
    """Write RUN/report.md, RUN/report.html, RUN/figures/*.svg and, where the models are there, their README.md.

    Args:
        run: A run folder, finished or not.

    Raises:
        MissingPath: The folder holds no run.
        BadCheckpoint: A record in it cannot be read, or a byte of what it holds has changed.
        NotWritable: The folder cannot be written.
    """
    verify_run(run)
    adopt_old(run)
    with bar("report", 4) as progress:
        record = read_run(run)
        figures = plots(record)
        progress(1, 4)
        if (run / "figures").is_symlink():
            raise NotWritable(
                "a link is in the place of a folder of the run, and nothing is written behind it",
                value=str(run / "figures"),
                fix="remove the link, or move it away",
            )
        for plot in figures:
            _write(run / "figures" / f"{plot.name}.svg", plot.svg)
        _write(run / "report.md", markdown(record, figures))
        progress(2, 4)
        _write(run / "report.html", html(record, figures))
        progress(3, 4)
        if _is_own(run / "final"):
            _write(run / "final" / "README.md", model_card(record))
        for rung in record.summary.ladder:
            if _is_own(run / rung.folder):
                _write(run / rung.folder / "README.md", model_card(record.at_rung(rung), folder=rung.folder))


def _is_own(folder: Path) -> bool:
    """Whether it is a folder, and not a link to one somewhere else, which gets no card."""
    return folder.is_dir() and not folder.is_symlink()


def _write(path: Path, text: str) -> None:
    with replacing(path) as tmp:
        tmp.write_text(text, encoding="utf-8")
