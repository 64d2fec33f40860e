"""Numbers as people read them: 135 M, 6.10 T, 2 h 05 min, 70.6 % ± 1.3; a dash where nothing was recorded."""

from __future__ import annotations

import re
from collections.abc import Callable

from prunetune.common.stats import wilson

DASH = "–"
# Metrics that are shares of 1, higher being better; any other (a perplexity, BLEU) is shown as the number that it is.
_SHARE = re.compile(r"(?:^|_)(?:acc|accuracy|em|exact_match|f1|math_verify|pass)(?=[_@]|$)")
Steps = tuple[tuple[float, float, str], ...]
"""(from which number on, what it is divided by, unit), the largest first."""

_COUNTS: Steps = ((1e12, 1e12, "T"), (1e9, 1e9, "B"), (1e6, 1e6, "M"), (1e4, 1e3, "k"))
_SI: Steps = tuple((10.0**p, 10.0**p, unit) for p, unit in ((15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")))
_BYTES: Steps = tuple((10.0**p, 10.0**p, unit) for p, unit in ((12, "TB"), (9, "GB"), (6, "MB"), (3, "kB")))


def _three(x: float) -> str:
    """Three significant digits without an exponent."""
    digits = 0 if abs(x) >= 100 else 1 if abs(x) >= 10 else 2
    return f"{x:,.{digits}f}"


def _scaled(n: float | None, steps: Steps, small: Callable[[float], str]) -> str:
    """A number in the largest unit that it reaches; `small` writes what reaches none."""
    if n is None:
        return DASH
    return next((f"{_three(n / by)} {unit}" for least, by, unit in steps if abs(n) >= least), small(n))


def count(n: float | None) -> str:
    """A count in thousands, millions or billions: 134 M, 5.01 B."""
    return _scaled(n, _COUNTS, lambda n: f"{n:,.0f}")


def flops(n: float | None) -> str:
    """FLOPs with an SI prefix, as the paper prints them: 6.10 T."""
    return _scaled(n, _SI, _three)


def size(n: float | None) -> str:
    """Bytes in kB, MB or GB (powers of ten)."""
    return _scaled(n, _BYTES, lambda n: f"{n:.0f} B")


def duration(seconds: float | None) -> str:
    """Seconds as 4.2 s, 3 min 10 s, 2 h 05 min."""
    if seconds is None:
        return DASH
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def percent(share: float | None, digits: int = 1) -> str:
    """A share as a percentage."""
    return DASH if share is None else f"{100 * share:.{digits}f} %"


def accuracy(value: float | None, stderr: float | None = None, n: int | None = None) -> str:
    """An accuracy (share of 1) with its standard error: 70.6 % ± 1.3.

    Where none or all of n answers are right there is no such error, and Wilson's 95 % interval stands in its place:
    0.0 % (0.0 to 16.1).
    """
    if value is None:
        return DASH
    if n and (n < 2 or not 0 < value < 1):
        low, high = wilson(round(value * n), n)
        return f"{percent(value)} ({100 * low:.1f} to {100 * high:.1f})"
    return percent(value) if not stderr else f"{percent(value)} ± {100 * stderr:.1f}"


def is_share(metric: str) -> bool:
    """Whether a metric (`accuracy`, lm-eval's `exact_match,strict-match`) is a share of 1, and not a perplexity."""
    return bool(_SHARE.search(metric.partition(",")[0]))


def metric(name: str) -> str:
    """A metric's name in words: `exact_match,strict-match` is an exact match."""
    return name.partition(",")[0].replace("_", " ")


def measured(value: float | None, stderr: float | None = None, metric: str = "accuracy", n: int | None = None) -> str:
    """A task's figure with its standard error: 70.6 % ± 1.3 of a share of n answers, 12.35 ± 0.21 of a perplexity."""
    if is_share(metric) or value is None:
        return accuracy(value, stderr, n)
    digits = 1 if abs(value) >= 100 else 2
    return f"{value:,.{digits}f}" + ("" if stderr is None else f" ± {stderr:,.{digits}f}")


def ratio(new: float | None, old: float | None) -> float | None:
    """The ratio new / old, or None where either is missing or old is zero."""
    return None if new is None or not old else new / old


def times(x: float | None) -> str:
    """A factor: 1.34×."""
    return DASH if x is None else f"{x:.2f}×"


def p_value(p: float) -> str:
    """A probability: p = 0.032, or p < 0.001."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def points(share: float) -> str:
    """A difference of shares in points with its sign: −5.4, +1.7."""
    text = f"{100 * share:+.1f}".replace("-", "−")
    return "0.0" if text in ("+0.0", "−0.0") else text
