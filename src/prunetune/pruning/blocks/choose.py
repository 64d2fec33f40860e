"""Which units go, of axes whose units are blocks: the lowest scores, as many in every layer and group. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from prunetune.errors import OutOfReach
from prunetune.models.axes import axis_of

Row = Sequence[float]
Drops = dict[str, dict[int, tuple[int, ...]]]


@dataclass(frozen=True)
class Others:
    """What is asked of axes other than layers and neurons.

    Attributes:
        amounts: Axis -> how many units go, from every layer (and from every group that they are in).
        scores: Axis -> [layers][units]; low = redundant.
        sizes: How many units of these axes, and of those that they are in, the model has.
    """

    amounts: Mapping[str, int] = field(default_factory=dict)
    scores: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)

    @property
    def used(self) -> dict[str, int]:
        """The sizes that a plan must name: of what goes, and of what that is counted in."""
        names = {of for name, n in self.amounts.items() if n for of in axis_of(name).counts}
        return {name: self.sizes[name] for name in sorted(names) if name in self.sizes}

    def drops(self, layers: Sequence[int]) -> Drops:
        """Axis -> layer -> units to remove. OutOfReach: so many cannot go, or nobody scored them."""
        found: Drops = {}
        for name in sorted(
            (n for n, count in self.amounts.items() if count), key=lambda n: axis_of(n).within is not None
        ):
            axis, count = axis_of(name), self.amounts[name]
            if name not in self.scores or not all(self.sizes.get(of) for of in axis.counts):
                raise OutOfReach(
                    f"there are no scores of {name}",
                    fix=f"score them: `prunetune score --axis {name}`, `score(more=…)`",
                )
            each = self.sizes[name]
            if not 0 < count < each:
                raise OutOfReach(f"this many {axis.called[1]} cannot go", value=count, valid=f"0 to {each - 1}")
            within = found.get(axis.within or "", {})
            found[name] = {i: _lowest(self.scores[name][i], each, count, within.get(i, ())) for i in layers}
        return found


def _lowest(row: Row, each: int, count: int, whole: Sequence[int]) -> tuple[int, ...]:
    """Of every group of `each` units, but for those that go as a whole, the `count` lowest."""
    starts = [start for start in range(0, len(row), each) if start // each not in whole]
    chosen = [sorted(range(start, start + each), key=lambda j: (row[j], j))[:count] for start in starts]
    return tuple(sorted(j for group in chosen for j in group))
