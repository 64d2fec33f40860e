"""A report's tables: rounds, time and tokens, leaks, truncation. Rows of text from records; see `view.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from prunetune.common import units as human
from prunetune.runs.reading import RunRecord, cut_axes
from prunetune.runs.records import StageRecord


@dataclass(frozen=True)
class Table:
    """A header and rows of text; the first column names the row. `total`: the last row sums the others."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    total: bool = False


Column = tuple[str, Callable[[StageRecord], str]]


def _table(columns: list[Column], stages: tuple[StageRecord, ...]) -> Table:
    return Table(tuple(h for h, _ in columns), tuple(tuple(show(s) for _, show in columns) for s in stages))


def rounds(run: RunRecord) -> Table:
    """One row a stage: size, shape, accuracy of every task, losses, tokens, time; the verdict if any was rejected."""
    base = run.original.params if run.original else None
    columns: list[Column] = [
        ("stage", _name),
        ("parameters", lambda s: human.count(s.params)),
        ("share", lambda s: human.percent(human.ratio(s.params, base))),
        ("layers", lambda s: str(s.depth or human.DASH)),
        ("width", lambda s: str(s.width or human.DASH)),
    ]
    columns += [(axis.replace("_", " "), partial(_units, axis=axis)) for axis in cut_axes(run)]
    columns += [(task, partial(_accuracy, task=task)) for task in run.tasks]
    if any(s.pruned_loss is not None for s in run.stages):
        columns += [("loss, pruned", lambda s: _loss(s.pruned_loss)), ("loss, tuned", lambda s: _loss(s.held_out_loss))]
    columns += [("tokens", lambda s: human.count(s.tokens)), ("time", lambda s: human.duration(s.total_seconds))]
    if any(not s.accepted for s in run.stages):
        columns.append(("verdict", _verdict))
    return _table(columns, run.measured)


def _units(stage: StageRecord, axis: str) -> str:
    return f"{stage.shape[axis]:,}" if stage.shape and axis in stage.shape else human.DASH


def spent(run: RunRecord) -> Table:
    """One row a stage: wall time by action, the part of the data stream, tokens, and what the length limit cut."""
    total = run.seconds()
    columns: list[Column] = [
        ("stage", _name),
        *((action, partial(_seconds, action=action)) for action in total),  # latency is of no stage
        ("all", lambda s: human.duration(s.total_seconds)),
        ("samples", _samples),
        ("tokens", lambda s: human.count(s.tokens)),
        ("tokens/s", _rate),
        ("steps", _steps),
        ("truncated", lambda s: _sum([t.truncated for t in s.tune])),
    ]
    table = _table(columns, run.measured)
    if not total:
        return table
    times = tuple(human.duration(t) for t in total.values())
    tokens, cut = run.recovery_tokens(), _sum([t.truncated for s in run.stages for t in s.tune])
    last = ("all", *times, human.duration(sum(total.values())), "", human.count(tokens), "", "", cut)
    return Table(table.header, (*table.rows, last), total=True)


MOST_SHAPES = 16
"""Rows of the table of shapes: all that were cut, then those with the least predicted loss."""


def shapes(run: RunRecord) -> Table:
    """The shapes that a choice of the final shape was made from, the best first; no rows where none was made."""
    found = run.shapes
    if found is None:
        return Table((), ())
    names = list(found.shape)
    timed = any(c.ms is not None for c in found.candidates)
    header = (*names, "parameters", "loss, cut", "loss, predicted", *(("ms a token, predicted",) if timed else ()))
    rows = tuple(
        (
            *(f"{c.shape[name]:,}" for name in names),
            human.count(c.params),
            _loss(c.measured),
            _loss(c.predicted),
            *((f"{c.ms:.2f}",) if c.ms is not None else ()),
        )
        for c in found.candidates[: max(MOST_SHAPES, found.cuts)]
    )
    return Table(header, rows)


