"""Statistics of right and wrong answers: Wilson interval, standard error, McNemar's test, paired difference.

Two models that answer the same questions are compared on those questions (McNemar 1947), not by two separate error
bars: only the questions on which they disagree say anything.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist


def stderr(correct: int, n: int) -> float:
    """Standard error of a share of right answers, sqrt(p (1 - p) / (n - 1)), as lm-eval computes it; 0 if n < 2."""
    if n < 2:
        return 0.0
    p = correct / n
    return math.sqrt(p * (1 - p) / (n - 1))


def wilson(correct: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval (1927) of a share; (0, 1) if nothing was asked.

    (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n): stays inside [0, 1], and is not empty at p = 0 or 1.
    """
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p, z2 = correct / n, z * z
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, middle - half), min(1.0, middle + half)


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
        z = NormalDist().inv_cdf(0.5 + confidence / 2)
        half = z * math.sqrt(b + c - (c - b) ** 2 / n) / n
        return max(-1.0, (c - b) / n - half), min(1.0, (c - b) / n + half)

    def mcnemar(self, mid_p: bool = False) -> float:
        """Two-sided p-value that neither model is better: `mcnemar(lost, gained)`."""
        return mcnemar(self.lost, self.gained, mid_p=mid_p)


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
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    margin = z * math.sqrt(variance) * (1 / math.sqrt(n) + 1 / math.sqrt(fresh))
    return second / first, (second - margin) / first


def mcnemar(lost: int, gained: int, *, mid_p: bool = False) -> float:
    """McNemar's exact two-sided test on the questions where two models disagree.

    Under "neither is better" the number of lost ones is Binomial(lost + gained, ½); p = min(1, 2 P(X <= min)).
    `mid_p` counts only half of P(X = min) (Fagerland et al. 2013: less conservative). 1.0 where nothing differs.
    """
    n, k = lost + gained, min(lost, gained)
    if n == 0:
        return 1.0
    term, below = 1, 1  # exact integers: C(n, i), and their sum up to i
    for i in range(k):
        term = term * (n - i) // (i + 1)
        below += term
    ways = 2 * below - (term if mid_p else 0)
    return min(1.0, ways / 2**n)


def pair(verdicts: Iterable[tuple[bool, bool]]) -> Paired:
    """Count (first right, second right) pairs."""
    cells = {(True, True): 0, (True, False): 0, (False, True): 0, (False, False): 0}
    for first, second in verdicts:
        cells[(bool(first), bool(second))] += 1
    return Paired(cells[(True, True)], cells[(True, False)], cells[(False, True)], cells[(False, False)])
