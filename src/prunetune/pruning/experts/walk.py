"""How redundant the experts of a layer are, and the neurons inside each, gathered from what the router sends them.

    score of expert j = mean over the tokens routed to it of gate_j(x) ||f_j(x)||        REAP, arXiv 2510.13999, Eq. 9

An expert that no token is routed to scores 0. A neuron's activation counts with the expert's gate: the layer's output
lacks g a_n W_down[:, n] without it (Eq. 2), over the tokens routed to its expert. Every criterion of activations,
gradients, second moments or weights then says of each expert's neurons what it says of a dense FFN's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from prunetune.common.device import Processes
from prunetune.errors import UnsupportedModel
from prunetune.models.families import Experts, Family
from prunetune.pruning.criteria import Criterion
from prunetune.pruning.least_squares import Gram
from prunetune.pruning.statistics import Neurons, Statistic, statistic


@dataclass(frozen=True)
class Sent:
    """The tokens that the router sends to one expert.

    Attributes:
        expert: Its number.
        places: Of those tokens, among all that the layer saw.
        x: Their hidden states, as experts see them.
        gate: The gate's value for each.
    """

    expert: int
    places: Int64[Tensor, " tokens"]
    x: Float[Tensor, "tokens hidden"]
    gate: Float[Tensor, " tokens"]


def sent(
    x: Float[Tensor, "places hidden"],
    chosen: Int64[Tensor, "places k"],
    gates: Float[Tensor, "places k"],
    real: Int64[Tensor, " tokens"] | None,
) -> Iterator[Sent]:
    """What every expert gets of the `real` places (None: all are), expert after expert."""
    places = torch.arange(len(x), device=x.device) if real is None else real
    here = chosen.index_select(0, places)
    for expert in here.unique().tolist():
        row, slot = (here == expert).nonzero(as_tuple=True)
        at = places[row]
        yield Sent(int(expert), at, x[at], gates[at, slot])


def expert_of(module: nn.Module, found: Experts, expert: int) -> Neurons:
    """The weight vectors of one expert's neurons."""
    both, down = (module.get_parameter(n.rpartition(".")[2])[expert].detach() for n in (found.gate_up, found.down))
    if found.transposed:
        both, down = both.T, down.T
    gate, up = (both[::2], both[1::2]) if found.alternating else both.chunk(2)
    return Neurons(gate, up, down)


def activations(
    module: nn.Module, found: Experts, expert: int, x: Float[Tensor, "tokens hidden"]
) -> Float[Tensor, "tokens width"]:
    """a, the input of an expert's down projection."""
    experts: Any = module
    weights = expert_of(module, found, expert)
    if weights.gate is None:
        raise TypeError("experts have gates")
    gate, up = x @ weights.gate.T, x @ weights.up.T
    if found.bias:
        bias = experts.gate_up_proj_bias[expert].detach()
        halves = (bias[::2], bias[1::2]) if found.alternating else bias.chunk(2)
        gate, up = gate + halves[0], up + halves[1]
    if found.clamped:
        gate, up = gate.clamp(max=experts.limit), up.clamp(-experts.limit, experts.limit)
        return (up + 1) * gate * torch.sigmoid(experts.alpha * gate)
    a: Tensor = experts.act_fn(gate) * up
    return a


class ExpertsTap:
    """What one layer's experts are sent, taken while the layer runs, and what becomes of it.

    Args:
        layer: A decoder layer.
        family: Of the model; it has experts.
        chosen: The neurons' criterion.
        reduce: Its reduction over tokens.
    """

    def __init__(self, layer: nn.Module, family: Family, chosen: Criterion, reduce: str = "mean") -> None:
        if chosen.needs == "votes":
            raise UnsupportedModel(
                "this criterion says nothing of neurons inside experts", value="ptl_vote", valid="any other criterion"
            )
        self.found: Experts = family.experts  # type: ignore[assignment]  # by contract
        self.module, self.chosen = layer.get_submodule(self.found.module), chosen
        weight = self.module.get_parameter(self.found.down.rpartition(".")[2])
        self.count, self.device = len(weight), weight.device
        self.width = weight.shape[1 if self.found.transposed else 2]
        self.total = torch.zeros(self.count, dtype=torch.float64, device=self.device)
        self.tokens = torch.zeros(self.count, dtype=torch.int64, device=self.device)
        self.stats: dict[int, Statistic | Gram] = {}
        self.start: Callable[[], Statistic | Gram] = (
            (lambda: Gram(self.width, self.device)) if chosen.needs == "moments" else (lambda: statistic(reduce))
        )
        self.real: Tensor | None = None

    def hooked(self) -> Any:
        """Look at what the experts are sent from now on; the handle ends it."""
        return self.module.register_forward_hook(self._hook)

    def _hook(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        x, chosen, gates = (t.detach() for t in args)
        with torch.autocast(x.device.type, enabled=False):
            if not torch.is_grad_enabled():
                self._take(list(sent(x, chosen, gates, self.real)))
            elif output.requires_grad:
                output.register_hook(lambda grad: self._gradients(list(sent(x, chosen, gates, self.real)), grad))

    def _take(self, all_sent: list[Sent]) -> None:
        for one in all_sent:
            a, weights = (
                activations(self.module, self.found, one.expert, one.x),
                expert_of(self.module, self.found, one.expert),
            )
            y = a @ weights.down.T
            if self.found.bias:
                y = y + self.module.get_parameter("down_proj_bias")[one.expert]
            self.total[one.expert] += (y.float().norm(dim=-1) * one.gate.float()).double().sum()
            self.tokens[one.expert] += len(y)
            if self.chosen.needs in ("activations", "moments"):
                self._update(one.expert, a.float() * one.gate.float()[:, None])

    def _gradients(self, all_sent: list[Sent], grad: Tensor) -> None:
        """A dL/da: the layer's output is the sum of gate times W_down a."""
        for one in all_sent:
            a = activations(self.module, self.found, one.expert, one.x).float()
            down = expert_of(self.module, self.found, one.expert).down.float()
            self._update(one.expert, a * (grad.detach()[one.places].float() @ down) * one.gate.float()[:, None])

    def _update(self, expert: int, x: Float[Tensor, "tokens width"]) -> None:
        if expert not in self.stats:
            self.stats[expert] = self.start()
        self.stats[expert].update(x)

    def join(self, processes: Processes) -> None:
        """Become what the experts were sent in all processes."""
        self.total, self.tokens = processes.total(self.total), processes.total(self.tokens)
        for expert in sorted(set().union(*processes.gather(set(self.stats)))):
            if expert not in self.stats:
                self.stats[expert] = self.start()
            self.stats[expert].join(processes)

    def experts(self) -> Float[Tensor, " experts"]:
        """REAP's score of every expert; 0 of one that no token was sent to."""
        return (self.total / self.tokens.clamp_min(1)).float().cpu()

    def neurons(self, layer: int, seed: int) -> Float[Tensor, " neurons"]:
        """A score of every neuron, expert after expert. Call it once."""
        rows = []
        for expert in range(self.count):
            weights, seen = expert_of(self.module, self.found, expert), self.stats.pop(expert, None)
            if seen is None and self.chosen.needs != "weights":
                rows.append(torch.zeros(self.width))
                continue
            stat = None if seen is None else seen.finish()
            rows.append(self.chosen.finish(stat, weights, layer * self.count + expert, seed).detach().float().cpu())
        return torch.cat(rows)
