"""What a pass over the data gathers of one decoder layer by hooks, and the scores that come of it.

    seen = LayerPass(layer, index, asked)
    with seen.hooked():
        for batch in batches: seen.at = places_of(batch["attention_mask"]); ...   # the layer runs
    seen.neurons(), seen.change, seen.others()

The hooks look at the layer's own input and output: `hidden_states[-1]` of transformers is taken after the final norm
and is wrong for the last layer. Inside the hooks autocast is off, so that products stay in fp32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

from prunetune.common.device import Processes
from prunetune.models.axes import Axis
from prunetune.models.families import Family
from prunetune.models.finite import layer_overflow
from prunetune.pruning.blocks.walk import BlockPass
from prunetune.pruning.criteria import Criterion, layer_criterion
from prunetune.pruning.experts.walk import ExpertsTap
from prunetune.pruning.statistics import LayerChange, Statistic, Vote, block_rows, neurons_of, statistic, vote_scores


@dataclass(frozen=True)
class Asked:
    """What is to be scored, and how.

    Attributes:
        family: Of the model.
        chosen: The neurons' criterion.
        reduce: The reduction over tokens.
        layers_by: A name of `criteria.LAYER_CRITERIA`.
        axes: Other axes whose units are scored in the same pass.
        shape: Of the model.
        vote_share: k of `ptl_vote`, as a share of the width.
        seed: For `random`.
    """

    family: Family
    chosen: Criterion
    reduce: str
    layers_by: str
    axes: tuple[Axis, ...]
    shape: Mapping[str, int]
    vote_share: float
    seed: int


@dataclass(frozen=True)
class Places:
    """Of the batch in hand, flat places.

    Attributes:
        real: Of the real tokens; None: all are.
        last: Of each sample's last real token.
    """

    real: Int64[Tensor, " tokens"] | None
    last: Int64[Tensor, " samples"]


def places_of(mask: Shaped[Tensor, "batch places"]) -> Places:
    """Where the real tokens of a batch are, padded on either side."""
    mask = mask.bool()
    real = None if bool(mask.all()) else mask.flatten().nonzero().squeeze(1)
    places = torch.arange(mask.shape[1], device=mask.device)
    rows = torch.arange(mask.shape[0], device=mask.device) * mask.shape[1]
    return Places(real, (mask * places).amax(1) + rows)


class LayerPass:
    """What a pass gathers of one layer.

    Args:
        layer: A decoder layer.
        index: Its place.
        asked: What of it is scored.
    """

    def __init__(self, layer: nn.Module, index: int, asked: Asked) -> None:
        self.layer, self.index, self.asked = layer, index, asked
        self.family, self.chosen = asked.family, asked.chosen
        self.stat: Statistic = Vote() if self.chosen.needs == "votes" else statistic(asked.reduce)
        self.up_votes = Vote()
        self.change = LayerChange(layer_criterion(asked.layers_by))
        self.blocks = {
            axis.name: BlockPass(layer, axis, self.family, asked.shape, self.chosen, asked.reduce)
            for axis in asked.axes
        }
        self.experts = ExpertsTap(layer, self.family, self.chosen, asked.reduce) if self.family.experts else None
        self._at = Places(None, torch.zeros(0, dtype=torch.int64))

    @property
    def at(self) -> Places:
        """The places of the batch in hand."""
        return self._at

    @at.setter
    def at(self, places: Places) -> None:
        self._at = places
        if self.experts:
            self.experts.real = places.real

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Inside, whatever the layer runs on is gathered."""
        with ExitStack() as hooks:
            for handle in self._hooks():
                hooks.callback(handle.remove)
            yield

    def join(self, processes: Processes) -> None:
        """Become what all processes have seen."""
        for each in (self.stat, self.up_votes, self.change, *self.blocks.values()):
            each.join(processes)
        if self.experts:
            self.experts.join(processes)

    def check(self, dtype: torch.dtype) -> None:
        """NotFinite, naming the layer, if what it did to a batch is no number; `dtype`: in what it ran."""
        if not math.isfinite(self.change.total):
            raise layer_overflow(self.layer, self.index, "its scores", dtype)

    def neurons(self) -> Float[Tensor, " width"]:
        """A score for every neuron, from what was gathered and the layer's weights; of experts one after another."""
        seed = self.asked.seed
        if self.experts:
            return self.experts.neurons(self.index, seed)
        stat = None if self.chosen.needs == "weights" else self.stat.finish()
        if self.chosen.needs == "votes":
            return vote_scores(torch.as_tensor(stat), self.up_votes.finish(), self.asked.vote_share)
        return self.chosen.finish(stat, neurons_of(self.layer, self.family), self.index, seed).detach()

    def others(self) -> dict[str, Tensor]:
        """Axis -> scores [units], of the other axes; of the experts too, where the layer has some."""
        found = {name: block.scores(self.index, self.asked.seed) for name, block in self.blocks.items()}
        return found | ({"experts": self.experts.experts()} if self.experts else {})

    def _hooks(self) -> Iterable[Any]:
        yield self.layer.register_forward_hook(self._layer_hook, with_kwargs=True)
        if self.experts:
            yield self.experts.hooked()
        elif self.chosen.needs in ("activations", "gradients"):
            yield self._activations(self.family.down, self.stat.update)
        if self.chosen.needs in ("activations", "gradients"):
            for block in self.blocks.values():
                yield self._activations(block.readout, block.update)
        if self.chosen.needs == "votes":
            yield from self._votes()

    def _activations(self, name: str, update: Callable[[Tensor], None]) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            a, plain = args[0], args[0].detach()
            if self.chosen.needs != "gradients":
                self._add(update, plain)
            elif a.requires_grad:  # a hook that held `a` itself would keep the layer's whole graph: a circle
                a.register_hook(lambda grad: self._add(update, plain.float() * grad.float()))

        return self.layer.get_submodule(name).register_forward_pre_hook(hook)

    def _votes(self) -> Iterable[Any]:
        def fused(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            gate, up = output.detach().flatten(0, 1)[self.at.last].chunk(2, dim=-1)
            self.stat.update(gate)
            self.up_votes.update(up)

        def hook_of(votes: Statistic) -> Callable[..., None]:
            return lambda module, args, output: votes.update(output.detach().flatten(0, 1)[self.at.last])

        if self.family.fused:
            yield self.layer.get_submodule(self.family.gate).register_forward_hook(fused)
            return
        names = (self.family.gate or self.family.up, self.family.up)  # without a gate the up projection votes alone
        for name, votes in zip(names, (self.stat, self.up_votes), strict=True):
            yield self.layer.get_submodule(name).register_forward_hook(hook_of(votes))

    def _layer_hook(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if torch.is_grad_enabled():
            return  # run again, for its gradients: counted already
        before = args[0] if args else kwargs["hidden_states"]
        after = output[0] if isinstance(output, tuple) else output
        with _plain(before):
            self.change.update(before.detach().flatten(0, 1), after.detach().flatten(0, 1), self.at.real)

    def _add(self, update: Callable[[Tensor], None], x: Tensor) -> None:
        with _plain(x):
            flat = x.flatten(0, 1)
            n = block_rows(flat)
            if self.at.real is None:
                parts: Iterable[Tensor] = flat.split(n)
            else:
                parts = (flat.index_select(0, places) for places in self.at.real.split(n))
            for part in parts:
                update(part)


def _plain(x: Tensor) -> torch.autocast:
    """Autocast off: a hook that runs inside it would compute its products in bf16."""
    return torch.autocast(x.device.type, enabled=False)
