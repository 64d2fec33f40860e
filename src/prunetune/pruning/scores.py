"""One forward pass over reasoning sequences -> how redundant every neuron and every layer is (Eq. 2-6).

    walk the base model (no head) over batches sorted by length
        hook on down_proj's input   -> a statistic over real tokens, a layer
        hook on the decoder layer   -> how much it changes the residual stream
    with gradients (`taylor`): the head's loss in chunks of tokens, then layer after layer backwards, each run again
    combine with the weights         -> Scores, a safetensors file that several plans can use

The hooks look at the layers' own inputs and outputs: `hidden_states[-1]` of transformers is taken after the final
norm and is wrong for the last layer. Inside the hooks autocast is off, so that products stay in fp32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunetune.errors import DataError
from prunetune.models.axes import Axis, shape_of
from prunetune.models.batches import mask_of, padded
from prunetune.models.families import Family, family_of
from prunetune.models.finite import layer_overflow
from prunetune.pruning.blocks.units import own_axes
from prunetune.pruning.blocks.walk import BlockWalk
from prunetune.pruning.criteria import Criterion, blockwise, criterion, layer_criterion
from prunetune.pruning.experts.walk import ExpertsTap
from prunetune.pruning.gradients import backward_by_layer
from prunetune.pruning.halfway import Halfway, in_parts
from prunetune.pruning.ranking import rank
from prunetune.pruning.statistics import (
    LayerChange,
    Statistic,
    Vote,
    block_rows,
    neurons_of,
    statistic,
    vote_scores,
)
from prunetune.pruning.tensors import Scores

__all__ = ["Batch", "Scores", "make_batches", "score"]

Batch = dict[str, Tensor]


def make_batches(sequences: Sequence[Sequence[int]], pad_id: int, max_tokens: int = 8192) -> list[Batch]:
    """Sequences sorted by length, longest first, into right-padded batches of at most `max_tokens` places each.

    Returns:
        [{input_ids: int64 [batch, tokens], attention_mask: int64 [batch, tokens]}, ...]
    """
    order = sorted((s for s in sequences if len(s)), key=lambda s: (-len(s), tuple(s)))
    if not order:
        raise DataError("there is no sequence to score", fix="check `data` and `score.samples` of the recipe")
    batches, i = [], 0
    while i < len(order):
        rows = order[i : i + max(1, max_tokens // len(order[i]))]
        batches.append({"input_ids": padded(rows, pad_id), "attention_mask": mask_of(rows)})
        i += len(rows)
    return batches


def score(
    model: PreTrainedModel,
    batches: Sequence[Batch],
    *,
    neuron_criterion: str = "contribution",
    reduce: str = "mean",
    layers_by: str = "l2",
    more: Sequence[str] = (),
    vote_share: float = 0.5,
    seed: int = 0,
    model_sha: str = "",
    data_sha: str = "",
    progress: Callable[[int, int], None] | None = None,
    halfway: Halfway | None = None,
) -> Scores:
    """Score every neuron and every layer of a model on the given sequences, in one pass; units of other axes, if asked.

    Args:
        model: A causal language model of a supported family, in eval mode, in any floating dtype.
        batches: {input_ids, attention_mask} with padding on either side; padded places never count.
        neuron_criterion: A name of `criteria.CRITERIA`.
        reduce: Reduction over tokens where the criterion leaves it open: `mean`, `rms`, `max`, `q99`.
        layers_by: A name of `criteria.LAYER_CRITERIA`.
        more: Other axes whose units are scored in the same pass, such as `heads`.
        vote_share: k of `ptl_vote`, as a share of the width.
        seed: For `random`.
        model_sha: Recorded in the result.
        data_sha: Recorded, too.
        progress: Called with (batches done, batches in all).
        halfway: Where an earlier start may have left off, and where this one may.

    Raises:
        NotFinite: A layer's activations, gradients or weights are. RecipeError: The criterion knows neurons alone.
    """
    chosen, family, values = criterion(neuron_criterion), family_of(model.config), model.config.to_dict()
    shape, asked = shape_of(values), own_axes(family, more)
    blockwise(neuron_criterion, [axis.name for axis in asked])
    if chosen.needs == "moments":
        ways: Any = {"progress": progress, "halfway": halfway}
        neurons, changes, blocks = rank(model, batches, chosen, more, layers_by, seed, **ways)
    else:
        walk = _Walk(model, family, chosen, chosen.reduce or reduce, layers_by)
        walk.add(asked, shape)
        walk.run(batches, progress, None if asked or family.experts else halfway)  # what these gather is not kept
        blocks = {name: block.scores(seed) for name, block in walk.blocks.items()} | walk.experts()
        neurons = torch.stack([walk.neuron_scores(i, vote_share, seed).cpu() for i in range(len(walk.layers))])
        changes = walk.changes
    found = Scores(
        neurons=neurons.float(),
        layers=torch.tensor([c.mean for c in changes], dtype=torch.float32),
        layers_max=torch.tensor([c.top for c in changes], dtype=torch.float32),
        criterion=neuron_criterion + _reduction(chosen, reduce),
        layer_criterion=layers_by,
        model_sha=model_sha,
        data_sha=data_sha,
        tokens=sum(int(b["attention_mask"].sum()) for b in batches),
        blocks=blocks,
        sizes={name: shape[name] for name in (*blocks, *(of for axis in asked for of in axis.beside))},
    )
    return _checked(found, model)


def _checked(found: Scores, model: PreTrainedModel) -> Scores:
    if (i := found.not_finite()) is None:
        return found
    layer = model.get_submodule(f"{family_of(model.config).layers}.{i}")
    raise layer_overflow(layer, i, "its scores", model.dtype)


def _reduction(chosen: Criterion, reduce: str) -> str:
    """How scores say the reduction that a criterion left open."""
    return f":{reduce}" if chosen.needs in ("activations", "gradients") and not chosen.reduce else ""


class _Walk:
    """The hooks of one pass and what they gather."""

    def __init__(self, model: PreTrainedModel, family: Family, chosen: Criterion, reduce: str, layers_by: str) -> None:
        self.model, self.family, self.chosen, self.reduce = model, family, chosen, reduce
        self.layers: nn.ModuleList = model.get_submodule(family.layers)  # type: ignore[assignment]  # by contract
        n = range(len(self.layers))
        self.stats: list[Statistic] = [Vote() if chosen.needs == "votes" else statistic(reduce) for _ in n]
        self.up_votes = [Vote() for _ in n]
        self.changes = [LayerChange(layer_criterion(layers_by)) for _ in n]
        self.real: Tensor | None = None  # flat places of real tokens in the batch in hand; None: all are real
        self.last = torch.zeros(0, dtype=torch.int64)  # flat place of each sample's last real token
        self.tokens = 0
        self.blocks: dict[str, BlockWalk] = {}
        self.taps = [ExpertsTap(layer, family, chosen, reduce) for layer in self.layers] if family.experts else []

    def experts(self) -> dict[str, Tensor]:
        """Scores of the experts, where the model has some."""
        return {"experts": torch.stack([tap.experts() for tap in self.taps])} if self.taps else {}

    def add(self, asked: Sequence[Axis], shape: Mapping[str, int]) -> None:
        """Other axes whose units are scored in the same pass."""
        for axis in asked:
            self.blocks[axis.name] = BlockWalk(self.layers, axis, self.family, shape, self.chosen, self.reduce)

    def run(
        self, batches: Sequence[Batch], progress: Callable[[int, int], None] | None, halfway: Halfway | None = None
    ) -> None:
        before, batches = self._restore(halfway.found(self.model.device)) if halfway else 0, in_parts(batches)
        with ExitStack() as hooks:
            for i, layer in enumerate(self.layers):
                for handle in self._hooks(i, layer):
                    hooks.callback(handle.remove)
            for done, batch in enumerate(batches[before:], start=before + 1):
                self._batch({k: v.to(self.model.device) for k, v in batch.items()})
                if progress:
                    progress(done, len(batches))
                if halfway:
                    halfway.reached(done, len(batches), partial(self._state, done))

    def _state(self, done: int) -> dict[str, Any]:
        """What a later start goes on from."""
        gathered = [vars(s) for s in (*self.stats, *self.up_votes)]
        changes = [c.sums() for c in self.changes]
        return {"done": done, "tokens": self.tokens, "gathered": gathered, "changes": changes}

    def _restore(self, state: dict[str, Any] | None) -> int:
        """Take up what an earlier start gathered; how many batches that were."""
        if state is None:
            return 0
        for statistic_, values in zip((*self.stats, *self.up_votes), state["gathered"], strict=True):
            vars(statistic_).update(values)
        for change, sums in zip(self.changes, state["changes"], strict=True):
            change.total, change.top, change.tokens = sums
        self.tokens = state["tokens"]
        return int(state["done"])

    def _hooks(self, i: int, layer: nn.Module) -> list[Any]:
        handles = [layer.register_forward_hook(self._layer_hook(i), with_kwargs=True)]
        if self.taps:
            handles.append(self.taps[i].hooked())
        elif self.chosen.needs in ("activations", "gradients"):
            down = layer.get_submodule(self.family.down)
            handles.append(down.register_forward_pre_hook(self._activation_hook(self.stats[i].update)))
        if self.chosen.needs in ("activations", "gradients"):
            for block in self.blocks.values():
                handles.append(block.readout(layer).register_forward_pre_hook(self._activation_hook(block.update(i))))
        if self.chosen.needs == "votes":
            if self.family.fused:
                handles.append(layer.get_submodule(self.family.gate).register_forward_hook(self._fused_vote_hook(i)))
            else:  # without a gate the up projection votes alone
                names = (self.family.gate or self.family.up, self.family.up)
                for name, votes in zip(names, (self.stats[i], self.up_votes[i]), strict=True):
                    module = layer.get_submodule(name)
                    handles.append(module.register_forward_hook(self._vote_hook(votes)))
        return handles

    def _layer_hook(self, i: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if torch.is_grad_enabled():
                return  # run again, for its gradients: counted already
            before = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            with _plain(before):
                self.changes[i].update(before.detach().flatten(0, 1), after.detach().flatten(0, 1), self.real)

        return hook

    def _activation_hook(self, update: Callable[[Tensor], None]) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            a, plain = args[0], args[0].detach()
            if self.chosen.needs != "gradients":
                self._add(update, plain)
            elif a.requires_grad:  # a hook that held `a` itself would keep the layer's whole graph: a circle
                a.register_hook(lambda grad: self._add(update, plain.float() * grad.float()))

        return hook

    def _vote_hook(self, votes: Any) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            votes.update(output.detach().flatten(0, 1)[self.last])

        return hook

    def _fused_vote_hook(self, i: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            gate, up = output.detach().flatten(0, 1)[self.last].chunk(2, dim=-1)
            self.stats[i].update(gate)
            self.up_votes[i].update(up)

        return hook

    def _add(self, update: Callable[[Tensor], None], x: Tensor) -> None:
        with _plain(x):
            flat = x.flatten(0, 1)
            n = block_rows(flat)
            if self.real is None:
                parts: Iterable[Tensor] = flat.split(n)
            else:
                parts = (flat.index_select(0, places) for places in self.real.split(n))
            for part in parts:
                update(part)

    def _batch(self, batch: Batch) -> None:
        mask = batch["attention_mask"].bool()
        self.tokens += int(mask.sum())
        self.real = None if bool(mask.all()) else mask.flatten().nonzero().squeeze(1)
        for tap in self.taps:
            tap.real = self.real
        places = torch.arange(mask.shape[1], device=mask.device)
        rows = torch.arange(mask.shape[0], device=mask.device) * mask.shape[1]
        self.last = (mask * places).amax(1) + rows
        if self.chosen.needs == "gradients":
            backward_by_layer(self.model, self.layers, batch)
        else:
            with torch.no_grad():
                self.model.get_submodule(self.family.base)(**batch, use_cache=False)
        for i, change in enumerate(self.changes):
            if not math.isfinite(change.total):
                raise layer_overflow(self.layers[i], i, "its scores", self.model.dtype)

    def neuron_scores(self, i: int, vote_share: float, seed: int) -> Float[Tensor, " width"]:
        """Combine what the pass gathered for layer i with the layer's weights; of experts one after another."""
        if self.taps:
            return self.taps[i].neurons(i, seed)
        stat = None if self.chosen.needs == "weights" else self.stats[i].finish()
        if self.chosen.needs == "votes":
            return vote_scores(torch.as_tensor(stat), self.up_votes[i].finish(), vote_share)
        return self.chosen.finish(stat, neurons_of(self.layers[i], self.family), i, seed).detach()


def _plain(x: Tensor) -> torch.autocast:
    """Autocast off: a hook that runs inside it would compute its products in bf16."""
    return torch.autocast(x.device.type, enabled=False)
