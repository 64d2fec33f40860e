"""The time that a run has left, and how fast its recovery is."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


def process_began() -> float:
    """When this process began, on the clock of `time.monotonic`."""
    import psutil

    age = time.time() - float(psutil.Process().create_time())
    return time.monotonic() - age


@dataclass(frozen=True)
class Clock:
    """A deadline.

    Attributes:
        within: Seconds of the whole run.
        spent: Of them in earlier starts.
        each: Seconds a token of each recovery method.
        least: Tokens that each gets at least in a round.
        after: Seconds that are needed after recovery, the timing of every rung among them.
        rung: Of them, the timing of one rung.
        rungs: Of the ladder.
        begun: When this start began, as `time.monotonic` has it: of a command, its process.
    """

    within: float
    spent: float
    each: tuple[float, ...]
    least: tuple[int, ...]
    after: float
    rung: float = 0.0
    rungs: int = 1
    begun: float = field(default_factory=time.monotonic)

    @property
    def gone(self) -> float:
        """Seconds of the run so far, earlier starts among them."""
        return time.monotonic() - self.begun + self.spent

    @property
    def remains(self) -> float:
        """Seconds until its end; never negative."""
        return max(0.0, self.within - self.gone)

    def left(self, rungs: int = 1) -> float:
        """Seconds that recovery may take from now on, so that all ends in time; never negative.

        Args:
            rungs: That are not reached yet: the others are timed, and their time is gone already.
        """
        timed = max(0, self.rungs - rungs) * self.rung
        return max(0.0, self.within - self.gone - (self.after - timed))
