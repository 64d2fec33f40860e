"""Tables as text for a terminal, a pipe or a file, laid out by rich: no control codes, nothing cut at 80 columns.

aligned([("original", "1.48 M"), ("compacted", "730 k")], ("", "parameters"))
"""

from __future__ import annotations

import io
from collections.abc import Sequence

WIDEST = 10_000
"""Columns that a table may take: a terminal breaks a line that is too long for it, and a file keeps it whole."""


def aligned(
    rows: Sequence[Sequence[str]], header: Sequence[str] | None = None, *, left: int = 1, rule: bool = False
) -> str:
    """Rows under one another, a cell a column; no line ends in blanks.

    Args:
        rows: Cells; each row as many.
        header: Names of the columns; None: none.
        left: So many columns from the left are flush left, the others flush right.
        rule: A line of dashes above and below the header.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.HORIZONTALS if rule else None, pad_edge=False, padding=(0, 1), show_header=header is not None)
    for i, name in enumerate(header or [""] * max(map(len, rows), default=0)):
        table.add_column(Text(name), justify="left" if i < left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    out = io.StringIO()
    Console(file=out, width=WIDEST, color_system=None, force_terminal=False).print(table)
    lines = out.getvalue().splitlines()
    return "\n".join(line.rstrip() for line in ([line[1:] for line in lines[:-1]] if rule else lines))
