"""What a person sees while a run goes on: one line a round, bars with the time left for every long step.

On a terminal the bars move; elsewhere (a log file, CI) only lines are printed. Everything goes to stderr, so that
`--json` on stdout stays clean.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

Progress = Callable[[int, int], None]


class Watch:
    """Shows lines and bars; `Watch(quiet=True)` shows nothing, and no watch does while `Watch.silent` (`--quiet`)."""

    silent: ClassVar[bool] = False

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet or Watch.silent
        self.tty = sys.stderr.isatty()

    def line(self, text: str) -> None:
        """Print one line; rich markup is understood."""
        if not self.quiet:
            _console().print(text, highlight=False, soft_wrap=True)

    def table(self, table: Any) -> None:
        """Print a rich table."""
        if not self.quiet:
            _console().print(table)

    @contextmanager
    def bar(self, name: str) -> Iterator[Progress]:
        """A bar with the time left; yields a callback (done, total)."""
        if self.quiet:
            yield lambda done, total: None
        elif not self.tty:
            yield _sparse(self, name)
        else:
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("  {task.description:<24}"), BarColumn(24), MofNCompleteColumn(),
                       TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())  # fmt: skip
            with Bar(*columns, console=_console(), transient=True) as bars:
                task = bars.add_task(name, total=None)
                yield lambda done, total: bars.update(task, completed=done, total=total)


def _sparse(watch: Watch, name: str, seconds: float = 30.0) -> Progress:
    """Without a terminal: a line every half minute."""
    start = last = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= seconds and 0 < done < total:
            last = now
            left = (now - start) / done * (total - done)
            watch.line(f"    {name}: {done}/{total}, about {left:.0f} s left")

    return progress


def _console() -> Any:
    from rich.console import Console

    return Console(file=sys.stderr)
