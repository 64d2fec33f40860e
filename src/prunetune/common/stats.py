"""Statistics of right and wrong answers and of timings: Wilson interval, standard errors, McNemar, paired ratios.

Two models that answer the same questions are compared on those questions (McNemar 1947), not by two separate error
bars: only the questions on which they disagree say anything. Two models that are timed are compared within one repeat.
The distributions are scipy's, which is imported where it is needed: it takes the better part of a second.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

LOOKS = MOST_LOOKS = 3
"""Timings may be looked at so often before they are ended; each look's interval is then so much wider (Bonferroni)."""


def stderr(correct: int, n: int) -> float:
    """Standard error of a share of right answers, sqrt(p (1 - p) / (n - 1)), as lm-eval computes it; 0 if n < 2."""
    if n < 2:
        return 0.0
    p = correct / n
    return math.sqrt(p * (1 - p) / (n - 1))


def mean_stderr(values: Sequence[float]) -> float:
    """Standard error of a mean, from the sample's own spread (n - 1); 0 if n < 2."""
    n = len(values)
    if n < 2:
        return 0.0
    mean = math.fsum(values) / n
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)


def quantile(confidence: float) -> float:
    """Z of a two-sided interval under the normal distribution: 1.96 for 0.95."""
    from scipy.stats import norm

    return float(norm.ppf(0.5 + confidence / 2))


