"""A comparison laid out: terminal text, Markdown, CSV and JSON rows. See `compare.py`."""

from __future__ import annotations

import csv as csv_module
import io
from typing import TYPE_CHECKING

from prunetune.common import units as human
from prunetune.common.table import aligned
from prunetune.report.render import cell

if TYPE_CHECKING:
    from prunetune.report.compare import Comparison, Model, TaskResult
    from prunetune.report.speed import Speedup

HEADER = (
    "model", "parameters", "accuracy", "FLOPs/question", "prefill + decode", "speed-up/question", "speed-up/token",
    "recovery tokens", "recovery time", "difference", "p",
)  # fmt: skip
SHORT = (
    "",
    "params",
    "accuracy",
    "FLOPs",
    "prefill + decode",
    "×/question",
    "×/token",
    "tokens",
    "tuned in",
    "difference",
    "p",
)

ONLY_WIDE = ("prefill + decode",)  # left out in a terminal


def _speed(found: Speedup | None) -> str:
    return human.DASH if found is None else found.short()


def _row(model: Model, found: TaskResult | None, reference: str) -> tuple[str, ...]:
    share = f" ({human.percent(model.share, 0)})" if model.share is not None else ""
    start = (model.name, human.count(model.params) + share)
    end = (human.count(model.recovery_tokens), human.duration(model.recovery_seconds or None))
    if found is None:
        return (*start, *[human.DASH] * 5, *end, human.DASH, human.DASH)
    cost, pair = found.cost, found.paired
    split = f"{human.flops(cost.prefill)} + {human.flops(cost.decode)}" if cost else human.DASH
    if pair is not None:
        low, high = map(human.points, pair.interval())
        tested = (
            f"{human.points(pair.difference)} [{low}, {high}]",
            human.p_value(pair.mcnemar()).removeprefix("p = "),
        )
    else:
        tested = ("(compared with)" if model.name == reference else human.DASH, "")
    return (
        *start,
        found.result.text(),
        human.flops(found.flops),
        split,
        _speed(found.speedup_question),
        _speed(found.speedup_token),
        *end,
        tested[0],
        tested[1].removeprefix("p "),
    )


def _tables(c: Comparison) -> list[tuple[str, str, list[tuple[str, ...]]]]:
    """Title, name of the metric, and rows of every data set."""
    out = []
    for task in c.tasks:
        rows = [_row(m, m.tasks.get(task), c.reference) for m in c.models]
        results = [m.tasks[task].result for m in c.models if task in m.tasks]
        ns = " / ".join(str(n) for n in sorted({e.n for e in results if e.n}))
        title = f"{task}, n = {ns}{'' if results[0].is_share else ' tokens'}" if ns else task
        out.append((title, human.metric(results[0].metric), rows))
    return out


def _named(header: tuple[str, ...], metric: str) -> tuple[str, ...]:
    return tuple(metric if h == "accuracy" else h for h in header)


def _note(c: Comparison) -> str:
    return (
        "Figures are ± one standard error (all or none right: Wilson's 95 % interval). "
        f"Difference: points of accuracy, minus {c.reference}'s on the "
        f"same questions [95 % interval], and p of McNemar's exact test. Speed-ups: against the run's own original; "
        f"≈ where the spread of the timings leaves open whether there is one."
    )


def text(c: Comparison) -> str:
    """Aligned columns; one that nothing was recorded for is left out."""
    blocks = []
    for title, metric, rows in _tables(c):
        said = [any(r[i] not in ("", human.DASH) for r in rows) for i in range(len(HEADER))]
        keep = [i for i, name in enumerate(HEADER) if i < 2 or (said[i] and name not in ONLY_WIDE)]
        table = [tuple(r[i] for i in keep) for r in (_named(SHORT, metric), *rows)]
        blocks.append(f"{title}\n{aligned(table[1:], table[0], rule=True)}")
    return "\n\n".join([*blocks, _note(c)]) + "\n"


def markdown(c: Comparison) -> str:
    """One table a data set."""
    blocks = []
    for title, metric, rows in _tables(c):
        lines = [" | ".join(map(cell, r)) for r in (_named(HEADER, metric), *rows)]
        rule = "---|" + "---:|" * (len(HEADER) - 1)
        blocks.append(
            "\n".join([f"### {title}", "", f"| {lines[0]} |", f"|{rule}", *(f"| {line} |" for line in lines[1:])])
        )
    return "\n\n".join([*blocks, _note(c)]) + "\n"


def flat(c: Comparison) -> list[dict[str, object]]:
    """One record a model and data set; what was not recorded is None."""
    return [_record(m, task, t, c.reference) for m in c.models for task, t in m.tasks.items()]


def _record(m: Model, task: str, t: TaskResult, reference: str) -> dict[str, object]:
    low, high = t.interval or (None, None)
    out: dict[str, object] = {
        "model": m.name, "kind": m.kind, "params": m.params, "params_share": m.share, "task": task, "n": t.result.n,
        "metric": t.result.metric, "value": t.result.value,
        "accuracy": t.result.value if t.result.is_share else None, "stderr": t.result.stderr,
        "wilson_low": low, "wilson_high": high,
        "prompt_tokens": t.result.prompt_tokens, "new_tokens": t.result.new_tokens, "flops": t.flops,
        "flops_prefill": t.cost.prefill if t.cost else None, "flops_decode": t.cost.decode if t.cost else None,
        "flops_per_new_token": t.cost.per_new_token if t.cost else None,
        **_speeds("speedup_question", t.speedup_question), **_speeds("speedup_token", t.speedup_token),
        "seconds_question": t.seconds_question,
        "recovery_tokens": m.recovery_tokens, "recovery_seconds": m.recovery_seconds,
    }  # fmt: skip
    p = t.paired
    low, high = p.interval() if p else (None, None)
    return out | {
        "reference": reference if p else None, "shared": p.n if p else None, "both": p.both if p else None,
        "reference_alone": p.lost if p else None, "this_alone": p.gained if p else None,
        "neither": p.neither if p else None, "difference": p.difference if p else None,
        "difference_low": low, "difference_high": high, "mcnemar_p": p.mcnemar() if p else None,
        "mcnemar_mid_p": p.mcnemar(mid_p=True) if p else None,
    }  # fmt: skip


def _speeds(name: str, found: Speedup | None) -> dict[str, object]:
    low, high = (found.low, found.high) if found else (None, None)
    return {name: found.value if found else None, f"{name}_low": low, f"{name}_high": high}


def csv(c: Comparison) -> str:
    """The rows of `flat` with a header; None is empty."""
    rows, out = flat(c), io.StringIO()
    writer = csv_module.DictWriter(out, fieldnames=list(rows[0]) if rows else ["model"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
