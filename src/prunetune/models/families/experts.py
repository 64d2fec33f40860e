"""Where families whose FFN is a mixture of experts keep them, and what files call that.

In memory all experts of a layer are one tensor. A checkpoint holds the same (`mlp.experts.down_proj`), or one tensor an
expert (`mlp.experts.7.down_proj.weight`), which transformers merges as it loads: gate first, then up.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

Size = tuple[int, ...]


@dataclass(frozen=True)
class Experts:
    """The experts of a layer.

    Attributes:
        router: The router, inside a layer: weight [experts, hidden], and a bias where experts have them.
        module: The module whose tensors hold all experts, inside a layer: `gate_up_proj` and `down_proj`.
        transposed: Those are [experts, inputs, outputs]; else [experts, outputs, inputs].
        alternating: Rows of gate and up alternate, gate first; else gate is the first half, up the second.
        bias: Biases on the router and on every expert's projections (`gate_up_proj_bias`, `down_proj_bias`).
        clamped: gate and up are cut off at `swiglu_limit` before the product, which is GPT-OSS's:
            (up + 1) gate sigmoid(`swiglu_alpha` gate); else act(gate) up, `act_fn` of the module.
        single: Gate, up and down as files with one tensor an expert call them; (): there are no such files.
        block: What such files call the module that holds router and experts; "": as the model does.
    """

    router: str = "mlp.gate"
    module: str = "mlp.experts"
    transposed: bool = False
    alternating: bool = False
    bias: bool = False
    clamped: bool = False
    single: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")
    block: str = ""

    @property
    def gate_up(self) -> str:
        """Gate and up of all experts, inside a layer."""
        return f"{self.module}.gate_up_proj"

    @property
    def down(self) -> str:
        """The down projections of all experts, inside a layer."""
        return f"{self.module}.down_proj"

    def sizes(self, experts: int, hidden: int, width: int) -> dict[str, Size]:
        """Every tensor of the router and of the experts by its suffix in a layer."""
        wide, down = (hidden, 2 * width), (width, hidden)
        found: dict[str, Size] = {f"{self.router}.weight": (experts, hidden)}
        found[self.gate_up] = (experts, *(wide if self.transposed else wide[::-1]))
        found[self.down] = (experts, *(down if self.transposed else down[::-1]))
        if self.bias:
            found |= {
                f"{self.router}.bias": (experts,),
                f"{self.gate_up}_bias": (experts, 2 * width),
                f"{self.down}_bias": (experts, hidden),
            }
        return found

    def in_model(self, suffix: str) -> str:
        """A tensor's suffix in a layer as the model has it, from what files call it."""
        old, new = f"{self.block}.", f"{self.module.split('.')[0]}."
        return new + suffix.removeprefix(old) if self.block and suffix.startswith(old) else suffix

    def single_at(self, suffix: str) -> tuple[int, str] | None:
        """(expert, name) of a tensor of one expert, such as (7, `down_proj`); None: of all experts, or of none."""
        found = re.fullmatch(rf"{re.escape(self.module)}\.(\d+)\.(\w+)\.weight", self.in_model(suffix))
        return (int(found[1]), found[2]) if found and found[2] in self.single else None

    def held(self, suffix: str) -> str:
        """The suffix of the tensor of the model that a tensor of a file is, or is a part of."""
        at = self.single_at(suffix)
        return self.in_model(suffix) if at is None else self.down if at[1] == self.single[2] else self.gate_up

    def renumbered(self, suffix: str, expert: int) -> str:
        """The suffix of a tensor of one expert as that of another one's."""
        at, name = suffix.split(".")[-3:-1]
        return f"{suffix.removesuffix(f'{at}.{name}.weight')}{expert}.{name}.weight"

    def merged(self, found: Mapping[str, Size], experts: int) -> dict[str, Size]:
        """Sizes by suffix as the model has them: where all experts are there, each alone, the one tensor of them all.

        What is not there whole, or is not alike, stays as it is called.
        """
        plain = {self.in_model(suffix): size for suffix, size in found.items()}
        sizes: dict[str, dict[int, Size]] = {name: {} for name in self.single}
        for suffix, size in plain.items():
            if at := self.single_at(suffix):
                sizes[at[1]][at[0]] = size
        alike = [set(each.values()) for each in sizes.values()]
        whole = all(set(each) == set(range(experts)) for each in sizes.values())
        if not self.single or not whole or any(len(one) != 1 for one in alike):
            return plain
        gate, up, down = (one.pop() for one in alike)
        if gate != up or len(gate) != 2:
            return plain
        rest = {suffix: size for suffix, size in plain.items() if self.single_at(suffix) is None}
        return rest | {self.gate_up: (experts, 2 * gate[0], gate[1]), self.down: (experts, *down)}
