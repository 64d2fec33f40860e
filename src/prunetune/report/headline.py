"""The headline: original, final and the control, measure by measure. Rows of text; see `view.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from prunetune.common import units as human
from prunetune.report.pairs import read_samples
from prunetune.report.question_cost import QuestionCost, question_cost, stage_cost
from prunetune.report.speed import speedup
from prunetune.runs.reading import RunRecord, cut_axes
from prunetune.runs.records import EvalRecord, StageRecord
from prunetune.runs.summary import Timing, Timings


@dataclass(frozen=True)
class Row:
    """One measure: original, final, final / original, and the control."""

    label: str
    original: str
    final: str
    ratio: str
    control: str


def params_of(stage: StageRecord | None) -> int | None:
    """Parameters of a stage, None if there is no stage or no record."""
    return stage.params if stage is not None else None


def result_of(stage: StageRecord | None, task: str) -> EvalRecord | None:
    """The result of a stage on a task, None if it was not measured."""
    return stage.eval_of(task) if stage is not None else None


def flops_of(stage: StageRecord | None, task: str) -> float | None:
    """Mean FLOPs a question of a task, None if not recorded."""
    return stage.cost.flops.get(task) if stage is not None else None


def control_of(run: RunRecord) -> StageRecord | None:
    """The stage that the control ended in, None without a control."""
    return run.control.final if run.control is not None else None


def control_name(run: RunRecord) -> str | None:
    """What the run calls its control, None without one."""
    said = run.summary.control
    return said.name if said is not None else "pruned once" if control_of(run) is not None else None


def control_tokens(run: RunRecord) -> int | None:
    """Recovery tokens that the control spent."""
    if run.control is not None:
        return run.control.recovery_tokens()
    return run.summary.control.recovery_tokens if run.summary.control is not None else None


def control_note(run: RunRecord) -> str:
    """Says whether the control had the same tokens: from the records, not from its name."""
    if control_name(run) is None:
        return ""
    ours, theirs = run.recovery_tokens(), control_tokens(run)
    if theirs == 0 and ours:
        return "straight after the cut: no recovery tokens"
    if not ours or not theirs:
        return "recovery tokens not recorded"
    if abs(theirs / ours - 1) <= 0.01:
        return "same recovery tokens"
    return f"{theirs / ours:.2f} × the recovery tokens"


def _control_figure(run: RunRecord, task: str, metric: str) -> str:
    found = result_of(control_of(run), task)
    if found is not None:
        return found.text()
    said = run.summary.control.accuracy.get(task) if run.summary.control is not None else None
    return human.measured(said.final, said.final_stderr, metric, said.n) if said is not None else human.DASH


def _count(units: int | None) -> str:
    return human.DASH if units is None else f"{units:,}"


def _shape(stage: StageRecord | None) -> str:
    return f"{stage.depth} × {stage.width}" if stage is not None and stage.depth and stage.width else human.DASH


def headline(run: RunRecord) -> list[Row]:
    """Every measure that the records hold; a task, a time or a control that is not there leaves no row or a dash."""
    a, b, c = run.original, run.final, control_of(run)

    def line(label: str, show: Any, get: Any) -> Row:
        x, y, z = (get(s) if s is not None else None for s in (a, b, c))
        return Row(label, show(x), show(y), _ratio(y, x), show(z))

    rows = [
        line("parameters", human.count, lambda s: s.cost.params),
        Row("layers × FFN width", _shape(a), _shape(b), "", _shape(c)),
        *(line(axis.replace("_", " "), _count, lambda s, of=axis: (s.shape or {}).get(of)) for axis in cut_axes(run)),
        line("weights", human.size, lambda s: s.cost.weight_bytes),
        line("KV cache a token", human.size, lambda s: s.cost.kv_bytes_per_token),
    ]
    for task in run.tasks:
        old, new = result_of(a, task), result_of(b, task)
        known = new or old
        label = ", ".join(filter(None, (known.label(), new.size() if new else ""))) if known else task
        texts = [e.text() if e else human.DASH for e in (old, new)]
        said = _ratio(new.value if new else None, old.value if old else None)
        rows.append(
            Row(label, texts[0], texts[1], said, _control_figure(run, task, known.metric if known else "accuracy"))
        )
    for task in run.shares:
        rows += _flops_rows(run, task)
    rows += [*_latency_rows(run), *_speed_rows(run)]
    tokens, seconds = run.recovery_tokens(), sum(run.seconds().values()) or None
    theirs = sum(run.control.seconds().values()) or None if run.control is not None else None
    once = control_tokens(run)
    rows.append(Row("recovery tokens", "0" if a else human.DASH, human.count(tokens), "", human.count(once)))
    rows.append(Row("wall time, all stages", "", human.duration(seconds), "", human.duration(theirs)))
    return rows


def _flops_rows(run: RunRecord, task: str) -> list[Row]:
    """Mean FLOPs a question as recorded, prefill and decode apart where the samples tell, and a generated token."""
    models = ((run, run.original), (run, run.final), (run.control, control_of(run)))
    totals = [flops_of(stage, task) for _, stage in models]
    costs = [_question_cost(r, stage, task) for r, stage in models]
    split = [f" ({human.flops(c.prefill)} + {human.flops(c.decode)})" if c else "" for c in costs]
    texts = [human.flops(t) + part if t is not None else human.DASH for t, part in zip(totals, split, strict=True)]
    rows = [
        Row(f"FLOPs a question (prefill + decode), {task}", texts[0], texts[1], _ratio(totals[1], totals[0]), texts[2])
    ]
    each = [c.per_new_token if c else None for c in costs]
    if each[0] is not None or each[1] is not None:
        a, b, c = map(human.flops, each)
        rows.append(Row(f"FLOPs a generated token, {task}", a, b, _ratio(each[1], each[0]), c))
    return rows


def _question_cost(run: RunRecord | None, stage: StageRecord | None, task: str) -> QuestionCost | None:
    cost = stage_cost(run, stage) if run is not None and stage is not None else None
    if run is None or stage is None or cost is None:
        return None
    return question_cost(cost, read_samples(run.folder(stage), task).values())


def _ratio(new: float | None, old: float | None) -> str:
    share = human.ratio(new, old)
    return human.DASH if share is None else f"{share:.3f}"


def _latency_rows(run: RunRecord) -> list[Row]:
    """Measured times at batch 1, median and interquartile range."""
    ours = run.summary.latency or Timings()
    once = (run.control.summary.latency if run.control is not None else None) or Timings()
    models = (ours.original, ours.final, once.final)
    if models[0] is None or models[1] is None:
        return []

    def row(label: str, figure: Callable[[Timing], tuple[float, float | None]]) -> Row:
        found = [figure(m) if m is not None else None for m in models]
        texts = [f"{f[0]:.2f} ms (IQR {f[1] or 0.0:.2f})" if f is not None else human.DASH for f in found]
        old, new = (f[0] if f is not None else None for f in found[:2])
        return Row(label, texts[0], texts[1], _ratio(new, old), texts[2])

    rows = [
        row(f"prefill of {models[1].prompt_tokens} tokens", lambda m: (m.prefill_ms, m.prefill_iqr_ms)),
        row(f"decode, one of {models[1].new_tokens} tokens", lambda m: (m.decode_ms_per_token, m.decode_iqr_ms)),
    ]
    at, control = ours.batched or Timings(), once.batched or Timings()
    many = (at.original, at.final, control.final)
    if many[0] is not None and many[1] is not None:
        rates = [m.tokens_per_s if m is not None else None for m in many]
        texts = [f"{human.count(r)} tokens/s" if r is not None else human.DASH for r in rates]
        label = f"throughput, batch {many[1].batch}"
        rows.append(Row(label, texts[0], texts[1], _ratio(rates[1], rates[0]), texts[2]))
    return rows


def _speed_rows(run: RunRecord) -> list[Row]:
    """Speed-ups with the range that the timings' spread allows."""

    def row(label: str, *keys: str) -> Row | None:
        found = [speedup(r, *keys) if r is not None else None for r in (run, run.control)]
        ours, once = (s.text() if s is not None else human.DASH for s in found)
        return Row(label, human.times(1.0), ours, "", once) if any(found) else None

    named = [(f"speed-up a question, {t}", t, "question") for t in run.shares]
    named += [(f"speed-up a generated token, {t}", t, "token") for t in run.shares]
    found = [row(*n) for n in named] + [row(f"speed-up, {k}", k) for k in ("prefill", "decode", "throughput")]
    return [r for r in found if r is not None]
