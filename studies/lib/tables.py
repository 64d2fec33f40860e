"""A study's README and figure from its records alone: nothing is trained, no figure is typed by hand.

    python studies/lib/tables.py studies/01-loop-against-once         # writes README.md and figures/*.svg there

Claims in grid.yaml, each decided by the rule of `paired.Interval.verdict`:

    {of: default, over: once, bound: -0.01, scope: each}           # the paired difference, in every cell
    {of: default, over: once, bound: 0.05, scope: mean}            # ... its mean over the cells
    {of: default, over: once, above: 0, scope: mean}               # more than, where `bound` is at least
    {of: default, over: ptl, bound: 0.1, scope: mean, tokens: 40000}         # ... of one budget
    {of: default, over: ptl, bound: 0, scope: mean, against: next}           # `over` has the next larger budget
    {of: once-ls, over: once, bound: 0.5, scope: loss}             # median share of the loss increase taken back
    {of: ptl, over: original, bound: -0.02, scope: mean}           # against the untouched model
    {of: ptl, over: original, above: 0, scope: mean, round: 1}     # ... after the first round
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from cells import Grid, GridError, Record
from figure import accuracy_figure, rounds_figure
from paired import Interval, Verdict, all_of, middle, t_interval
from results import Place, Results

# ------------------------------------------------------------------------------------------------------------ claims


@dataclass(frozen=True)
class Decided:
    """A claim, what was measured, and the verdict."""

    text: str
    measured: str
    verdict: str


def decide(results: Results, claim: dict[str, Any]) -> Decided:
    """Apply the stated rule to one claim."""
    grid, of, over, scope, above = results.grid, claim["of"], claim["over"], claim["scope"], "above" in claim
    bound = float(claim["above"] if above else claim["bound"])
    if scope == "loss":
        shares = results.losses(of, over)
        text = f"{of} takes back at least {bound:.0%} of the loss that {over} gains by pruning (median of the cells, no training)"
        if not shares:
            return Decided(text, "–", "not measured")
        mid, low, high = middle(shares)
        full = len(shares) == len(results.shared(of, over)) * len(grid.seeds)
        verdict = ("held" if mid >= bound else "did not hold") if full else "undecided: not all cells are there"
        return Decided(text, f"{mid:.0%} (from {low:.0%} to {high:.0%}, {len(shares)} cells)", verdict)
    others: list[Place] = []
    each: list[Interval | None]
    budgets = [claim["tokens"]] if "tokens" in claim else grid.tokens
    places = [p for p in results.shared(of, over) if p[1] in budgets]
    where = f" at {budgets[0]:,} {grid.unit}" if "tokens" in claim else ""
    if "round" in claim:
        whole = results.after_round(of, claim["round"], places)
        where += f", after round {claim['round']}"
        each = []
    elif claim.get("against") == "next":
        after = dict(zip(grid.tokens, grid.tokens[1:], strict=False))
        places = [p for p in places if p[1] in after]
        others = [*places, *((s, after[t]) for s, t in places)]
        where += f", with {over} given the next larger budget"
        whole = results.mean_paired(of, over, places, lambda p: (p[0], after[p[1]]))
        each = []
    else:
        whole = results.mean_paired(of, over, places)
        each = [results.paired(of, over, p) for p in places]
    text = f"{of} - {over} {'>' if above else '>='} {100 * bound:+g} points, {'in every cell' if scope == 'each' else 'mean over the cells'}{where}"
    if scope == "mean":
        return Decided(text, points(whole), _verdict(whole, bound, above, results.seeds(of, over, [*places, *others])))
    if scope != "each" or "against" in claim or "round" in claim:
        raise GridError(f"claim {claim}: scope is each, mean or loss; `against` and `round` go with mean")
    verdicts = [_verdict(d, bound, above, results.seeds(of, over, [p])) for d, p in zip(each, places, strict=True)]
    lowest = min((d for d in each if d), key=lambda d: d.low, default=None)
    counted = ", ".join(f"{verdicts.count(v)} {v}" for v in dict.fromkeys(verdicts))
    complete = all(v in ("held", "did not hold", "undecided") for v in verdicts)
    known: list[Verdict] = [v for v in verdicts if v in ("held", "did not hold", "undecided")]
    verdict = all_of(known) if complete or "did not hold" in known else "undecided: not all cells are there"
    return Decided(text, f"cells: {counted}; lowest {points(lowest)}", verdict)


def _verdict(found: Interval | None, bound: float, above: bool, seeds: int) -> Any:
    if found is None:
        return "not measured"
    return found.verdict(bound, above=above) if found.seeds == seeds else f"undecided: {found.seeds} of {seeds} seeds"


# ---------------------------------------------------------------------------------------------------------- Markdown


def readme(results: Results) -> str:
    """The study's page."""
    grid, done = results.grid, len(results.records)
    cells = len(grid.cells())
    study = f"studies/{grid.folder.name}"
    commits = sorted({r["commit"] for r in results.records.values()})
    changed = sum(r["commit"].endswith("+") for r in results.records.values())
    made_with = f" (+: {changed} of {done} cells with uncommitted changes)" if changed else ""
    made = (
        f"commit {', '.join(commits) or '–'}"
        if len(commits) < 4
        else f"{len(commits)} commits (each record names its own)"
    )
    missing = [c.name for c in grid.cells() if (c.method, c.size, c.tokens, c.seed) not in results.records]
    lacks = f" Not measured yet: {', '.join(missing)}." if 0 < len(missing) <= 12 else ""
    hours = sum(r["wall_seconds"] for r in results.records.values()) / 3600
    ns = sorted({e["n"] for r in results.records.values() for e in r["final"]["evals"] if e["task"] == grid.task_name})
    parts = [
        f"<!-- Made by studies/lib/tables.py from records.jsonl. Do not edit: change grid.yaml and run {study}/tables -->",
        f"# {grid.title}",
        grid.about.strip(),
        f"`{study}/run` repeats everything (resumable), `{study}/tables` makes this page from `records.jsonl`. "
        f"{done} of {cells} cells measured, n = {' or '.join(f'{n:,}' for n in ns) or '–'} questions a seed, seeds "
        f"{seeds_text(grid)}, {hours:.1f} h of one core, {made}{made_with}.{lacks} "
        f"One cell again, the models' training, what + means: [studies/](../README.md). A cell is one method at one "
        f"size, budget and seed; a point is 1 % of the questions.",
        table(["method", "what it is"], [[m, grid.notes.get(m, f"`{grid.methods[m]}`")] for m in grid.methods]),
        "## Claims",
        table(
            ["claim", "measured (points, 95 % interval)", "verdict"],
            [[d.text, d.measured, f"**{d.verdict}**"] for d in (decide(results, c) for c in grid.claims)],
        ),
        rule(grid),
        *measured(results),
    ]
    return "\n\n".join(p for p in parts if p) + "\n"


