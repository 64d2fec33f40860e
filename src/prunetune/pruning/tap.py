"""What a layer's `down_proj` sees and gives while one layer is run (layerwise.py): a, and the FFN's output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from prunetune.models.finite import is_finite, layer_overflow
from prunetune.pruning.layerwise import LayerSource, OneLayer, forward


@dataclass(frozen=True)
class Seen:
    """One layer on one batch, in the dtype of the walk.

    Attributes:
        a: The activations, `down_proj`'s input, at all places.
        y: The FFN's output, `down_proj`'s, of the real tokens; None where it was not computed.
        weight: Where a norm follows the FFN, tokens count with this, squared; None: all alike.
        out: The whole layer's output, at all places; without the FFN's part where that was not computed.
        rest: The same without the FFN's part; None unless asked for.
    """

    a: Float[Tensor, "batch places width"]
    y: Float[Tensor, "tokens hidden"] | None
    weight: Float[Tensor, "tokens 1"] | None
    out: Float[Tensor, "batch places hidden"]
    rest: Float[Tensor, "batch places hidden"] | None = None

    def weighted(self, x: Float[Tensor, "tokens n"]) -> Float[Tensor, "tokens n"]:
        """Numbers of the real tokens, times their weights."""
        return x if self.weight is None else x * self.weight.to(x.dtype)


class Tap:
    """Input and output of a layer's `down_proj`, for the batch in hand.

    Args:
        one: The layer.
        source: Where it is from.
        layer: Its place.
        apart: Run the layer without the FFN's part, and add that behind it (see `adds`).
        silent: As `apart`, but that part is not even computed: `down_proj` gives zeros.
    """

    def __init__(
        self, one: OneLayer, source: LayerSource, layer: int, *, apart: bool = False, silent: bool = False
    ) -> None:
        self.one, self.source, self.layer, self.apart, self.silent = one, source, layer, apart or silent, silent
        self.down: Any = one.block.get_submodule(source.family.down)
        self.seen: tuple[Tensor, Tensor] | None = None
        hooked = _Silent(self.down) if silent else self.down
        one.block.set_submodule(source.family.down, hooked)
        self.handle = hooked.register_forward_hook(self._hook)

    def __enter__(self) -> Tap:
        return self

    def __exit__(self, *_: object) -> None:
        self.handle.remove()
        self.one.block.set_submodule(self.source.family.down, self.down)

    def _hook(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        self.seen = (args[0], output)
        return torch.zeros_like(output) if self.apart and not self.silent else None

    def run(self, hidden: Float[Tensor, "batch places hidden"], real: Shaped[Tensor, "batch places"]) -> Seen:
        """Run the layer whole."""
        out = forward(self.one, hidden, real)
        if self.seen is None:
            raise RuntimeError("down_proj did not run")
        (a, y), self.seen, rest = self.seen, None, None
        if self.apart:
            rest, out = out, out if self.silent else added(self.one, self.source, out, y)
        check(self.one, self.layer, out, real)
        if self.silent:
            return Seen(a, None, None, out, rest)
        y, weight = at_real(y, real), None
        if self.source.family.post_ffn_norm:
            weight = torch.rsqrt(y.float().square().mean(-1, keepdim=True) + self.source.config.rms_norm_eps)
        return Seen(a, y, weight, out, rest)


class _Silent(nn.Module):
    """In `down_proj`'s place: zeros of its output's shape."""

    def __init__(self, down: nn.Module) -> None:
        super().__init__()
        self.weight: Any = down.weight  # some layers look at its type

    def forward(self, x: Float[Tensor, "... width"]) -> Float[Tensor, "... hidden"]:
        return x.new_zeros(*x.shape[:-1], len(self.weight))


def check(
    one: OneLayer, layer: int, out: Float[Tensor, "batch places hidden"], real: Shaped[Tensor, "batch places"]
) -> None:
    """NotFinite, naming the layer, if what it gives is no number at a real place."""
    if not is_finite(at_real(out, real)):
        raise layer_overflow(one.block, layer, "its second moments", out.dtype)


def at_real(x: Shaped[Tensor, "batch places n"], real: Shaped[Tensor, "batch places"]) -> Shaped[Tensor, "tokens n"]:
    """The rows of the real tokens; not a copy where all are real."""
    flat, places = x.flatten(0, 1), real.flatten().nonzero().squeeze(1)
    return flat if len(places) == len(flat) else flat.index_select(0, places)


@torch.no_grad()
def added(
    one: OneLayer,
    source: LayerSource,
    rest: Float[Tensor, "batch places hidden"],
    y: Float[Tensor, "batch places hidden"],
) -> Float[Tensor, "batch places hidden"]:
    """The layer's output, from what it is without the FFN's part and from `down_proj`'s output."""
    return rest + (one.block.get_submodule(source.family.norms[-1])(y) if source.family.post_ffn_norm else y)


def adds(one: OneLayer, source: LayerSource, layer: int, hidden: Float[Tensor, "batch places hidden"]) -> bool:
    """Whether a layer is what `added` takes it for: tried on the first places of one row."""
    if source.family.post_ffn_norm and not hasattr(one.block, source.family.norms[-1]):
        return False
    row = hidden[:1, :32]
    real = torch.ones(row.shape[:2], dtype=torch.bool, device=row.device)
    with Tap(one, source, layer, apart=True) as tap:
        apart = tap.run(row, real)
    with Tap(one, source, layer, silent=True) as tap:
        silent = tap.run(row, real).rest
    same = silent is not None and apart.rest is not None and torch.equal(silent, apart.rest)
    return same and bool(torch.equal(apart.out, forward(one, row, real)))
