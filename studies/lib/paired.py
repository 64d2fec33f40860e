"""Intervals over seeds and questions, for accuracies and for paired differences on the same questions.

    interval([{"q1": 1.0, "q2": 0.0}, ...])          # one mapping a seed: question -> verdict, or difference of verdicts

Two things vary: the seed (data order, training) and the questions. With d_s the mean of seed s over its questions and S
seeds the estimate is d = mean_s d_s, and the interval is the wider of two, end by end:

    t:          d ± t(0.975, S - 1) * sd(d_1 .. d_S) / sqrt(S)
    bootstrap:  2.5 % and 97.5 % of d over 4,000 draws: S seeds with replacement, and questions with replacement, the
                same draw of questions for all seeds that were asked them
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean, median, stdev
from typing import Literal

import numpy as np
from scipy.stats import t as student

DRAWS, BOOTSTRAP_SEED, CONFIDENCE = 4000, 0, 0.95
Verdict = Literal["held", "did not hold", "undecided"]
BySeed = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % interval; `seeds` says over how many seeds."""

    mean: float
    low: float
    high: float
    seeds: int

    def verdict(self, bound: float, *, above: bool = False) -> Verdict:
        """Whether the quantity is at least (`above`: more than) `bound`.

        Held if the lower end is, did not hold if not even the upper end is, else undecided.
        """
        low, high = (end > bound if above else end >= bound for end in (self.low, self.high))
        return "held" if low else "undecided" if high else "did not hold"


def interval(by_seed: BySeed, pooled: tuple[float, int] | None = None) -> Interval:
    """The wider of t over seeds and bootstrap over seeds and questions.

    Args:
        by_seed: For every seed its questions' values.
        pooled: Another standard deviation between seeds and its degrees of freedom, from `pooled_sd`.
    """
    means = seed_means(by_seed)
    ends = [bootstrap(by_seed), t_interval(means, pooled)]
    return Interval(fmean(means), min(low for low, _ in ends), max(high for _, high in ends), len(means))


def seed_means(by_seed: BySeed) -> list[float]:
    """Mean of every seed."""
    return [fmean(values.values()) for values in by_seed]


def t_interval(means: Sequence[float], pooled: tuple[float, int] | None = None) -> tuple[float, float]:
    """Student's interval over seeds; one seed alone has no spread, and gives its value twice."""
    sd, df = pooled or ((stdev(means), len(means) - 1) if len(means) > 1 else (0.0, 0))
    half = t_quantile(0.5 + CONFIDENCE / 2, df) * sd / math.sqrt(len(means)) if df else 0.0
    return fmean(means) - half, fmean(means) + half


def pooled_sd(groups: Sequence[Sequence[float]]) -> tuple[float, int]:
    """Standard deviation within groups, sqrt(sum_g sum_s (d_gs - d_g)^2 / sum_g (S_g - 1)), and its degrees of freedom."""
    df = sum(len(g) - 1 for g in groups)
    squares = sum((x - fmean(g)) ** 2 for g in groups for x in g)
    return (math.sqrt(squares / df), df) if df else (0.0, 0)


def bootstrap(by_seed: BySeed) -> tuple[float, float]:
    """Percentiles of the mean over drawn seeds of the mean over drawn questions. The same for the same input."""
    ids = tuple(sorted({i for values in by_seed for i in values}))
    values = np.array([[v.get(i, 0.0) for i in ids] for v in by_seed], dtype=np.float32)
    asked = np.array([[float(i in v) for i in ids] for v in by_seed], dtype=np.float32)
    weights = _weights(len(ids))
    per_seed = (weights @ values.T) / np.maximum(weights @ asked.T, 1e-9)  # [draws, seeds]
    seeds = np.random.default_rng(BOOTSTRAP_SEED + 1).integers(len(by_seed), size=per_seed.shape)
    drawn = np.take_along_axis(per_seed, seeds, axis=1).mean(axis=1)
    tail = 50 * (1 - CONFIDENCE)
    return float(np.percentile(drawn, tail)), float(np.percentile(drawn, 100 - tail))


@lru_cache(maxsize=4)
def _weights(questions: int) -> np.ndarray:
    """How often each draw has each question [draws, questions]."""
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    draw = rng.integers(questions, size=(DRAWS, questions))
    return np.stack([np.bincount(row, minlength=questions) for row in draw]).astype(np.float32)


def difference(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    """Question by question, first minus second; ValueError unless both answered the same questions."""
    if set(first) != set(second):
        raise ValueError(
            f"not the same questions: {len(first)} and {len(second)}, {len(set(first) & set(second))} in common"
        )
    return {i: first[i] - second[i] for i in first}


def average(cells: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Question by question, the mean over cells that answered the same questions."""
    if any(set(c) != set(cells[0]) for c in cells):
        raise ValueError("the cells of one seed were not asked the same questions")
    return {i: fmean(c[i] for c in cells) for i in cells[0]}


def all_of(verdicts: Sequence[Verdict]) -> Verdict:
    """`held` if all held, `did not hold` if one did not."""
    if "did not hold" in verdicts:
        return "did not hold"
    return "held" if verdicts and all(v == "held" for v in verdicts) else "undecided"


def recovered_share(original: float, pruned: float, compensated: float) -> float:
    """Share of the loss increase by pruning that compensation takes back: (pruned - compensated) / (pruned - original)."""
    return (pruned - compensated) / (pruned - original)


def middle(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, smallest, largest."""
    return median(values), min(values), max(values)


@lru_cache(maxsize=64)
def t_quantile(p: float, df: int) -> float:
    """Quantile of Student's t."""
    return float(student.ppf(p, df))
