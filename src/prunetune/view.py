"""What a report says, before it is laid out: a run's records as rows of text. Pure; Markdown, HTML and card share it.

Numbers come from the records alone. What a run did not record is a dash, and a line in `missing`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from prunetune import human, tables
from prunetune.records import EvalRecord, RunRecord, SideBySide, StageRecord, read_samples, side_by_side
from prunetune.tables import Table


@dataclass(frozen=True)
class Row:
    """One measure: original, final, final / original, and the pruned-once control."""

    label: str
    original: str
    final: str
    ratio: str
    control: str


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
    sentence: str
    facts: tuple[tuple[str, str, str], ...]
    bars: tuple[Bar, ...]
    control_name: str | None
    control_note: str
    headline: tuple[Row, ...]
    rounds: Table
    spent: Table
    pairs: tuple[SideBySide, ...]
    control_pairs: tuple[SideBySide, ...]
    leaks: Table
    leak_note: str
    truncation: str
    notes: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]
    recipe: str
    missing: tuple[str, ...]


def view(run: RunRecord) -> View:
    """Everything that a report of this run says."""
    final, control = run.final, _control(run)
    leaks, leak_note = tables.leaks(run)
    recipe = run.path / "recipe.yaml"
    return View(
        model=model_name(run),
        finished=run.finished,
        sentence=_sentence(run),
        facts=_facts(run),
        bars=_bars(run),
        control_name=_control_name(run),
        control_note=_control_note(run),
        headline=tuple(_headline(run)),
        rounds=tables.rounds(run),
        spent=tables.spent(run),
        pairs=_pairs(run, run, run.original, run, final),
        control_pairs=_pairs(run, run.control, control, run, final) if run.control is not None else (),
        leaks=leaks,
        leak_note=leak_note,
        truncation=tables.truncation(run),
        notes=tuple(dict.fromkeys(n for s in run.stages for t in s.tune for n in t.notes)),
        environment=tuple((k, _text(v)) for k, v in (run.summary.get("environment") or {}).items()),
        recipe=recipe.read_text(encoding="utf-8") if recipe.is_file() else "",
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


def _params(stage: StageRecord | None) -> int | None:
    return stage.params if stage is not None else None


def _of(stage: StageRecord | None, task: str) -> EvalRecord | None:
    return stage.eval_of(task) if stage is not None else None


def _task_flops(stage: StageRecord | None, task: str) -> float | None:
    value = stage.cost.flops.get(task) if stage is not None else None
    value = value.get("total") if isinstance(value, dict) else value
    return float(value) if isinstance(value, int | float) else None


# ------------------------------------------------------------------------------------------------------------- control


def _control(run: RunRecord) -> StageRecord | None:
    return run.control.final if run.control is not None else None


def _control_name(run: RunRecord) -> str | None:
    said = run.summary.get("control") or {}
    return str(said.get("name") or "pruned once") if said or _control(run) is not None else None


def _control_tokens(run: RunRecord) -> int | None:
    said = run.summary.get("control") or {}
    return run.control.recovery_tokens() if run.control is not None else said.get("recovery_tokens")


def _control_note(run: RunRecord) -> str:
    """Says whether the control had the same tokens: from the records, not from its name."""
    if _control_name(run) is None:
        return ""
    ours, theirs = run.recovery_tokens(), _control_tokens(run)
    if not ours or not theirs:
        return "recovery tokens not recorded"
    if abs(theirs / ours - 1) <= 0.01:
        return "same recovery tokens"
    return f"{theirs / ours:.2f} × the recovery tokens"


def _control_accuracy(run: RunRecord, task: str) -> str:
    found = _of(_control(run), task)
    if found is not None:
        return human.accuracy(found.value, found.stderr)
    said = (run.summary.get("control") or {}).get("accuracy", {}).get(task)
    if isinstance(said, dict):
        return human.accuracy(said.get("final", said.get("value")), said.get("final_stderr", said.get("stderr")))
    return human.accuracy(said)


# ------------------------------------------------------------------------------------------------------------ headline


def _sentence(run: RunRecord) -> str:
    final, original = run.final, run.original
    share = human.ratio(_params(final), _params(original))
    if final is None or original is None or share is None:
        return "No stage is finished yet."
    if final is original:
        return "Nothing was removed."
    kept: list[str] = []
    for task in run.tasks:
        before, after = _of(original, task), _of(final, task)
        if before is not None and after is not None and before.value:
            of = "" if kept else "of the accuracy "
            kept.append(f"{human.percent(after.value / before.value)} {of}on {task}")
    start = f"{human.percent(share)} of the parameters"
    if not kept:
        return f"{start}; accuracy was not measured."
    return f"{start} keep {', '.join(kept[:-1])}{' and ' if len(kept) > 1 else ''}{kept[-1]}."


def _facts(run: RunRecord) -> tuple[tuple[str, str, str], ...]:
    """(label, figure, detail) of the few numbers shown large."""
    out = []
    before, after = _params(run.original), _params(run.final)
    if (share := human.ratio(after, before)) is not None:
        out.append(("parameters", human.percent(share), f"{human.count(before)} → {human.count(after)}"))
    for task in run.tasks[:2]:
        old, new = _of(run.original, task), _of(run.final, task)
        if old is not None and new is not None:
            detail = f"{human.percent(old.value)} before, n = {new.n or human.DASH}"
            out.append((f"accuracy, {task}", human.percent(new.value), detail))
    for task in run.tasks[:1]:
        old_f, new_f = _task_flops(run.original, task), _task_flops(run.final, task)
        if (share := human.ratio(new_f, old_f)) is not None:
            out.append(("FLOPs a question", human.percent(share), f"{human.flops(old_f)} → {human.flops(new_f)}"))
    if (tokens := run.recovery_tokens()) is not None:
        out.append(("recovery tokens", human.count(tokens), f"in {human.duration(run.seconds().get('tune'))}"))
    return tuple(out)


def _bars(run: RunRecord) -> tuple[Bar, ...]:
    base = _params(run.original)
    models = [("original", run.original, "original"), ("compacted", run.final, "final")]
    if (control := _control(run)) is not None:
        models.append((_control_name(run) or "", control, "control"))
    out = []
    for label, stage, kind in models:
        share = human.ratio(_params(stage), base)
        if stage is None or share is None:
            continue
        scores = [f"{human.percent(e.value)} {e.task}" for e in stage.evals]
        out.append(Bar(label, share, " · ".join([human.count(_params(stage)), *scores]), kind))
    return tuple(out)


def _shape(stage: StageRecord | None) -> str:
    return f"{stage.depth} × {stage.width}" if stage is not None and stage.depth and stage.width else human.DASH


def _headline(run: RunRecord) -> list[Row]:
    a, b, c = run.original, run.final, _control(run)

    def line(label: str, show: Any, get: Any) -> Row:
        x, y, z = (get(s) if s is not None else None for s in (a, b, c))
        share = human.ratio(y, x)
        return Row(label, show(x), show(y), human.DASH if share is None else f"{share:.3f}", show(z))

    rows = [
        line("parameters", human.count, lambda s: s.cost.params),
        Row("layers × FFN width", _shape(a), _shape(b), "", _shape(c)),
        line("weights", human.size, lambda s: s.cost.weight_bytes),
        line("KV cache a token", human.size, lambda s: s.cost.kv_bytes_per_token),
    ]
    for task in run.tasks:
        old, new = _of(a, task), _of(b, task)
        share = human.ratio(new.value if new else None, old.value if old else None)
        n = f", n = {new.n}" if new is not None and new.n else ""
        texts = [human.accuracy(e.value, e.stderr) if e else human.DASH for e in (old, new)]
        said = human.DASH if share is None else f"{share:.3f}"
        rows.append(Row(f"accuracy, {task}{n}", texts[0], texts[1], said, _control_accuracy(run, task)))
    for task in run.tasks:
        rows.append(line(f"FLOPs a question, {task}", human.flops, lambda s, t=task: _task_flops(s, t)))
    rows += [*_latency_rows(run), *_speed_rows(run)]
    tokens, seconds = run.recovery_tokens(), sum(run.seconds().values()) or None
    theirs = sum(run.control.seconds().values()) or None if run.control is not None else None
    once = _control_tokens(run)
    rows.append(Row("recovery tokens", "0" if a else human.DASH, human.count(tokens), "", human.count(once)))
    rows.append(Row("wall time, all stages", "", human.duration(seconds), "", human.duration(theirs)))
    return rows


def _latency_rows(run: RunRecord) -> list[Row]:
    """Measured times at batch 1, median and interquartile range."""
    ours = run.summary.get("latency") or {}
    once = (run.control.summary.get("latency") or {}) if run.control is not None else {}
    models = (ours.get("original"), ours.get("final"), once.get("final"))
    if not models[0] or not models[1]:
        return []
    prompt, new = models[1].get("prompt_tokens"), models[1].get("new_tokens")
    rows = []
    for label, key, spread in (
        (f"prefill of {prompt} tokens", "prefill_ms", "prefill_iqr_ms"),
        (f"decode, one of {new} tokens", "decode_ms_per_token", "decode_iqr_ms"),
    ):
        texts = [f"{m[key]:.2f} ms (IQR {m.get(spread, 0.0):.2f})" if m and key in m else human.DASH for m in models]
        share = human.ratio(models[1].get(key), models[0].get(key))
        rows.append(Row(label, texts[0], texts[1], human.DASH if share is None else f"{share:.3f}", texts[2]))
    return rows


def _speed_rows(run: RunRecord) -> list[Row]:
    ours = run.summary.get("speedup") or {}
    once = (run.control.summary.get("speedup") or {}) if run.control is not None else {}

    def row(label: str, *keys: str) -> Row | None:
        values = []
        for found in (ours, once):
            value: Any = found
            for key in keys:
                value = value.get(key) if isinstance(value, dict) else None
            values.append(human.times(value if isinstance(value, int | float) else None))
        return None if values == [human.DASH] * 2 else Row(label, human.times(1.0), values[0], "", values[1])

    named = [(f"speed-up a question, {t}", t, "question") for t in run.tasks]
    named += [(f"speed-up a generated token, {t}", t, "token") for t in run.tasks]
    found = [row(*n) for n in named] + [row(f"speed-up, {k}", k) for k in ("prefill", "decode")]
    return [r for r in found if r is not None]


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
    if run.finished and _control_name(run) is None:
        out.append("There is no pruned-once control in this run.")
    if run.finished and not run.summary.get("speedup"):
        out.append("Speed was not measured.")
    if run.finished and not run.summary.get("environment"):
        out.append("The environment was not recorded.")
    return out