def vocabulary(run: RunRecord) -> tuple[Table, str]:
    """How long texts become with fewer tokens, and a sentence on these; no rows where the vocabulary is whole."""
    found = run.vocabulary
    if found is None:
        return Table((), ()), ""
    rows = tuple(
        (
            name,
            "yes" if x.fitted else "no",
            f"x {x.ratio:.3f}",
            f"{x.alike:,} of {x.texts:,}",
        )
        for name, x in found.lengths.items()
    )
    said = (
        f"{found.tokens:,} of {found.original_tokens:,} tokens stay ({found.original_rows:,} -> {found.rows:,} rows of "
        f"the embedding); the texts that they were fitted to use {found.used:,} of them"
        + (f", and {found.lost:,} that had no room" if found.lost else "")
        + ". Text of other tokens still goes in and comes out, in more tokens: it takes longer, and is harder."
    )
    return Table(("text", "fitted to", "tokens", "cut as before"), rows), said


def leaks(run: RunRecord) -> tuple[Table, str]:
    """Evaluation questions found in the recovery data, by task, and a sentence on it."""
    found = run.summary.leaks
    counts = {t: (v.questions, v.exact, v.normalised, v.digits) for t, v in (found or {}).items()}
    rows = tuple((t, *(f"{n:,}" if n is not None else human.DASH for n in ns)) for t, ns in counts.items())
    table = Table(("evaluation", "questions", "exact", "normalised", "same but for numbers"), rows)
    if found is None:
        return table, "No leak check was recorded."
    if not found:
        return table, "The leak check had nothing to compare."
    worst = [t for t, v in found.items() if v.exact or v.normalised]
    if worst:
        return (
            table,
            f"Warning: the recovery data hold questions of {', '.join(worst)}; read those accuracies with care.",
        )
    return table, (
        "No evaluation question occurs in the recovery data, exactly or normalised. "
        "Questions that are the same but for their numbers are other problems of the same kind."
    )


def truncation(run: RunRecord) -> str:
    """What the length limits cut, in training and in answers."""
    tuned = [t for s in run.stages for t in s.tune if t.truncated is not None]
    if tuned:
        cut, seen = sum(t.truncated or 0 for t in tuned), sum(t.samples or 0 for t in tuned)
        share = f" of {seen:,} ({human.percent(cut / seen, 2)})" if seen else ""
        out = f"{cut:,}{share} recovery examples were cut by the length limit."
    else:
        out = "Whether recovery examples were cut by the length limit was not recorded."
    for name, stage in (("original", run.original), ("final", run.final)):
        cuts = [
            f"{e.truncated:,} of {e.n:,} on {e.task}" for e in (stage.evals if stage else ()) if e.truncated and e.n
        ]
        if cuts:
            out += f" Answers of the {name} cut by the limit on new tokens: {', '.join(cuts)}."
    return out


def _name(stage: StageRecord) -> str:
    return stage.name if stage.attempt == 1 else f"{stage.name} (attempt {stage.attempt})"


def _accuracy(stage: StageRecord, task: str) -> str:
    found = stage.eval_of(task)
    return human.DASH if found is None else found.text()


def _seconds(stage: StageRecord, action: str) -> str:
    return human.duration(stage.seconds.get(action))


def _loss(value: float | None) -> str:
    return human.DASH if value is None else f"{value:.3f}" if value >= 0.1 else f"{value:.5f}"


def _verdict(stage: StageRecord) -> str:
    if stage.verdict is None or stage.accepted:
        return "accepted"
    return f"rejected: {stage.why or 'no reason recorded'}"


def _samples(stage: StageRecord) -> str:
    start, end = stage.samples or (0, 0)
    return f"{start:,}–{end:,}" if end > start else human.DASH


def _rate(stage: StageRecord) -> str:
    known = [t for t in stage.tune if t.tokens and t.seconds]
    return human.count(sum(t.tokens or 0 for t in known) / sum(t.seconds or 0 for t in known)) if known else human.DASH


def _steps(stage: StageRecord) -> str:
    """Optimiser steps; of several methods each one's, with its name."""
    if len(stage.tune) > 1:
        return ", ".join(f"{t.method} {t.steps or human.DASH}" for t in stage.tune)
    return _sum([t.steps for t in stage.tune])


def _sum(values: list[int | None]) -> str:
    known = [v for v in values if v is not None]
    return f"{sum(known):,}" if known else human.DASH
