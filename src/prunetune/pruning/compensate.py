"""Fold removed neurons into the kept ones by least squares, before any training: the columns that stay of `down_proj`
change so that the FFN's output changes least (moments.py has the algebra; issue 5 the measurements).

    calibration, held-out tokens --> for each kept layer, in order:
        run it whole on the input that the compensated layers before it give; gather C_kk and E[u a_k^T]
        solve for every ridge; keep the one with the least held-out error, or none if none helps
        its output, cut and compensated, is the next layer's input: only `down_proj` is computed again

One layer is in hand at a time (walk.py), so that 8B models fit; the result is a patch for surgery.

`target="layer"` makes up for the layer's own removed neurons: u = W_r a_r. `target="stream"` makes up for whatever the
residual stream has lost by then, removed layers and errors of the layers before included: u = (the whole model's output
of this layer) - (the cut model's), which costs one more forward pass. `target="auto"` is the stream where layers go.
The stream wins straight after layers went, and costs where more neurons go later (studies/05-order).

Families with a norm after the FFN (Gemma2, Gemma3) divide each token's output by its root mean square. There, tokens
are weighted by the inverse of it, so that to first order the error *after* that norm is what is least. For them the
stream is not a linear function of `down_proj`, and `target="stream"` is refused. Where `down_proj` has a bias, it is
fitted along, as the weight of one more neuron that is always 1.

In a mixture each expert's neurons make up for its own (experts/fold.py). Whole experts that go are not made up for: the
router weighs those that stay anew. Which of a token's experts should make up for what the stream has lost is left open:
there, too, `target="stream"` is refused, and `auto` is the layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prunetune.common.device import ALONE, Processes, memory_bytes, product
from prunetune.errors import DataError, UnknownName, UnsupportedModel
from prunetune.models.calibration import Place, place_of, token_bytes
from prunetune.models.finite import broken_weights, is_finite
from prunetune.pruning.blocks.fold import fold_blocks, readouts
from prunetune.pruning.cut import check_shape
from prunetune.pruning.experts.cut import check_counted, of_the_rest, whole_experts
from prunetune.pruning.experts.fold import Held, fold_experts
from prunetune.pruning.folding.layer import MEMORY, Half, columns, cut_layer, patch_of, with_one
from prunetune.pruning.halfway import Halfway
from prunetune.pruning.layerwise import LayerSource, OneLayer, Shelf, embedded, forward, one_layer, open_source
from prunetune.pruning.least_squares import Fold, ResidueSum, fold
from prunetune.pruning.patch import LayerFit, Patch
from prunetune.pruning.plan import PrunePlan
from prunetune.pruning.tap import Tap, adds, at_real, check

__all__ = ["RIDGES", "LayerFit", "Patch", "compensate"]

Batch = dict[str, Tensor]
T = TypeVar("T")
STREAMS = ("hidden", "truth")
TARGETS = ("auto", "layer", "stream")
RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


def compensate(
    model: PreTrainedModel | Path,
    plan: PrunePlan,
    batches: Sequence[Batch],
    *,
    held_out: Sequence[Batch],
    target: str = "auto",
    ridges: Sequence[float] = RIDGES,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    progress: Callable[[int, int], None] | None = None,
    halfway: Halfway | None = None,
    place: Place | None = None,
    processes: Processes = ALONE,
) -> Patch:
    """The patch that makes up for a plan's removals as far as the kept neurons can.

    Args:
        model: The model that the plan is for, or its folder, whose layers are then read one by one.
        plan: What goes.
        batches: Calibration: {input_ids, attention_mask}, padded on either side; padded places never count.
        held_out: Batches that choose the ridge; not among the calibration.
        target: `auto`, `layer` or `stream`, see above.
        ridges: To choose from, relative to the mean of C_kk's diagonal.
        device: Where to run (default: the model's device; for a folder a GPU if there is one).
        dtype: In what to run the layers (default: `walk_dtype`). Sums are fp32 or fp64 anyway.
        progress: Called with (layers done, layers in all).
        halfway: Where an earlier start may have left off, and where this one may.
        place: Where hidden states lie between two layers, and what is done of the patch; None: as hidden states fit
            (`calibration.place_of`).
        processes: Who folds: each runs every layer on its share of the batches, and has the patch in the end.

    Raises:
        PlanError: the plan does not fit the model. DataError: no tokens. UnsupportedModel: see `target`.
        NotFinite: a layer's activations overflow, or its patch does in the type that the model is stored in.
    """
    source = open_source(model, device=device, dtype=dtype, quick=True)
    check_shape(plan, source.config.to_dict())
    check_counted(plan, source.family)
    _check(source, target, batches, held_out)
    auto = bool(plan.drop_layers) and not source.family.post_ffn_norm and not source.family.experts
    stream = auto if target == "auto" else target == "stream"
    if not plan.drop_neurons and not readouts(plan, source.family) and not (stream and plan.drop_layers):
        return Patch({}, (), 0, 0, plan.sha)
    if place is None:
        tokens = sum(b["input_ids"].numel() for b in (*batches, *held_out)) // processes.count
        a_token = token_bytes(source.config.hidden_size, source.dtype.itemsize, stream=stream)
        of_device, of_host = memory_bytes(source.device)
        place = place_of(tokens * a_token, source.device.type, of_device, of_host // processes.count)
    walk = _Walk(source, plan, batches, held_out, Shelf(place, source.device), stream, ridges, processes)
    halfway = halfway.of(processes, abreast=True) if halfway else None
    with torch.no_grad(), torch.autocast(source.device.type, enabled=False):
        return _compensate(walk, progress, halfway)


def calibration_and_held_out(sequences: Sequence[T]) -> tuple[list[T], list[T]]:
    """The scored sequences in two: every fourth chooses the ridge, the others are fitted to."""
    return [s for i, s in enumerate(sequences) if i % 4], list(sequences[::4])


@dataclass(frozen=True)
class _Walk:
    """What every layer is folded with."""

    source: LayerSource
    plan: PrunePlan
    batches: Sequence[Batch]
    held_out: Sequence[Batch]
    shelf: Shelf
    stream: bool
    ridges: Sequence[float]
    processes: Processes

    @property
    def every(self) -> list[Batch]:
        """The batches of this process: those to fit with come first."""
        return self.processes.share([*self.batches, *self.held_out])

    @property
    def calibration(self) -> int:
        """How many of them are to fit with; the others choose the ridge."""
        return len(self.processes.share(self.batches))

    def tokens(self) -> tuple[int, int]:
        """Of all calibration, of all that is held out."""
        calibration, held_out = (sum(int(b["attention_mask"].sum()) for b in x) for x in (self.batches, self.held_out))
        return calibration, held_out


def _compensate(walk: _Walk, progress: Callable[[int, int], None] | None, halfway: Halfway | None) -> Patch:
    source, plan, shelf, stream, every = walk.source, walk.plan, walk.shelf, walk.stream, walk.every
    masks = [b["attention_mask"].bool().to(source.device) for b in every]
    state = halfway.found("cpu") if halfway else None
    if state is None:
        hidden = embedded(source, [b["input_ids"] for b in every], shelf)
        state = {"hidden": hidden, "truth": hidden if stream else None, "tensors": {}, "fits": [], "next": 0}
    else:
        state |= {name: [shelf.put(shelf.take(h)) for h in state[name]] for name in STREAMS if state[name]}
    tensors: dict[str, Tensor] = {name: shelf.put(tensor.cpu()) for name, tensor in state["tensors"].items()}
    fits = [LayerFit(*fit) for fit in state["fits"]]
    streams = _Streams(state["hidden"], masks, state["truth"])
    for layer in (i for i in (range(source.depth) if stream else plan.kept_layers) if i >= state["next"]):
        streams, patch, more = _through(walk, layer, streams, fits)
        tensors |= {name: shelf.put(tensor) for name, tensor in patch.items()}
        fits += more
        if progress:
            progress(layer + 1, source.depth)
        if halfway:
            now = (streams.hidden, streams.truth, tensors, fits, layer + 1)
            halfway.reached(layer + 1, source.depth, partial(_state, *now))
    return Patch(tensors, tuple(fits), *walk.tokens(), plan.sha)


def _through(
    walk: _Walk, layer: int, streams: _Streams, before: Sequence[LayerFit]
) -> tuple[_Streams, dict[str, Tensor], list[LayerFit]]:
    """(the streams behind a layer, its patch, its fits). Neither it nor its activations are held after that."""
    source, plan, shelf, masks = walk.source, walk.plan, walk.shelf, streams.masks
    one, stream = one_layer(source, layer, whole_experts(plan)), streams.truth is not None
    hidden, patch, fits = streams.hidden, dict[str, Tensor](), list[LayerFit]()
    kept, last = layer in plan.kept_layers, layer == plan.kept_layers[-1]
    mixture = source.family.experts is not None
    intact = not plan.drop_neurons and (mixture or all(layer < dropped for dropped in plan.drop_layers))
    intact = intact and not (stream and plan.drop)
    if streams.truth is not None:
        truth = [shelf.put(forward(one, shelf.take(h), m)) for h, m in zip(streams.truth, masks, strict=True)]
        streams = replace(streams, truth=truth)
    if kept and plan.drop:
        patch, fits = _fold_blocks(walk, one, layer, streams)
    if kept and not intact:
        start = next((f.ridge for f in reversed([*before, *fits]) if f.ridge and not f.readout), None)
        if mixture:
            held = Held(one, hidden, masks, walk.calibration, shelf)
            ways: Any = {"ridges": walk.ridges, "start": start, "processes": walk.processes, "last": last}
            hidden, own, fit = fold_experts(held, source, of_the_rest(plan), layer, **ways)
            return replace(streams, hidden=hidden), patch | own, [*fits, fit]
        found, halves = _fit(walk, one, layer, streams, start, last=last)
        own = patch_of(one, source, plan, layer, found)
        patch |= own
        fits.append(LayerFit(layer, found.ridge, found.before, found.after))
        cut_layer(one, source, plan.model_copy(update={"sizes": {}, "drop": {}}), layer, own)
        if not last:
            hidden = list(_outputs(walk, one, layer, halves))
    elif kept and not last:
        unchanged = streams.truth if not plan.drop else None
        hidden = unchanged or [shelf.put(forward(one, shelf.take(h), m)) for h, m in zip(hidden, masks, strict=True)]
    return replace(streams, hidden=hidden), patch, fits


def _outputs(walk: _Walk, one: OneLayer, layer: int, halves: Sequence[Half]) -> Iterator[Tensor]:
    """What the layer gives now that it is cut and patched. NotFinite if that is no number."""
    for half in halves:
        out = half.whole(one, walk.source)
        check(one, layer, out, half.mask)
        yield walk.shelf.put(out)


def _state(
    hidden: list[Tensor], truth: list[Tensor] | None, tensors: dict[str, Tensor], fits: Sequence[LayerFit], after: int
) -> dict[str, Any]:
    """What the walk goes on from at layer `after`."""
    told = [astuple(f) for f in fits]
    return {"hidden": hidden, "truth": truth, "tensors": tensors, "fits": told, "next": after}


def _check(source: LayerSource, target: str, batches: Sequence[Batch], held_out: Sequence[Batch]) -> None:
    if target not in TARGETS:
        raise UnknownName("compensation target", target, TARGETS)
    if target == "stream" and source.family.experts:
        raise UnsupportedModel(
            "compensating the residual stream needs one FFN a layer: which of a token's experts is to make up for it?",
            value=source.family.model_type,
            fix='use target="layer"',
        )
    if target == "stream" and source.family.post_ffn_norm:
        raise UnsupportedModel(
            "compensating the residual stream needs an FFN whose output is added as it is, without a norm after it",
            value=source.family.model_type,
            fix='use target="layer"',
        )
    for name, some in (("calibration", batches), ("held-out", held_out)):
        if not sum(int(b["attention_mask"].sum()) for b in some):
            raise DataError(f"there are no {name} tokens to compensate with", fix="raise the number of samples")


@dataclass(frozen=True)
class _Streams:
    """The residual streams at a layer: its input in the cut model, and the whole model's output where it is the target.

    In the order of `_Walk.every`, whose masks these are.
    """

    hidden: list[Tensor]
    masks: list[Tensor]
    truth: list[Tensor] | None


def _fit(
    walk: _Walk, one: OneLayer, layer: int, streams: _Streams, start: float | None, *, last: bool
) -> tuple[Fold, list[Half]]:
    """Gather the residues of both sets of tokens and solve; with what a second run of the layer can start from.

    Of a layer whose output is looked at afterwards (not the last), the uncut FFN's own need not be computed.
    """
    source, plan, shelf = walk.source, walk.plan, walk.shelf
    kept = torch.tensor(plan.kept("neurons", layer), device=source.device)
    gone = torch.tensor(plan.drop_neurons.get(layer, ()), device=source.device, dtype=torch.int64)
    scale = source.family.number(source.family.residual_scale, source.config)  # of what the FFN adds to the stream
    apart = bool(streams.hidden) and adds(one, source, layer, shelf.take(streams.hidden[-1][:1]))
    silent = apart and not last and streams.truth is None and not source.family.post_ffn_norm
    left, halves = MEMORY, list[Half]()
    with Tap(one, source, layer, apart=apart, silent=silent) as tap:
        lost = tap.down.weight[:, gone].T
        size = len(kept) + (tap.down.bias is not None)
        sums = [ResidueSum(size, lost.shape[1], source.device) for _ in range(2)]
        for i, (hidden, real) in enumerate(zip(streams.hidden, streams.masks, strict=True)):
            seen = tap.run(shelf.take(hidden), real)
            stay = columns(seen.a, kept)
            missing = seen.weighted(product(at_real(seen.a, real).index_select(-1, gone), lost))
            if streams.truth is not None:
                missing += (
                    at_real(shelf.take(streams.truth[i]), real).float() - at_real(seen.out, real).float()
                ) / scale
            features = seen.weighted(at_real(stay, real))
            if tap.down.bias is not None:
                features = with_one(features, seen.weight)
            whole = None if seen.y is None else seen.weighted(seen.y)
            sums[i >= walk.calibration].update(features, missing, whole)
            left -= stay.nbytes + hidden.nbytes
            again = left < 0 or not apart
            halves.append(Half(hidden, real, None if again else seen.rest, None if again else stay))
    for each in sums:
        each.join(walk.processes)
    calibration, held_out = (each.finish() for each in sums)
    if silent:
        stays = tap.down.weight[:, kept]
        stays = stays if tap.down.bias is None else torch.cat([stays, tap.down.bias[:, None]], dim=1)
        calibration, held_out = calibration.of(stays), held_out.of(stays)
    return fold(calibration, held_out, walk.ridges, start), halves


def _fold_blocks(walk: _Walk, one: OneLayer, layer: int, streams: _Streams) -> tuple[dict[str, Tensor], list[LayerFit]]:
    """Cut and make up for the readouts of other axes than neurons (heads), before the FFN sees what they give."""
    source, names = walk.source, walk.source.names[layer]
    folded = fold_blocks(
        one.block,
        source.family,
        float(getattr(source.config, "rms_norm_eps", 0.0)),
        walk.plan,
        layer,
        run=lambda i: forward(one, walk.shelf.take(streams.hidden[i]), streams.masks[i]),
        masks=streams.masks,
        calibration=walk.calibration,
        ridges=walk.ridges,
        processes=walk.processes,
        stored=lambda suffix: source.stored(names[suffix]),
    )
    start = f"{source.family.layers}.{layer}."
    tensors = {f"{start}{f.readout}.{name}": tensor for f in folded for name, tensor in f.tensors.items()}
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            raise broken_weights(f"layer {layer}'s patch", name, tensor)
    return tensors, [LayerFit(layer, f.found.ridge, f.found.before, f.found.after, f.readout) for f in folded]
