"""A run that goes on, as a terminal shows it; and several runs as a list. What is shown is in `runs/state.py`."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

from prunetune.common import units
from prunetune.common.events import Event
from prunetune.runs.records import StageRecord
from prunetune.runs.state import RunState, state_of

EVERY = 1.0
"""Seconds between two looks."""
BLOCKS = "▁▂▃▄▅▆▇█"
WIDE = 40
COLOURS = {"running": "green", "finished": "cyan", "stopped": "yellow", "failed": "red"}


def watch_run(path: Path, console: Console, wait: Callable[[float], None] = time.sleep) -> RunState:
    """Show a run until it has ended, and then once more; Ctrl-C ends the looking, not the run.

    Args:
        path: The run folder.
        console: Where to show it; what is no terminal gets the last look alone.
        wait: Waits so many seconds.

    Returns:
        The state at the end. Raises MissingPath if the folder is no run.
    """
    state = state_of(path)
    try:
        with Live(view(state), console=console, auto_refresh=False, transient=True) as live:
            while state.state == "running":
                wait(EVERY)
                state = state_of(path)
                live.update(view(state), refresh=True)
    except KeyboardInterrupt:
        pass
    console.print(view(state))
    return state


def view(state: RunState) -> RenderableType:
    """One look at a run: its stages, what it does now, how training goes."""
    parts: list[RenderableType] = [_head(state)]
    if state.record is not None:
        parts.append(_stages(state.record.measured, state.record.original))
    if state.rungs:
        parts.append(f"finished models: {escape(', '.join(state.rungs))}")
    if state.state == "running" and state.last is not None:
        parts += _action(state, state.last)
    return Group(*parts)


def _head(state: RunState) -> str:
    why = f": {escape(state.why)}" if state.why else ""
    place = "" if state.state in ("running", "finished") else f" ({escape(state.where())})"
    return f"[bold]{escape(str(state.path))}[/bold]  [{COLOURS[state.state]}]{state.state}[/]{place}{why}"


def _stages(stages: Sequence[StageRecord], first: StageRecord | None) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("stage", "parameters", "of all", "held-out loss", "accuracy"):
        table.add_column(name, justify="left" if name in ("stage", "accuracy") else "right")
    for stage in stages:
        table.add_row(escape(stage.name) + ("" if stage.accepted else " (rejected)"), *_figures(stage, first))
    return table


def _figures(stage: StageRecord, first: StageRecord | None) -> tuple[str, str, str, str]:
    size = f"{stage.params / 1e6:,.1f} M" if stage.params else "–"
    share = f"{stage.params / first.params:.1%}" if stage.params and first and first.params else "–"
    loss = f"{stage.held_out_loss:.3f}" if stage.held_out_loss is not None else "–"
    return size, share, loss, accuracy_of(stage)


def accuracy_of(stage: StageRecord) -> str:
    """The figures of all tasks in a line."""
    return "  ".join(f"{escape(e.task)} {e.text()}" for e in stage.evals) or "–"


def _action(state: RunState, last: Event) -> list[RenderableType]:
    done, whole = last.step or 0, max(last.of or 1, 1)
    grid = Table.grid(padding=(0, 1))
    left = f"{units.duration(last.left)} left" if last.left is not None else ""
    grid.add_row(escape(", ".join(p for p in (last.stage, last.action) if p)), ProgressBar(whole, done, width=24),
                 f"{done:,} of {whole:,}", left)  # fmt: skip
    return [grid, *_training(state, last)]


def _training(state: RunState, last: Event) -> list[str]:
    losses = [e.loss for e in state.events if (e.stage, e.action) == (last.stage, last.action) and e.loss is not None]
    told = [
        f"loss {last.loss:.3f} {sparkline(losses[-WIDE:])}" if last.loss is not None else "",
        f"lr {last.lr:.2e}" if last.lr is not None else "",
        f"{last.tokens_per_s:,.0f} tokens/s" if last.tokens_per_s is not None else "",
        f"{last.memory / 2**30:.1f} GiB" if last.memory is not None else "",
    ]
    said = "  ".join(t for t in told if t)
    return [said] if said else []


def sparkline(values: Sequence[float]) -> str:
    """Values as a row of blocks, the lowest one the smallest."""
    if not values:
        return ""
    low, high = min(values), max(values)
    return "".join(BLOCKS[round((v - low) / (high - low) * 7) if high > low else 0] for v in values)


def list_runs(states: Sequence[RunState], width: int = 120) -> str:
    """Several runs, a line each: state, size, accuracy, and where it stopped or is."""
    table = Table(box=None, pad_edge=False)
    for name in ("run", "state", "size", "accuracy", "where"):
        table.add_column(name, overflow="fold")
    for state in states:
        size = f"{state.ratio:.1%}" if state.ratio is not None else "–"
        figures = accuracy_of(state.newest) if state.newest else "–"
        where = "" if state.state == "finished" else state.where()
        table.add_row(
            escape(str(state.path)), state.state, size, figures, escape(": ".join(filter(None, (where, state.why))))
        )
    return text_of(table, width)


def text_of(shown: RenderableType, width: int = 120) -> str:
    """What a script gets: no colours, no controls."""
    console = Console(file=io.StringIO(), width=width, force_terminal=False, color_system=None, highlight=False)
    with console.capture() as caught:
        console.print(shown)
    return "\n".join(line.rstrip() for line in caught.get().rstrip("\n").split("\n"))
