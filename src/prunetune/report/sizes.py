"""The models that a run has to offer, and the rivals: one table, and a sentence on each choice. Pure.

A rung is recommended by what it keeps: going down the ladder while every rung keeps the wanted share of the accuracy
with all of its 95 % interval, the last one that does. The first that does not ends it, so that the error of the whole
descent is that of one test (fixed sequence; Westfall and Krishen 2001).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prunetune.common import units as human
from prunetune.report.pairs import ahead, read_samples
from prunetune.report.speed import speedup
from prunetune.report.tables import Table
from prunetune.runs.reading import RunRecord
from prunetune.runs.summary import Against, KeptRecord, Recommended, RivalRecord, RungRecord

EQUAL = 0.1
"""Models whose bytes differ by at most this share stand at equal bytes."""


def recommended(rungs: Sequence[RungRecord], wanted: float) -> Recommended:
    """The rung that keeps the wanted share of the accuracy on every task, by the rule above; why, in a sentence."""
    last, failed = None, None
    for rung in rungs:
        if not rung.kept:
            why = "No rung is recommended: no task with right and wrong answers was measured."
            return Recommended(wanted=wanted, why=why)
        if any(k.low < wanted for k in rung.kept.values()):
            failed = rung
            break
        last = rung
    share = human.percent(wanted, 0 if round(100 * wanted) == round(100 * wanted, 6) else 1)
    less = f"{failed.share:g} does not ({_worst(failed)})" if failed else ""
    if last is None:
        return Recommended(wanted=wanted, why=f"No rung surely keeps {share} of the accuracy: {less}.")
    why = f"To keep {share} of the accuracy take the rung {last.share:g} ({last.folder}): it keeps {_worst(last)}"
    why += f", {less}." if failed else ", and no smaller one was made."
    return Recommended(wanted=wanted, folder=last.folder, why=why)


def _worst(rung: RungRecord) -> str:
    """What is kept of the task that lost most, by its interval."""
    task, kept = min(rung.kept.items(), key=lambda k: k[1].low)
    return f"{_kept(kept)} on {task}"


def _kept(kept: KeptRecord) -> str:
    if kept.value is None or kept.high is None:
        return "an unknown share"
    return f"{human.percent(kept.value)}, {100 * kept.low:.1f} to {100 * kept.high:.1f}"


# --------------------------------------------------------------------------------------------------------------- table


@dataclass(frozen=True)
class Size:
    """A model of ours: its name, its bytes, the folder of its answers."""

    name: str
    bytes: int
    stage: str


def models(run: RunRecord) -> Table:
    """The original, every rung (or the final model) and every rival, a row each; no rows where there are neither."""
    rungs, rivals, first = run.summary.ladder, run.summary.rivals, run.original
    if first is None or run.final is None or not (rungs or rivals):
        return Table((), ())
    tasks, timed = run.shares, any(r.latency is not None for r in rungs)
    header = ["model", "parameters", "share", "weights"]
    for task in tasks:
        header += [task, "minus the original"]
    header += ["decode"] if timed else []
    header += [f"ours minus it{f', {t}' if len(tasks) > 1 else ''}" for t in tasks] if rivals else []
    blank = [""] * (len(tasks) if rivals else 0)

    def row(name: str, params: int | None, stored: int | None, figures: list[str], *more: str) -> tuple[str, ...]:
        share = human.percent(human.ratio(params, first.params if first else None))
        return (name, human.count(params), share, human.size(stored), *figures, *more)

    def figures(evals: object, against: dict[str, Against]) -> list[str]:
        found = {e.task: e.text() for e in evals if e.task in tasks}  # type: ignore[attr-defined]
        return [c for t in tasks for c in (found.get(t, human.DASH), points(against.get(t)))]

    none = ["×1"] if timed else []
    rows = [row("original", first.params, first.cost.weight_bytes, figures(first.evals, {}), *none, *blank)]
    for rung in rungs:
        stage = next((s for s in run.stages if s.name == rung.stage), None)
        speed = speedup(run.at_rung(rung), "decode") if timed else None
        more = [speed.short() if speed else human.DASH] if timed else []
        name = f"rung {rung.share:g} ({rung.folder})"
        texts = figures(stage.evals if stage else (), rung.against)
        rows.append(row(name, rung.params, rung.weight_bytes, texts, *more, *blank))
    if not rungs:
        final = {t: a for t in tasks if (a := _paired(run, first.name, run.final.name, t)) is not None}
        rows.append(
            row("final", run.final.params, run.final.cost.weight_bytes, figures(run.final.evals, final), *blank)
        )
    for rival in rivals:
        minus = {t: a for t in tasks if (a := _paired(run, first.name, f"rivals/{rival.folder}", t)) is not None}
        ours = [against_it(run, rival, t) for t in tasks]
        more = [human.DASH] if timed else []
        name = f"{rival.name} ({rival.how})" if rival.how else rival.name
        rows.append(row(name, rival.params, rival.weight_bytes, figures(rival.evals, minus), *more, *ours))
    return Table(tuple(header), tuple(rows))


def points(found: Against | None) -> str:
    """A difference in points with its interval: −1.2 (−2.9 to +0.5)."""
    if found is None:
        return human.DASH
    return f"{human.points(found.difference)} ({human.points(found.low)} to {human.points(found.high)})"


def _paired(run: RunRecord, first: str, second: str, task: str) -> Against | None:
    return ahead(read_samples(run.path / first, task), read_samples(run.path / second, task))


def sizes(run: RunRecord) -> list[Size]:
    """Our models with known bytes, the largest first: the rungs, or the final one."""
    found = [(f"rung {r.share:g}", r.weight_bytes, r.stage) for r in run.summary.ladder]
    if not found and run.final is not None:
        found = [("final", run.final.cost.weight_bytes, run.final.name)]
    return [Size(name, stored, stage) for name, stored, stage in found if stored]


def nearest(run: RunRecord, rival: RivalRecord) -> Size | None:
    """Our model whose bytes are nearest to a rival's."""
    own = sizes(run)
    if not rival.weight_bytes or not own:
        return None
    return min(own, key=lambda s: abs(s.bytes / (rival.weight_bytes or 1) - 1))


