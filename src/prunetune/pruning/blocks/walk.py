"""What a pass over the data gathers of units that are blocks: a statistic of each, or moments of their readout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from jaxtyping import Float
from torch import Tensor, nn

from prunetune.common.device import Processes
from prunetune.models.axes import Axis
from prunetune.models.families import Family
from prunetune.pruning.blocks.units import ReadoutTap, blocks_of
from prunetune.pruning.criteria import Criterion, known
from prunetune.pruning.least_squares import Gram
from prunetune.pruning.statistics import statistic


class BlockPass:
    """A statistic of the units of one axis in one layer."""

    def __init__(
        self, layer: nn.Module, axis: Axis, family: Family, shape: Mapping[str, int], chosen: Criterion, reduce: str
    ) -> None:
        self.rule, self.readout = known(chosen.blocks), known(axis.readout)(family)
        self.units, self.stat = blocks_of(layer, axis, family, shape), statistic(reduce)

    def update(self, x: Float[Tensor, "tokens columns"]) -> None:
        """Add a batch of what the criterion needs of tokens, such as the readout's input."""
        self.stat.update(known(self.rule.value)(x, self.units))

    def join(self, processes: Processes) -> None:
        """Become the statistic of what all processes have seen."""
        self.stat.join(processes)

    def scores(self, layer: int, seed: int) -> Float[Tensor, " units"]:
        """A score for every unit of the layer, whose place is `layer`."""
        finish = self.rule.finish
        return (self.stat.finish() if finish is None else finish(None, self.units, layer, seed)).float().cpu()


class BlockMoments:
    """Second moments of the readouts of some axes in one layer; each readout is looked at once."""

    def __init__(self, layer: nn.Module, axes: Sequence[Axis], family: Family, eps: float) -> None:
        self.layer, self.axes, self.family, self.eps = layer, axes, family, eps
        self.grams: dict[str, Gram] = {}
        self.taps: dict[str, ReadoutTap] = {}

    def __enter__(self) -> BlockMoments:
        with ExitStack() as hooks:
            for name in {known(axis.readout)(self.family) for axis in self.axes}:
                module = self.layer.get_submodule(name)
                weight = self.layer.get_parameter(f"{name}.weight")
                self.grams[name] = Gram(weight.shape[1], weight.device)
                self.taps[name] = hooks.enter_context(ReadoutTap(module, self.family, self.eps))
            self.hooks = hooks.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.hooks.close()

    def update(self, real: Tensor) -> None:
        """Take what the readouts have seen of the batch in hand."""
        for name, tap in self.taps.items():
            self.grams[name].update(tap.taken(real)[0])

    def join(self, processes: Processes) -> None:
        """Become the moments over the tokens of all processes."""
        for _, gram in sorted(self.grams.items()):
            gram.join(processes)

    def scores(self, chosen: Criterion, shape: Mapping[str, int], layer: int, seed: int) -> dict[str, Tensor]:
        """{axis: a score for each of its units}. Call it once."""
        finish = known(known(chosen.blocks).finish)
        means = {name: gram.finish() for name, gram in self.grams.items()}
        return {
            axis.name: finish(
                means[known(axis.readout)(self.family)], blocks_of(self.layer, axis, self.family, shape), layer, seed
            ).cpu()
            for axis in self.axes
        }
