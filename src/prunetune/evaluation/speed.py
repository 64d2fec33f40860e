"""How long a token takes at a shape that nobody has cut yet: a few shapes timed on this machine, the rest computed.

    clock = Clock.timed(whole, {"neurons": 768}, cut)      # cut(shape) -> a model of that shape, whatever its values
    clock.ms({"layers": 24, "neurons": 1024, ...})

Decoding at batch 1 is a fixed part, and for each layer a fixed part and what its matrices take: linear in the layers,
and in a layer linear in its neurons and its heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import nnls
from transformers import PreTrainedModel

from prunetune.common.device import free_device_memory
from prunetune.evaluation.latency import time_once
from prunetune.models.axes import axes

PROMPT_TOKENS, NEW_TOKENS, REPEATS = 64, 16, 6

Counts = Mapping[str, int]


@dataclass(frozen=True)
class Clock:
    """Milliseconds a token of greedy decoding at batch 1, by shape.

    Attributes:
        parts: Milliseconds of: the model outside its layers, a layer, and one unit in a layer of each axis in `names`.
        names: The axes other than `layers` that were timed.
        points: What was timed: (shape, ms).
    """

    parts: tuple[float, ...]
    names: tuple[str, ...]
    points: tuple[tuple[dict[str, int], float], ...]

    def ms(self, shape: Counts) -> float:
        """Of a shape; axes that were not timed count as they are in the model."""
        return float(np.dot(self.parts, _terms(shape, self.names)))

    @staticmethod
    def timed(
        whole: Counts,
        halves: Counts,
        cut: Callable[[Counts], PreTrainedModel],
        progress: Callable[[int, int], None] | None = None,
    ) -> Clock:
        """Time the whole model, and it with some of each axis gone.

        Args:
            whole: The untouched model's shape.
            halves: Of the axes that a shape may differ in, how many units are left where it is timed: about half.
            cut: Makes a model of a shape, on its device and in eval mode; one is held at a time.
            progress: Called with (shapes timed, in all).
        """
        halves = {"layers": max(1, whole["layers"] // 2), **halves}
        names = [name for name in halves if name != "layers" and halves[name] < whole[name]]
        shapes = [dict(whole), *({**whole, name: halves[name]} for name in ("layers", *names))]
        points = []
        for done, shape in enumerate(shapes, start=1):
            model = cut(shape)
            points.append((shape, decode_ms(model)))
            del model
            free_device_memory()
            if progress:
                progress(done, len(shapes))
        return Clock.fitted(points, names)

    @staticmethod
    def fitted(points: Sequence[tuple[Counts, float]], names: Sequence[str]) -> Clock:
        """From timings: no part takes less than no time."""
        parts, _ = nnls(np.array([_terms(shape, names) for shape, _ in points]), np.array([ms for _, ms in points]))
        return Clock(tuple(map(float, parts)), tuple(names), tuple((dict(shape), ms) for shape, ms in points))


def decode_ms(model: PreTrainedModel) -> float:
    """Milliseconds a token at batch 1: the fastest of a few generations, since other work only ever slows one."""
    prompt = torch.ones(1, PROMPT_TOKENS, dtype=torch.long, device=model.device)
    return 1000 * min(time_once(model, prompt, NEW_TOKENS)[1] for _ in range(REPEATS)) / (NEW_TOKENS - 1)


def _terms(shape: Counts, names: Sequence[str]) -> list[float]:
    layers = shape["layers"]
    return [1.0, layers, *(layers * axes()[name].places(shape) for name in names)]
