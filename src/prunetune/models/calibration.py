"""How many tokens to calibrate with, and where their hidden states lie between two layers. Pure arithmetic.

    found = enough(mean=160.0, width=8944, token_bytes=8192, memory=8 * 10**9, most=20_000)     # sequences, and why
    place_of(found.bytes, "cuda", device_bytes, host_bytes)                                     # "device"

Least squares needs tokens: with ten for each kept neuron a cut adds twice the loss that it need add, with a hundred
hardly less can be had (studies/11-calibration-tokens).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from prunetune.common.units import size

ENOUGH = 100
"""Tokens that are fitted to for each kept neuron."""
SOME = 30
"""The same where time is short: three times as many then took a fortieth off a cut's damage (docs/log.md)."""
FITTED = 0.75
"""Share of the scored sequences that are fitted to; the others choose the ridge."""
Ended = Literal["enough", "memory", "data", "given"]
Place = Literal["device", "host memory", "disk"]
HELD: dict[Place, str] = {"device": "on the device", "host memory": "in host memory", "disk": "on disk"}


@dataclass(frozen=True)
class Calibration:
    """Sequences to score and to compensate with.

    Attributes:
        samples: How many.
        tokens: Of all of them.
        a_neuron: Tokens that are fitted to for each kept neuron.
        bytes: Of their hidden states at one layer, as they are held.
        width: Neurons that stay in a layer.
        ended: What ended it: `enough` tokens, the `memory`, or the `data`; `given`: the recipe names the number.
        share: Of the tokens, which a neuron sees: in a mixture those that are routed to its expert, on the mean.
    """

    samples: int
    tokens: int
    a_neuron: float
    bytes: int
    width: int
    ended: Ended
    share: float = 1.0

    def samples_for(self, a_neuron: float) -> int:
        """Sequences that give so many tokens to each kept neuron."""
        return math.ceil(self.samples * a_neuron / self.a_neuron)

    def text(self, place: Place) -> str:
        """In words, with where the hidden states lie."""
        why = {"memory": ", all that score.memory holds", "data": ", all that the data spare"}.get(self.ended, "")
        return (
            f"calibration: {self.samples:,} sequences, about {self.tokens:,} tokens{why}: {self.a_neuron:.0f} are "
            f"fitted to for each of the {self.width:,} neurons that stay{' in an expert' * (self.share < 1)}; "
            f"hidden states {size(self.bytes)}, {HELD[place]}"
        )


def enough(mean: float, width: int, token_bytes: int, memory: int, most: int, share: float = 1.0) -> Calibration:
    """As many sequences as give `ENOUGH` tokens a kept neuron, within memory and data; one at least.

    Args:
        mean: Tokens of a sequence.
        width: Neurons that stay in a layer.
        token_bytes: Of a token's hidden states, all that are held.
        memory: Bytes that hidden states may take.
        most: Sequences that there are for it.
        share: Of the tokens, which a neuron sees.
    """
    limits: dict[Ended, int] = {
        "enough": math.ceil(ENOUGH * width / FITTED / (mean * share)),
        "memory": int(memory / (token_bytes * mean)),
        "data": most,
    }
    ended = min(limits, key=lambda name: limits[name])
    return of(max(1, limits[ended]), mean, width, token_bytes, ended, share)


def of(
    samples: int, mean: float, width: int, token_bytes: int, ended: Ended = "given", share: float = 1.0
) -> Calibration:
    """What so many sequences are; arguments as of `enough`."""
    tokens = round(samples * mean)
    return Calibration(samples, tokens, FITTED * tokens * share / width, tokens * token_bytes, width, ended, share)


def token_bytes(hidden: int, item: int, *, stream: bool) -> int:
    """Bytes of a token: the cut model's hidden state and, for the target `stream`, the whole model's; each of the layer
    in hand and of the one before it.
    """
    return 2 * hidden * item * (1 + stream)


def place_of(held: int, device: str, device_bytes: int, host_bytes: int) -> Place:
    """Where hidden states lie: on the device up to a quarter of it, in host memory up to half of it, else on disk."""
    if device != "cpu" and held <= device_bytes // 4:
        return "device"
    return "host memory" if held <= host_bytes // 2 else "disk"
