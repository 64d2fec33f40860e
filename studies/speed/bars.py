"""What the scripts here share: a verdict on a bar; and, when imported before torch, one thread and the data's place."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("PRUNETUNE_DATA", str(Path(__file__).resolve().parents[3] / "shared" / "data"))


def verdict(what: str, value: float, *, at_most: float | None = None, at_least: float | None = None) -> bool:
    """Print one line: what was measured, the bar, and whether it holds."""
    holds = (at_most is None or value <= at_most) and (at_least is None or value >= at_least)
    bar = " and ".join(
        f"{word} {limit:g}" for word, limit in (("at most", at_most), ("at least", at_least)) if limit is not None
    )
    load = os.getloadavg()[0]
    print(
        f"{what}: {value:.3f} (bar: {bar}): {'HOLDS' if holds else 'MISSED'} (load of the last minute {load:.1f})",
        flush=True,
    )
    return holds