def measured(results: Results) -> list[str]:
    """What was measured: a table of the methods where there is one size and budget, else a table of places for each figure."""
    grid, first = results.grid, first_method(results.grid)
    whole = results.original()
    original = f"The untouched model: {percent(whole)} ({whole.seeds if whole else 0} seeds). ![accuracy](figures/accuracy.svg)"
    tasks = {task: task_values(results, task) for task in other_tasks(results)}
    shown: dict[str, Callable[[str, Place], str]] = {
        "Accuracy, %": lambda m, p: percent(results.accuracy(m, p)),
        f"Paired differences: {first} minus the other, points": lambda m, p: points(results.paired(first, m, p)),
        "Rounds that were made (one figure a seed)": lambda m, p: (
            " ".join(str(rounds_of(r)) for r in results.of(m, p)) or "–"
        ),
        "Parameters left, % of the original's": lambda m, p: params_of(results.of(m, p)),
        **{f"{task} (mean over seeds and their range)": each for task, (_, each) in tasks.items()},
        "Loss on held-out solutions, nats: after the last cut → after recovery (mean over seeds; the same: recovery was undone)": (
            lambda m, p: losses_of(results.of(m, p))
        ),
        "What it cost: tokens really trained; seconds of a run (means over seeds)": lambda m, p: cost_of(
            results.of(m, p)
        ),
    }
    untouched = {
        f"{task} (mean over seeds and their range)": f"The untouched model: {v}." for task, (v, _) in tasks.items()
    }
    by_round = rounds_part(results) if grid.by_round else []
    if len(results.places) == 1:
        (place,) = results.places
        columns = {short(h): show for h, show in shown.items() if not h.startswith("Paired")}
        right, *others = columns.items()
        minus = (f"minus {first}'s", lambda m, p: "" if m == first else points(results.paired(m, first, p)))
        columns = dict([right, minus, *others])
        rows = [[m, *(show(m, place) for show in columns.values())] for m in grid.methods]
        said = " ".join(f"{task}: {v}" for task, (v, _) in tasks.items())
        return [
            f"## {place[0]:.0%}, {place[1]:,} {grid.unit}\n\n{original}" + (f" Its {said}." if said else ""),
            table(["method", *columns], rows),
            "Differences in points, paired by question. Losses are nats a token on held-out solutions, after the last cut → after recovery; "
            "the same: recovery was undone. Means over the seeds; ranges are of the seeds; rounds are one figure a seed.",
            *by_round,
        ]
    parts = []
    for heading, show in shown.items():
        paired = heading.startswith("Paired")
        methods = [m for m in grid.methods if not paired or m != first]
        last = (lambda m: points(results.mean_paired(first, m, results.places))) if paired else None
        note = original if heading == "Accuracy, %" else untouched.get(heading, "")
        parts += [f"## {heading}" + (f"\n\n{note}" if note else ""), by_place(results, methods, show, last)]
    before = next(i for i, p in enumerate(parts) if p.startswith("## Loss"))
    return [*parts[:before], *by_round, *parts[before:]]


