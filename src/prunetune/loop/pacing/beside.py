"""What a run takes beside its work: the report, and latency, which is timed until its interval is narrow.

Others take `reporting` (seconds, timed) and `latency_range` (seconds by how noisy the machine is, pure).
"""

from __future__ import annotations

import time

from prunetune.common.stats import MOST_LOOKS
from prunetune.evaluation.latency import LEAST, PATIENCE_S
from prunetune.report.figures.draw import blank, plot
from prunetune.report.speed import ENOUGH

FIGURES = 6
"""Of a report, about."""
BOTH, BATCHES = 2, 2
"""Models that are timed in turns, at so many batch sizes."""


def reporting() -> float:
    """Seconds of a report: one figure is drawn, and counted for all. The first of a process is slower, and is drawn."""
    start = time.perf_counter()
    plot("blank", "", "", lambda: blank(3.0)[0])
    return FIGURES * (time.perf_counter() - start)


def latency_range(repeats: int, each: float) -> tuple[float, float]:
    """Seconds that timing takes at least and at most.

    Args:
        repeats: As the recipe has it; from `ENOUGH` on they are doubled until the ratio is known, or patience ends.
        each: Seconds of one timing of one model, at all batch sizes together.
    """
    if repeats < ENOUGH:
        return (once := BOTH * (repeats + 1) * each), once
    counts = [BOTH * (max(repeats, LEAST) * 2**look + 1) for look in range(MOST_LOOKS)]
    patient = [n for n in counts[:-1] if n * each <= BATCHES * PATIENCE_S]
    return counts[0] * each, counts[len(patient)] * each
