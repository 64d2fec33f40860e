"""What a report says, before it is laid out: a run's records as rows of text. Pure; Markdown, HTML and card share it.

Numbers come from the records alone. What a run did not record is a dash, and a line in `missing`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from prunetune.common import units as human
from prunetune.common.reading import read_text
from prunetune.common.stats import wilson
from prunetune.report import sizes, tables
from prunetune.report.conclusion import Conclusion, conclude, doubts, kept
from prunetune.report.headline import (
    Row,
    control_name,
    control_note,
    control_of,
    flops_of,
    headline,
    params_of,
    result_of,
)
from prunetune.report.pairs import Answers, SideBySide, one_question, read_samples, side_by_side
from prunetune.report.tables import Table
from prunetune.runs.reading import RunRecord
from prunetune.runs.records import EvalRecord, StageRecord


@dataclass(frozen=True)
class Bar:
    """One model's share of the original's parameters (1 = all), and a line on it."""

    label: str
    share: float
    text: str
    kind: str


@dataclass(frozen=True)
class View:
    """A report's content; tables are a header and rows of text."""

    model: str
    finished: bool
    conclusion: Conclusion | None
    sentence: str
    facts: tuple[tuple[str, str, str], ...]
    bars: tuple[Bar, ...]
    control_name: str | None
    control_note: str
    models: Table
    choices: tuple[str, ...]
    headline: tuple[Row, ...]
    rounds: Table
    spent: Table
    shapes: Table
    vocabulary: Table
    vocabulary_note: str
    pairs: tuple[SideBySide, ...]
    control_pairs: tuple[SideBySide, ...]
    answers: Answers | None
    leaks: Table
    leak_note: str
    truncation: str
    notes: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]
    recipe: str
    missing: tuple[str, ...]


def view(run: RunRecord) -> View:
    """Everything that a report of this run says."""
    final, control = run.final, control_of(run)
    leaks, leak_note = tables.leaks(run)
    tokens, token_note = tables.vocabulary(run)
    recipe = run.path / "recipe.yaml"
    return View(
        model=model_name(run),
        finished=run.finished,
        conclusion=conclude(run),
        sentence=_sentence(run),
        facts=_facts(run),
        bars=_bars(run),
        control_name=control_name(run),
        control_note=control_note(run),
        models=sizes.models(run),
        choices=sizes.sentences(run),
        headline=tuple(headline(run)),
        rounds=tables.rounds(run),
        spent=tables.spent(run),
        shapes=tables.shapes(run),
        vocabulary=tokens,
        vocabulary_note=token_note,
        pairs=_pairs(run, run, run.original, run, final),
        control_pairs=_pairs(run, run.control, control, run, final) if run.control is not None else (),
        answers=answers_of(run),
        leaks=leaks,
        leak_note=leak_note,
        truncation=tables.truncation(run),
        notes=_notes(run),
        environment=tuple((k, _text(v)) for k, v in run.summary.environment.items()),
        recipe=read_text(recipe, "recipe") if recipe.is_file() else "",
        missing=tuple(_missing(run)),
    )


def model_name(run: RunRecord) -> str:
    """The source model as the recipe names it."""
    name = run.recipe.get("model")
    return (
        str(name.get("name") or name.get("path") or run.path.name)
        if isinstance(name, dict)
        else str(name or run.path.name)
    )


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


# ------------------------------------------------------------------------------------------------------------ headline


def _notes(run: RunRecord) -> tuple[str, ...]:
    """Whether `stop_at` is kept, why each round went as far as it did or was undone, and what recovery noticed."""
    promise = run.summary.promise
    notes = []
    if promise is not None:
        wanted = human.percent(promise.wanted)
        notes.append(f"keep {wanted}: {'kept' if promise.kept else 'not kept'}. {promise.why}.")
    notes += [f"{s.name}: {s.decision}." for s in run.stages if s.decision]
    notes += [f"{s.name} was undone: {s.why}." for s in run.stages if not s.accepted]
    notes += _collapses(run)
    return tuple(dict.fromkeys([*notes, *(n for s in run.stages for t in s.tune for n in t.notes)]))


def _collapses(run: RunRecord) -> list[str]:
    """Rounds after which not one answer is right: such a model was not recovered, whatever its loss says."""
    found = []
    for task in run.shares:
        before = result_of(run.original, task)
        for stage in run.stages:
            after = result_of(stage, task)
            if before is not None and after is not None and not after.value and _told_apart(before, after):
                found.append(
                    f"{stage.name}: accuracy on {task} collapsed, from {before.text()} to no right answer at all."
                )
    return found


def _told_apart(before: EvalRecord, after: EvalRecord) -> bool:
    """Whether even the least that the first may solve is more than the most that the second may."""
    if not before.n or not after.n:
        return False
    right = [round(e.value * (e.n or 0)) for e in (before, after)]
    return wilson(right[0], before.n)[0] > wilson(right[1], after.n)[1]


