"""How an exported model stands beside the one that it was made of: bytes, perplexity, greedy answers."""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunetune.common import units as human
from prunetune.common.table import aligned
from prunetune.report.pairs import read_samples
from prunetune.runs.reading import RunRecord

if TYPE_CHECKING:
    from prunetune.evaluation.loss import Perplexity

WINDOW, WINDOWS = 256, 32
"""Tokens of a window of the text, and how many windows are read."""
NO_TEXT = "no perplexity: there is no run with right answers here; --text FILE"


@dataclass(frozen=True)
class Row:
    """One file of the table: its bytes, its perplexity with its standard error, what it answers."""

    name: str
    bytes: int
    perplexity: float | None
    stderr: float | None
    answers: str


@dataclass(frozen=True)
class Exported:
    """What was written, by what, and how it stands beside the model that it was made of.

    Attributes:
        path: The file.
        by: What wrote it.
        rows: The model as it was, then the file.
        faults: Why the file is not the same model; empty where nothing was found.
        notes: What could not be checked, and why.
        engine: What was asked for greedy answers.
    """

    path: str
    by: str
    rows: tuple[Row, ...]
    faults: tuple[str, ...]
    notes: tuple[str, ...]
    engine: str = "llama.cpp"

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    def text(self) -> str:
        """The table, then what is amiss or was left out."""
        first = self.rows[0]
        cells = [
            (
                row.name,
                human.size(row.bytes),
                human.percent(row.bytes / first.bytes, 0),
                human.DASH if row.perplexity is None else f"{row.perplexity:.4g} ± {row.stderr:.2g}",
                human.DASH
                if row.perplexity is None or not first.perplexity
                else f"{100 * (row.perplexity / first.perplexity - 1):+.2f} %",
                row.answers,
            )
            for row in self.rows
        ]
        table = aligned(cells, ("", "size", "of it", "perplexity", "change", f"greedy answers in {self.engine}"))
        more = [f"{self.path}: written by {self.by}, read again by transformers"]
        more += [f"fault: {fault}" for fault in self.faults] + [f"note: {note}" for note in self.notes]
        return "\n".join([table, "", *more])


def own_text(run: RunRecord | None) -> str | None:
    """Questions that the original answered rightly, with its answers."""
    if run is None or run.original is None:
        return None
    right = (
        f"Question: {s.question}\nAnswer:{s.output}\n\n"
        for task in run.shares
        for s in read_samples(run.folder(run.original), task).values()
        if s.correct
    )
    return "".join(itertools.islice(right, 500)) or None


def bytes_of(folder: Path) -> int:
    """Of a model's weights."""
    return sum(p.stat().st_size for p in folder.glob("*.safetensors"))


def row(name: str, size: int, found: Perplexity | None, answers: str) -> Row:
    """A line of the table."""
    return Row(name, size, found.perplexity if found else None, found.stderr if found else None, answers)


def perplexity_of(model: Any, tokenizer: Any, text: str) -> Perplexity:
    """Of the first windows of a text."""
    from prunetune.evaluation.loss import perplexity

    return perplexity(model, tokenizer, text, window=WINDOW, limit=WINDOWS)