def short(heading: str) -> str:
    """A section's heading as that of a column."""
    known = {"Accuracy": "accuracy, %", "Rounds": "rounds", "Parameters": "parameters left, %", "Loss": "loss"}
    known["What"] = "tokens; seconds"
    return known.get(re.split(r"[ ,]", heading)[0], heading.partition(" (")[0])


def seeds_text(grid: Grid) -> str:
    """0, 1, 2 (and 3, 4: a, b at 320,000 tokens)."""
    more = [
        f"{', '.join(map(str, m['seeds']))}: {', '.join(m['methods'])} at "
        f"{', '.join(f'{t:,}' for t in m['tokens'])} {grid.unit}"
        for m in grid.more
    ]
    return ", ".join(map(str, grid.seeds)) + "".join(f" (and {m})" for m in more)


def first_method(grid: Grid) -> str:
    """The method that the others are compared with: the first."""
    return next(iter(grid.methods))


def rule(grid: Grid) -> str:
    """The formula, in words."""
    spread = (
        "each cell's own seeds"
        if grid.spread == "own"
        else "the seeds of all sizes at the cell's budget (deviations from each cell's mean, pooled)"
    )
    if len(grid.sizes) == 1:
        spread = "the cell's seeds"
    return (
        "Rule: a claim held if the lower end of the 95 % interval reaches its bound, did not hold if the upper end lies below it, else it is "
        "undecided (also while a seed is missing). Interval: with d_s the mean paired difference of seed s on the same questions and S seeds, "
        f"the wider, end by end, of mean ± t(0.975) sd / √S with sd from {spread}, and the percentiles of 4,000 bootstrap draws of seeds and of "
        "questions (the same draw of questions for every seed that was asked them). Means over cells average question by question within a "
        "seed first. See `studies/lib/paired.py`."
    )


def by_place(
    results: Results, methods: list[str], show: Callable[[str, Place], str], last: Callable[[str], str] | None = None
) -> str:
    """A table with one row a size and budget, one column a method."""
    grid = results.grid
    rows = [[f"{s:.0%}", f"{t:,}", *(show(m, (s, t)) for m in methods)] for s, t in results.places]
    if last:
        rows.append(["mean", "", *(last(m) for m in methods)])
    return table(["size", grid.unit, *methods], rows)


def other_tasks(results: Results) -> list[str]:
    """What else the models were measured on, in the recipe's order."""
    found = [e["task"] for r in results.records.values() for e in r["final"]["evals"]]
    return [task for task in dict.fromkeys(found) if task != results.grid.task_name]