def _sentence(run: RunRecord) -> str:
    final, original = run.final, run.original
    share = human.ratio(params_of(final), params_of(original))
    if final is None or original is None or share is None:
        return "No stage is finished yet."
    if final is original:
        return "Nothing was removed."
    keeps: list[str] = []
    elsewhere: list[str] = []
    for task in run.tasks:
        before, after = result_of(original, task), result_of(final, task)
        if before is None or after is None:
            continue
        if not after.is_share:
            elsewhere.append(f"{after.label()}: {before.text()} before, {after.text()} after")
        elif not doubts([before]) and (found := kept(run, task)) is not None and found.high is not None:
            of = "" if keeps else "of the accuracy "
            keeps.append(f"{found.text()} {of}on {task} ({before.text()}, then {after.text()})")
        else:
            elsewhere.append(f"{task}: {before.text()} right before, {after.text()} after: no share to speak of")
    start = f"{human.percent(share)} of the parameters"
    if keeps:
        start += f" keep {', '.join(keeps[:-1])}{' and ' if len(keeps) > 1 else ''}{keeps[-1]}"
    elif not elsewhere:
        start += "; accuracy was not measured"
    return f"{'; '.join([start, *elsewhere])}.{_stopped(run)}"


def _stopped(run: RunRecord) -> str:
    """Whether a run with `stop_at` ended where it had to."""
    promise, last = run.summary.promise, run.stages[-1] if run.stages else None
    if promise is None or not promise.kept or last is None:
        return ""
    wanted = human.percent(promise.wanted)
    if last.accepted:
        return f" It keeps {wanted} of the accuracy, as asked."
    tried = human.percent(human.ratio(last.params, params_of(run.original)))
    return f" It is as small as keeps {wanted} of the accuracy: the next step tried, to {tried}, was undone."


def _facts(run: RunRecord) -> tuple[tuple[str, str, str], ...]:
    """(label, figure, detail) of the few numbers shown large."""
    out = []
    before, after = params_of(run.original), params_of(run.final)
    if (share := human.ratio(after, before)) is not None:
        out.append(("parameters", human.percent(share), f"{human.count(before)} → {human.count(after)}"))
    for task in run.tasks[:2]:
        old, new = result_of(run.original, task), result_of(run.final, task)
        if old is not None and new is not None:
            before_text, after_text = (human.measured(e.value, metric=e.metric) for e in (old, new))
            out.append((new.label(), after_text, ", ".join(filter(None, (f"{before_text} before", new.size())))))
    for task in run.shares[:1]:
        old_f, new_f = flops_of(run.original, task), flops_of(run.final, task)
        if (share := human.ratio(new_f, old_f)) is not None:
            out.append(("FLOPs a question", human.percent(share), f"{human.flops(old_f)} → {human.flops(new_f)}"))
    if (tokens := run.recovery_tokens()) is not None:
        out.append(("recovery tokens", human.count(tokens), f"in {human.duration(run.seconds().get('tune'))}"))
    return tuple(out)


def _bars(run: RunRecord) -> tuple[Bar, ...]:
    base = params_of(run.original)
    models = [("original", run.original, "original"), ("compacted", run.final, "final")]
    if (control := control_of(run)) is not None:
        models.append((control_name(run) or "", control, "control"))
    out = []
    for label, stage, kind in models:
        share = human.ratio(params_of(stage), base)
        if stage is None or share is None:
            continue
        scores = [f"{human.measured(e.value, metric=e.metric)} {e.task}" for e in stage.evals]
        out.append(Bar(label, share, " · ".join([human.count(params_of(stage)), *scores]), kind))
    return tuple(out)


# --------------------------------------------------------------------------------------------------------------- pairs


def _pairs(
    run: RunRecord, first_run: RunRecord, first: StageRecord | None, second_run: RunRecord, second: StageRecord | None
) -> tuple[SideBySide, ...]:
    if first is None or second is None or first is second:
        return ()
    found = (
        side_by_side(t, read_samples(first_run.folder(first), t), read_samples(second_run.folder(second), t))
        for t in run.tasks
    )
    return tuple(p for p in found if p is not None)


def answers_of(run: RunRecord) -> Answers | None:
    """One question of the first task with right and wrong answers, as original, control and final model answer it."""
    first, second, third = run.original, run.final, control_of(run)
    if not run.shares or first is None or second is None or third is None or run.control is None:
        return None
    task = run.shares[0]
    ours, theirs = (read_samples(run.folder(stage), task) for stage in (first, second))
    by_hand = read_samples(run.control.folder(third), task)
    return one_question(ours, theirs, by_hand, control_name(run) or "control")


def _missing(run: RunRecord) -> list[str]:
    out = []
    if not run.finished:
        out.append(
            "The run is not finished (no summary.json): what follows is the state after the newest finished stage."
        )
    if run.original is None:
        out.append("The original model was not measured, so there are no ratios.")
    if not run.tasks:
        out.append("No task was evaluated.")
    if run.finished and control_name(run) is None:
        wanted = run.recipe.get("control") in ("once", "naive")
        why = ": one round, nothing compensated, would have been this run again" if wanted else ""
        out.append(f"There is no control in this run{why}.")
    if run.finished and not run.summary.speedup:
        out.append("Speed was not measured.")
    if run.finished and not run.summary.environment:
        out.append("The environment was not recorded.")
    return out