def wilson(correct: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval (1927) of a share; (0, 1) if nothing was asked.

    It stays inside [0, 1], and is not empty where all or none of the answers are right.
    """
    from scipy.stats import binomtest

    if n == 0:
        return 0.0, 1.0
    found = binomtest(correct, n).proportion_ci(confidence, method="wilson")
    return float(found.low), float(found.high)


@dataclass(frozen=True)
class Ratio:
    """A ratio of paired times, and its interval; None where there are too few pairs for one."""

    value: float
    low: float | None
    high: float | None
    n: int


def paired_ratio(old: Sequence[float], new: Sequence[float], *, confidence: float = 0.95, looks: int = LOOKS) -> Ratio:
    """How many times as long the old model takes as the new: the median over repeats, with its exact interval.

    The interval is that of a median from the order of the values alone (binomial, as in a sign test). Where it was
    drawn by lot which of the two came first, a slow moment is as likely to hit the one as the other. So the interval
    holds the true ratio as often as it says whatever the noise is like: bursts, drift, long tails.

    Args:
        old: Times of one model, a repeat each, all above zero.
        new: Those of the other in the same repeats.
        confidence: Of the interval, however often one looks.
        looks: How often the timings may have been looked at, and more taken, before they were ended.
    """
    from scipy.stats import binom

    logs = sorted(math.log(a / b) for a, b in zip(old, new, strict=True))
    n = len(logs)
    if not n:
        raise ValueError("no pairs of times")
    middle = (logs[(n - 1) // 2] + logs[n // 2]) / 2
    outside = int(binom.ppf((1 - confidence) / looks / 2, n, 0.5))  # P(X < outside) does not exceed half of what may be
    if outside < 1:
        return Ratio(math.exp(middle), None, None, n)
    return Ratio(math.exp(middle), math.exp(logs[outside - 1]), math.exp(logs[n - outside]), n)


@dataclass(frozen=True)
class Paired:
    """How two models' verdicts on the same questions relate.

    Attributes:
        both: Questions that both answered right.
        lost: Right in the first alone.
        gained: Right in the second alone.
        neither: Wrong in both.
    """

    both: int
    lost: int
    gained: int
    neither: int

    @property
    def n(self) -> int:
        """Questions in all."""
        return self.both + self.lost + self.gained + self.neither

    @property
    def difference(self) -> float:
        """Accuracy of the second minus that of the first, as a share of 1."""
        return (self.gained - self.lost) / self.n if self.n else 0.0

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Interval of `difference` (Wald for paired shares, half a question added to each cell: Agresti and Min 2005).

        With b = lost + ½, c = gained + ½, N = n + 2: (c - b)/N ± z sqrt(b + c - (c - b)²/N) / N, cut to [-1, 1].
        """
        b, c, n = self.lost + 0.5, self.gained + 0.5, self.n + 2.0
        z = quantile(confidence)
        half = z * math.sqrt(b + c - (c - b) ** 2 / n) / n
        return max(-1.0, (c - b) / n - half), min(1.0, (c - b) / n + half)

    def mcnemar(self, mid_p: bool = False) -> float:
        """Two-sided p-value that neither model is better: `mcnemar(lost, gained)`."""
        return mcnemar(self.lost, self.gained, mid_p=mid_p)


def kept_interval(p: Paired, confidence: float = 0.95) -> tuple[float, float | None]:
    """Ends of the share p2 / p1 of the first model's accuracy that the second keeps, on the same questions (Fieller).

    With half a question more in each cell of disagreement. The upper end is None where there is none: where the first
    model's own accuracy cannot be told from zero.
    """
    both, lost, gained, n = float(p.both), p.lost + 0.5, p.gained + 0.5, p.n + 1.0
    first, second = (both + lost) / n, (both + gained) / n
    return _fieller(
        first, second, first * (1 - first) / n, second * (1 - second) / n, (both / n - first * second) / n, confidence
    )


def kept_interval_apart(
    before: tuple[int, int], after: tuple[int, int], confidence: float = 0.95
) -> tuple[float, float | None]:
    """The same from (right, asked) of two models alone, as if their questions had nothing to do with each other."""
    (a, n), (b, m) = ((right + 0.5, asked + 1.0) for right, asked in (before, after))
    return _fieller(a / n, b / m, a / n * (1 - a / n) / n, b / m * (1 - b / m) / m, 0.0, confidence)


def _fieller(
    first: float, second: float, var_first: float, var_second: float, covariance: float, confidence: float
) -> tuple[float, float | None]:
    """All r for which second - r * first is not told from zero: ends of a quadratic, cut at zero."""
    z2 = quantile(confidence) ** 2
    a, b, c = first**2 - z2 * var_first, first * second - z2 * covariance, second**2 - z2 * var_second
    root = math.sqrt(max(0.0, b * b - a * c))
    if a <= 0:
        return (max(0.0, (b - root) / a) if a < 0 < c else 0.0), None
    return max(0.0, (b - root) / a), (b + root) / a


def kept_share(
    verdicts: Iterable[tuple[bool, bool]], wanted: float, *, fresh: int, confidence: float = 0.95
) -> tuple[float, float]:
    """The share r = p2 / p1 of the first model's accuracy that the second keeps, and its lower end on fresh questions.

    From the paired residuals second - wanted * first, whose mean is p2 - wanted * p1 (Fieller's way to a ratio), with
    half a question added to each of the two cells of disagreement. The margin is that of these questions and that of
    another `fresh` ones together: a model accepted by it is expected to keep its promise when it is tested anew.

    Args:
        verdicts: (first right, second right) of each question.
        wanted: The share that is asked for; the lower end is exact where it equals this.
        fresh: Questions of the later test.
        confidence: Of each of the two intervals.
    """
    p = pair(verdicts)
    cells = {(1, 1): p.both, (1, 0): p.lost + 0.5, (0, 1): p.gained + 0.5, (0, 0): p.neither}
    n = sum(cells.values())
    first = sum(c * x for (x, _), c in cells.items()) / n
    second = sum(c * y for (_, y), c in cells.items()) / n
    variance = sum(c * (y - wanted * x - (second - wanted * first)) ** 2 for (x, y), c in cells.items()) / n
    z = quantile(confidence)
    margin = z * math.sqrt(variance) * (1 / math.sqrt(n) + 1 / math.sqrt(fresh))
    return second / first, (second - margin) / first


def mcnemar(lost: int, gained: int, *, mid_p: bool = False) -> float:
    """McNemar's exact two-sided test on the questions where two models disagree.

    Under "neither is better" the number of lost ones is Binomial(lost + gained, ½); p = min(1, 2 P(X <= min)).
    `mid_p` counts only half of P(X = min) (Fagerland et al. 2013: less conservative). 1.0 where nothing differs.
    """
    from scipy.stats import binom

    n, k = lost + gained, min(lost, gained)
    if n == 0:
        return 1.0
    below = float(binom.cdf(k, n, 0.5))
    return min(1.0, 2 * below - (float(binom.pmf(k, n, 0.5)) if mid_p else 0.0))


def pair(verdicts: Iterable[tuple[bool, bool]]) -> Paired:
    """Count (first right, second right) pairs."""
    cells = {(True, True): 0, (True, False): 0, (False, True): 0, (False, False): 0}
    for first, second in verdicts:
        cells[(bool(first), bool(second))] += 1
    return Paired(cells[(True, True)], cells[(True, False)], cells[(False, True)], cells[(False, False)])
