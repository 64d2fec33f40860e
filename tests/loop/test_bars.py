"""Every wait has a bar: whatever takes long goes on under one that has a name and a total. The clock is of the work.

A tiny model's work takes no time, so a clock is made of it: a forward pass, a file hashed and a tensor solved for take
three seconds each, and more than two without a bar is a fault.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny_run import tiny_recipe
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from prunetune.common import notes
from prunetune.common.progress import Progress, Watch
from prunetune.loop.loop import prune_tune_loop

PATIENCE, WORK = 2.0, 3.0


class Seen(Watch):
    """Which bars are open, which were told a total, and how long was worked under which."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.totals: dict[str, int] = {}
        self.under: Counter[str] = Counter()
        self.alone: list[str] = []

    @contextmanager
    def bar(self, name: str, total: int | None = None, *, told: bool = True) -> Iterator[Progress]:
        """Note it."""
        self.open.append(name)

        def progress(done: int, total: int) -> None:
            assert 0 <= done <= total, (name, done, total)
            self.totals[name] = total

        if total is not None:
            progress(0, total)
        try:
            yield progress
        finally:
            self.open.remove(name)

    def works(self, what: str) -> None:
        """Three seconds pass."""
        if self.open:
            self.under[self.open[-1]] += 1
        elif WORK > PATIENCE:
            self.alone.append(what)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Seen]:
    watch = Seen()

    def hook(module: nn.Module, args: Any) -> None:
        watch.works(f"forward of {type(module).__name__}")

    monkeypatch.setattr(notes, "PIECE", 1 << 12)  # weights of a tiny model are large files
    monkeypatch.setattr(notes, "LARGE", 1 << 40)
    plain = torch.linalg.solve_triangular

    def solved(*args: Any, **more: Any) -> Any:
        watch.works("solve")
        return plain(*args, **more)

    monkeypatch.setattr(torch.linalg, "solve_triangular", solved)
    handle = register_module_forward_pre_hook(hook)
    yield watch
    handle.remove()


def test_no_stage_of_a_run_lacks_a_bar(tmp_path: Path, seen: Seen) -> None:
    recipe = tiny_recipe(
        tmp_path,
        budget="damage",
        compensate="least-squares",
        score={"criterion": "greedy", "samples": 16, "held_out": 4, "max_length": 64},
        prune={"target": 0.75, "rounds": "auto", "align": 4, "layers": 1},
        do_no_harm=True,
    )
    prune_tune_loop(recipe, tmp_path / "run", seen)
    assert seen.alone == [], Counter(seen.alone)
    assert seen.open == []
    names = {n.split(" model")[0] for n in seen.under}
    expected = {
        "rank by greedy",
        "compensate",
        "held-out loss",
        "evaluate sums",
        "tune cpt",
        "time 1 at a time",
        "time 8 at a time",
    }
    assert expected <= names, names
    assert {n for n in seen.under if n not in seen.totals} == set(), "a bar without a total tells no time left"
    assert {"load model", "hash model.safetensors (MB)", "probe", "prune", "read data", "report"} <= set(
        seen.totals
    ) | names