def against_it(run: RunRecord, rival: RivalRecord, task: str) -> str:
    """Our model of the nearest bytes minus a rival, named where there are several."""
    ours = nearest(run, rival)
    if ours is None:
        return human.DASH
    name = f"{ours.name}: " if run.summary.ladder else ""
    return name + points(_paired(run, f"rivals/{rival.folder}", ours.stage, task))


# ----------------------------------------------------------------------------------------------------------- sentences


def sentences(run: RunRecord) -> tuple[str, ...]:
    """Which rung for a wanted accuracy, for a budget of bytes, for a speed; and what stands at equal bytes."""
    found, rungs = [], run.summary.ladder
    if run.summary.recommended is not None:
        found.append(run.summary.recommended.why)
    if rungs:
        fit = ", ".join(f"{r.share:g} from {human.size(r.weight_bytes)}" for r in rungs if r.weight_bytes)
        found.append(f"For a budget of bytes take the largest rung that fits: {fit}.")
        timed = [(r, s) for r in rungs if (s := speedup(run.at_rung(r), "decode")) is not None and s.low is not None]
        if timed:
            said = ", ".join(f"{r.share:g} up to {human.times(s.low or 1.0)}" for r, s in timed if not s.is_noise)
            fast = f"take the largest rung that surely has it: {said}" if said else "none is surely faster"
            found.append(f"For a speed (decoding, batch 1) {fast}.")
    if run.summary.rivals and (said := equal_bytes(run)):
        found.append(said)
    return tuple(found)


def equal_bytes(run: RunRecord) -> str:
    """One sentence on the rival and the model of ours that come nearest in bytes, whoever wins."""
    pairs = [(rival, ours) for rival in run.summary.rivals if (ours := nearest(run, rival)) is not None]
    if not pairs:
        return ""

    def apart(pair: tuple[RivalRecord, Size]) -> float:
        return abs(pair[1].bytes / (pair[0].weight_bytes or 1) - 1)

    rival, ours = min(pairs, key=apart)
    verdicts = [(t, _paired(run, f"rivals/{rival.folder}", ours.stage, t)) for t in run.shares]
    told = "; ".join(f"{_verdict(ours.name, rival.name, a)} on {t}" for t, a in verdicts if a is not None)
    if not told:
        return ""
    bytes_ = f"{ours.name} {human.size(ours.bytes)}, {rival.name} {human.size(rival.weight_bytes)}"
    if apart((rival, ours)) <= EQUAL:
        return f"At equal bytes ({bytes_}) {told}."
    return f"No rival has the bytes of a model of ours within {EQUAL:.0%}; of the nearest ({bytes_}) {told}."


def _verdict(ours: str, rival: str, a: Against) -> str:
    if a.low > 0:
        return f"{ours} is ahead by {points(a)} points"
    if a.high < 0:
        return f"{rival} is ahead: {ours} minus it is {points(a)} points"
    return f"the two cannot be told apart: {ours} minus {rival} is {points(a)} points"
