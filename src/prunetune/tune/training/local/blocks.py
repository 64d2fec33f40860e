"""One block trained in fp32 (AdamW) to give the original's output; its weights on held-out rows decide.

    error of a token = |output - target|^2 / |target|^2

What reads the stream divides each token by its root mean square, so it is the relative error that counts, and the few
tokens with huge hidden states (the first of a row) do not drown the others. The mean over tokens is the loss, and on
held-out rows what decides: at a few looks the weights, rounded to the type that they are stored in, are kept if they
are better than any before, those that training began with among them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import get_scheduler

from prunetune.common import stopping
from prunetune.models.finite import is_finite
from prunetune.pruning.layerwise import OneLayer
from prunetune.tune.methods.local import Local
from prunetune.tune.training.local.streams import Hidden, batch, grouped, run

LOOKS = 6
"""Times that the held-out rows are looked at while a block is trained."""


@dataclass(frozen=True)
class Block:
    """What one block is trained on.

    Attributes:
        ones: Its layers, fp32; trained in place.
        stored: Suffixes in each layer -> the type that the tensor is stored in.
        pairs: (input, target) of all rows, for each input that the method asks for.
        held_out: Rows that decide.
        device: Where.
    """

    ones: Sequence[OneLayer]
    stored: Sequence[dict[str, torch.dtype]]
    pairs: Sequence[tuple[Hidden, Hidden]]
    held_out: Sequence[int]
    device: torch.device

    def parameters(self) -> Iterator[tuple[int, str, nn.Parameter]]:
        """(layer within the block, suffix, weights)."""
        for i, one in enumerate(self.ones):
            for suffix, weight in one.block.named_parameters():
                yield i, suffix, weight


@dataclass(frozen=True)
class Fit:
    """What training did to one block.

    Attributes:
        best: (layer within the block, suffix) -> weights as they are to be stored; empty: those of the start stay.
        before: Mean held-out error at the start.
        after: The same of what stays; never above `before`.
        steps: That were trained.
        tokens: That were trained, padding excluded.
    """

    best: dict[tuple[int, str], Tensor]
    before: float
    after: float
    steps: int
    tokens: int


def errors(out: Tensor, target: Tensor, real: Tensor) -> Tensor:
    """The relative squared error of every real token [tokens], fp32."""
    wanted = target[real].float()
    scale = wanted.square().sum(-1).clamp_min(torch.finfo(torch.float32).tiny)
    return (out[real].float() - wanted).square().sum(-1) / scale


def train_block(
    block: Block,
    method: Local,
    batches: Sequence[Sequence[int]],
    told: Callable[[int, float], None],
    until: float | None,
    seed: int,
) -> Fit:
    """Train a block in place.

    Args:
        block: Layers and rows.
        method: Settings.
        batches: Rows of each optimiser step.
        told: Called with (steps done, loss of the step).
        until: When to end, as `time.monotonic` has it.
        seed: Which input comes first where there are two.
    """
    before = held_out_error(block)
    best, least, steps, tokens = dict[tuple[int, str], Tensor](), before, len(batches), 0
    if not steps:
        return Fit(best, before, least, 0, 0)
    weights = [weight.requires_grad_() for _, _, weight in block.parameters()]
    optimizer = torch.optim.AdamW(
        weights, lr=method.learning_rate, betas=(0.9, method.adam_beta2), weight_decay=method.weight_decay
    )
    rate = get_scheduler(method.scheduler, optimizer, int(method.warmup * steps), steps)
    done = 0
    for done, rows in enumerate(batches, start=1):
        stopping.raise_if_asked()
        hidden, target = block.pairs[(done + seed) % len(block.pairs)]
        given, real = batch(hidden, rows, block.device)
        loss = errors(run(block.ones, given.float(), real), batch(target, rows, block.device)[0], real).mean()
        loss.backward()
        if method.max_grad_norm:
            nn.utils.clip_grad_norm_(weights, method.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        rate.step()
        tokens += int(real.sum())
        told(done, value := loss.item())
        over = until is not None and time.monotonic() >= until
        if over or done * LOOKS // steps > (done - 1) * LOOKS // steps:
            error = held_out_error(block)
            if error < least:
                best, least = _stored(block), error
        if over or not math.isfinite(value):  # no number: it will not be one again
            break
    for weight in weights:
        weight.requires_grad_(False)
    return Fit(best, before, least, done, tokens)


def _stored(block: Block) -> dict[tuple[int, str], Tensor]:
    """The weights as they are stored, on the CPU."""
    return {(i, s): w.detach().to("cpu", block.stored[i][s], copy=True) for i, s, w in block.parameters()}


@torch.no_grad()
def held_out_error(block: Block) -> float:
    """Mean error of the held-out tokens, of the weights as they would be stored; infinite where they are no numbers."""
    with _rounded(block):
        if not all(is_finite(weight) for _, _, weight in block.parameters()):
            return float("inf")
        total, tokens = 0.0, 0
        for hidden, target in block.pairs:
            held = [hidden[i] for i in block.held_out], [target[i] for i in block.held_out]
            for rows in grouped([len(h) for h in held[0]]):
                given, real = batch(held[0], rows, block.device)
                out = run(block.ones, given.float(), real)
                total += errors(out, batch(held[1], rows, block.device)[0], real).sum(dtype=torch.float64).item()
                tokens += int(real.sum())
    return total / tokens if math.isfinite(total) else float("inf")


@contextmanager
def _rounded(block: Block) -> Iterator[None]:
    """Inside, the weights are what reading them back would give."""
    before = [(weight, weight.data) for _, _, weight in block.parameters()]
    for i, suffix, weight in block.parameters():
        weight.data = weight.data.to(block.stored[i][suffix]).float()
    try:
        yield
    finally:
        for weight, data in before:
            weight.data = data
