"""The records of a study, read and combined: accuracies, paired differences, figures by round. Nothing is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from cells import ORIGINAL, Grid, GridError, Record
from paired import Interval, average, difference, interval, pooled_sd, recovered_share, seed_means, t_interval

Place = tuple[float, int]  # size, tokens


@dataclass
class Results:
    """The records of a grid, by method, size, budget and seed."""

    grid: Grid
    records: dict[tuple[str, float, int, int], Record]
    _right: dict[str, dict[str, float]] = field(default_factory=dict)

    @staticmethod
    def read(grid: Grid) -> Results:
        """All that is there."""
        return Results(grid, {(c.method, c.size, c.tokens, c.seed): r for c, r in grid.finished()})

    @property
    def places(self) -> list[Place]:
        """Sizes and budgets."""
        return [(s, t) for s in self.grid.sizes for t in self.grid.tokens]

    def of(self, method: str, place: Place) -> list[Record]:
        """The records of a method's seeds that a row shows; of `ORIGINAL`, any method's (all measured the same model)."""
        return [r for seed in self.grid.seeds_of(method, place[1]) if (r := self._one(method, place, seed))]

    def _one(self, method: str, place: Place, seed: int) -> Record | None:
        if method == ORIGINAL:
            return next((r for (*_, s), r in self.records.items() if s == seed), None)
        size = self.grid.at(method, place[0])
        return None if size is None else self.records.get((method, size, place[1], seed))

    def shared(self, of: str, over: str) -> list[Place]:
        """The places where the grid has both methods."""
        asked = [m for m in (of, over) if m != ORIGINAL]
        return [p for p in self.places if all(self.grid.at(m, p[0]) is not None for m in asked)]

    def seeds(self, of: str, over: str, places: Sequence[Place]) -> int:
        """How many seeds a comparison has once all its cells are measured: those that both methods have at every place."""
        return sum(
            all(s in self.grid.seeds_of(m, t) for m in (of, over) for _, t in places) for s in self.grid.all_seeds
        )

    def right(self, record: Record, of: str = "final") -> dict[str, float]:
        """A cell's verdicts."""
        return self._right.setdefault(f"{record['cell']} {of}", self.grid.verdicts(record[of]))

    def accuracy(self, method: str, place: Place) -> Interval | None:
        """Mean over seeds with its interval."""
        found = [self.right(r) for r in self.of(method, place)]
        return interval(found) if found else None

    def original(self) -> Interval | None:
        """The untouched model, once a seed."""
        one = {r["seed"]: r for r in self.records.values()}
        found = [self.grid.verdicts(one[s]["original"]) for s in sorted(one)]
        return interval(found) if found else None

    def differences(self, of: str, over: str, place: Place, other: Place | None = None) -> dict[int, dict[str, float]]:
        """Seed -> question -> verdict of `of` minus verdict of `over` (at `other`)."""
        which = ORIGINAL if over == ORIGINAL else "final"
        first = {r["seed"]: r for r in self.of(of, place)}
        second = {r["seed"]: r for r in self.of(over, other or place)}
        return {s: difference(self.right(first[s]), self.right(second[s], which)) for s in first if s in second}

    def paired(self, of: str, over: str, place: Place) -> Interval | None:
        """One cell's difference."""
        found = list(self.differences(of, over, place).values())
        if not found:
            return None
        pooled = None
        if self.grid.spread == "pooled":
            beside = [self.differences(of, over, (s, place[1])) for s in self.grid.sizes]
            pooled = pooled_sd([seed_means(list(d.values())) for d in beside if d])
        return interval(found, pooled if pooled and pooled[1] else None)

    def mean_paired(
        self, of: str, over: str, places: Sequence[Place], against: Callable[[Place], Place] = lambda p: p
    ) -> Interval | None:
        """The mean difference over cells: averaged question by question within a seed, over the seeds that have all."""
        found = [self.differences(of, over, p, against(p)) for p in places]
        seeds = [s for s in self.grid.all_seeds if found and all(s in d for d in found)]
        return interval([average([d[s] for d in found]) for s in seeds]) if seeds else None

    def losses(self, of: str, over: str) -> list[float]:
        """Share of the loss increase that `of` takes back of what `over` lost by pruning, before any training."""
        keys = [(p, s) for p in self.shared(of, over) for s in self.grid.seeds]
        pairs = [(self._one(of, p, s), self._one(over, p, s)) for p, s in keys]
        return [
            recovered_share(b["original"]["held_out_loss"], b["pruned_loss"], a["pruned_loss"])
            for a, b in pairs
            if a and b
        ]

    # ---------------------------------------------------------------------------------------------------- by round

    def rounds(self, method: str, place: Place) -> list[list[tuple[float, float]]]:
        """Round 0 (the untouched model) and every round kept -> each seed's (share of the parameters, accuracy)."""
        found: list[list[tuple[float, float]]] = []
        for record in self.of(method, place):
            whole = record["original"]["params"]
            kept = [r for r in record["rounds"] if r["verdict"]["accepted"]]
            for i, measured in enumerate([record["original"], *kept]):
                found += [[]] if i == len(found) else []
                found[i].append((measured["params"] / whole, self._value(measured)["value"]))
        return found

    def after_round(self, method: str, number: int, places: Sequence[Place]) -> Interval | None:
        """Accuracy after so many rounds minus the untouched model's, on the same questions: Student's t over seeds."""
        by_seed: dict[int, list[float]] = {}
        for record in (r for p in places for r in self.of(method, p)):
            kept = [r for r in record["rounds"] if r["verdict"]["accepted"]]
            reached = [record["original"], *kept][: number + 1][-1]  # the last one, if there were fewer
            before, after = self._value(record["original"]), self._value(reached)
            if before["n"] != after["n"]:
                raise GridError(
                    f"{record['cell']}: rounds answered {after['n']} of {before['n']}: set evaluate.round_n"
                )
            by_seed.setdefault(record["seed"], []).append(after["value"] - before["value"])
        means = [fmean(v) for v in by_seed.values() if len(v) == len(places)]
        return Interval(fmean(means), *t_interval(means), len(means)) if means else None

    def _value(self, measured: Record) -> Record:
        found: Record = next(e for e in measured["evals"] if e["task"] == self.grid.task_name)
        return found