def task_values(results: Results, task: str) -> tuple[str, Callable[[str, Place], str]]:
    """Another task's value, mean over seeds with the seeds' range: the untouched model's, and what gives a method's."""

    def values(records: list[Record], of: str) -> str:
        found = [e for r in records for e in r[of]["evals"] if e["task"] == task]
        if not found:
            return "–"
        share = found[0]["metric"] != "perplexity"
        each = [100 * e["value"] if share else e["value"] for e in found]
        spread = f" ({min(each):.4g} to {max(each):.4g})" if len(each) > 1 else ""
        return f"{fmean(each):.4g}{' %' if share else ''}{spread}" + (f", n = {found[0]['n']:,}" if share else "")

    original = values(list({r["seed"]: r for r in results.records.values()}.values()), "original")
    return original, lambda m, p: values(results.of(m, p), "final")


def rounds_part(results: Results) -> list[str]:
    """Heading, figure and one table a place: accuracy after every round, with the parameters that it left."""
    parts = [
        "## Accuracy after every round, % (parameters left, %)\n\nMeans over seeds with Student's interval over the seeds; "
        "a seed with fewer rounds is in the rounds that it has. ![by round](figures/rounds.svg)"
    ]
    methods = results.grid.by_round
    for place in results.places:
        found = {m: results.rounds(m, place) for m in methods}
        rows = [
            [str(i), *(round_text(found[m][i]) if i < len(found[m]) else "–" for m in methods)]
            for i in range(max(map(len, found.values())))
        ]
        parts.append(f"{place[0]:.0%}, {place[1]:,} {results.grid.unit}:\n\n" + table(["round", *methods], rows))
    return parts


def round_text(seeds: list[tuple[float, float]]) -> str:
    """71.2 [70.1, 72.3] (90)."""
    means = [value for _, value in seeds]
    return f"{percent(Interval(fmean(means), *t_interval(means), len(means)))} ({100 * fmean(s for s, _ in seeds):.0f})"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines)


def percent(found: Interval | None) -> str:
    """71.2 [70.1, 72.3], of a share: no end of an interval lies beyond 0 or 100."""
    if found is None:
        return "–"
    return f"{100 * found.mean:.1f} [{100 * max(found.low, 0.0):.1f}, {100 * min(found.high, 1.0):.1f}]"


def points(found: Interval | None) -> str:
    """+1.2 [-0.3, +2.7], of a difference."""
    return "–" if found is None else f"{100 * found.mean:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"


def rounds_of(record: Record) -> int:
    """Rounds that were kept."""
    return sum(r["verdict"]["accepted"] for r in record["rounds"])


def params_of(records: list[Record]) -> str:
    """59.6, or 58.1 to 59.6."""
    shares = sorted({f"{100 * r['params_ratio']:.1f}" for r in records}, key=float)
    return " to ".join(dict.fromkeys((shares[0], shares[-1]))) if shares else "–"


def losses_of(records: list[Record]) -> str:
    """0.812 → 0.204."""
    pruned = [r["pruned_loss"] for r in records if r["pruned_loss"] is not None]
    return f"{fmean(pruned):.3f} → {fmean(r['held_out_loss'] for r in records):.3f}" if pruned else "–"


def cost_of(records: list[Record]) -> str:
    """39,998; 71 s."""
    if not records:
        return "–"
    return f"{fmean(r['recovery_tokens'] for r in records):,.0f}; {fmean(sum(r['seconds'].values()) for r in records):.0f} s"


def write(folder: Path) -> Path:
    """README.md and figures."""
    results = Results.read(Grid.read(folder))
    (folder / "figures").mkdir(exist_ok=True)
    grid = results.grid
    lines = {
        (m, s): [(t, i) for t in grid.tokens if (i := results.accuracy(m, (s, t)))]
        for m in grid.methods
        for s in grid.sizes
    }
    methods = list(grid.methods)
    accuracy_figure(lines, grid.sizes, methods, results.original(), grid.unit, folder / "figures" / "accuracy.svg")
    if grid.by_round:
        walks = {(m, p): results.rounds(m, p) for m in grid.by_round for p in results.places}
        rounds_figure(walks, results.places, grid.by_round, grid.unit, folder / "figures" / "rounds.svg")
    path = folder / "README.md"
    path.write_text(readme(results), encoding="utf-8")
    return path


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, nargs="+")
    for folder in parser.parse_args().study:
        print(write(folder.resolve()))


if __name__ == "__main__":
    main()
