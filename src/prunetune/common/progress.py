"""What a person sees while a run goes on: one line a round, bars with the time left for every long step.

    with watching(Watch()):                     # who shows; a library call without it shows nothing
        with bar("score", len(batches)) as done:    # anywhere below, however deep
            done(1, len(batches))

On a terminal the bars move, one under the other where a step is part of another; elsewhere (a log file, CI) a line is
printed now and then. Everything goes to stderr, so that `--json` on stdout stays clean.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar

Progress = Callable[[int, int], None]
Listener = Callable[[str], AbstractContextManager[Progress]]
"""Hears of a long step: its name, then (done, total)."""

SOON = 0.5
"""Seconds after which a bar is shown: a step that is over by then needs none."""
SPARSE = 30.0
"""Seconds between two lines where there is no terminal."""


class Watch:
    """Shows lines and bars; `Watch(quiet=True)` shows nothing, and no watch does while `Watch.silent` (`--quiet`)."""

    silent: ClassVar[bool] = False
    listeners: tuple[Listener, ...] = ()
    _live: ClassVar[Any] = None

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet or Watch.silent
        self.tty = sys.stderr.isatty()

    def telling(self, listener: Listener) -> Watch:
        """A watch that shows the same, and tells a listener of every long step too."""
        other = copy.copy(self)
        other.listeners = (*self.listeners, listener)
        return other

    def line(self, text: str) -> None:
        """Print one line; rich markup is understood."""
        if not self.quiet:
            console = Watch._live.console if Watch._live is not None else _console()
            console.print(text, highlight=False, soft_wrap=True)

    @contextmanager
    def bar(self, name: str, total: int | None = None, *, told: bool = True) -> Iterator[Progress]:
        """A bar with the time left; yields a callback (done, total).

        Args:
            name: What is going on.
            total: How much there is to do; None: the callback's first call tells.
            told: Whether listeners hear of it.
        """
        with ExitStack() as stack:
            heard = [stack.enter_context(listener(name)) for listener in (self.listeners if told else ())]
            heard.append(stack.enter_context(self._shown(name, total)))

            def progress(done: int, total: int) -> None:
                for each in heard:
                    each(done, total)

            yield progress

    @contextmanager
    def _shown(self, name: str, total: int | None) -> Iterator[Progress]:
        if self.quiet:
            yield _nothing
        elif not self.tty:
            yield _sparse(self, name)
        else:
            with _bars() as bars:
                task = bars.add_task(name, total=total)
                try:
                    yield lambda done, total: bars.update(task, completed=done, total=total)
                finally:
                    bars.remove_task(task)


_watch: ContextVar[Watch | None] = ContextVar("watch", default=None)


@contextmanager
def watching(watch: Watch) -> Iterator[Watch]:
    """Inside, `bar` shows on this watch."""
    token = _watch.set(watch)
    try:
        yield watch
    finally:
        _watch.reset(token)


def in_charge() -> Watch:
    """The watch that is in charge here; one that writes to stderr where none is."""
    return _watch.get() or Watch()


@contextmanager
def bar(name: str, total: int | None = None) -> Iterator[Progress]:
    """A bar (see `Watch.bar`) on the watch that is in charge here; nothing is shown where none is."""
    watch = _watch.get()
    if watch is None:
        yield _nothing
    else:
        with watch.bar(name, total) as progress:
            yield progress


def _nothing(done: int, total: int) -> None:
    """Nobody looks."""


def _sparse(watch: Watch, name: str, seconds: float = SPARSE) -> Progress:
    """Without a terminal: a line every half minute."""
    start = last = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= seconds and 0 < done < total:
            last = now
            left = (now - start) / done * (total - done)
            watch.line(f"    {name}: {done:,}/{total:,}, about {left:.0f} s left")

    return progress


@contextmanager
def _bars() -> Iterator[Any]:
    """The terminal's one set of bars; the outermost step opens and closes it."""
    if Watch._live is not None:
        yield Watch._live
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    class Late(Bars):
        """Bars of steps that have taken a moment already."""

        def get_renderables(self) -> Iterator[Any]:
            yield self.make_tasks_table([t for t in self.tasks if (t.elapsed or 0) >= SOON])

    columns = (TextColumn("  {task.description:<24}"), BarColumn(24), MofNCompleteColumn(),
               TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())  # fmt: skip
    with Late(*columns, console=_console(), transient=True, refresh_per_second=4) as bars:
        Watch._live = bars
        try:
            yield bars
        finally:
            Watch._live = None


def _console() -> Any:
    from rich.console import Console

    return Console(file=sys.stderr)
