"""Chains of methods in one loop (Algorithm 1, lines 9-10): killed inside each, they end with an undisturbed run's tensors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny_run import tiny_recipe

from prunetune.common.progress import Watch
from prunetune.loop.loop import prune_tune_loop
from prunetune.recipe.schema import Recipe

STEP = {"batch_size": 8, "micro_batch_size": 8, "learning_rate": 1e-3, "precision": "fp32", "checkpoint_minutes": 1e-9}
GRPO = {
    "type": "grpo", "samples": 12, "per": "round", **STEP, "batch_size": 4, "group": 2, "max_new_tokens": 4, "max_length": 64,
}  # fmt: skip


def chain(at: Path, first: str) -> Recipe:
    """One round with two methods: four steps of the first, three of GRPO."""
    recover = [{"type": first, "samples": 32, "per": "round", **STEP, "max_length": 64}, GRPO]
    return tiny_recipe(at, recover=recover, prune={"target": 0.9, "step": 0.5, "align": 4})


CHILD = """
import os, signal, sys
sys.path[:0] = {paths!r}
from contextlib import contextmanager
from pathlib import Path
from prunetune.loop.loop import prune_tune_loop
from prunetune.common.progress import Watch
from tests.tune.test_chain import chain

class Dying(Watch):
    @contextmanager
    def bar(self, name, *args, **kwargs):
        calls = []
        def count(done, total):
            calls.append(done)
            if name.startswith("tune") and len(calls) == (2 if "grpo" in name else 3) and done < total:
                print("killed", name, done, flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
        yield count

at = Path({at!r})
for _ in range(12):
    child = os.fork()
    if child == 0:
        prune_tune_loop(chain(at, {first!r}), at / "killed", Dying(quiet=True))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status == 0:
        sys.exit(0)
sys.exit(1)
"""


@pytest.mark.slow
@pytest.mark.parametrize("first", ["cpt", pytest.param("distill", marks=pytest.mark.thorough)])
def test_killed_inside_each_method(tmp_path: Path, first: str) -> None:
    summary: Any = prune_tune_loop(chain(tmp_path, first), tmp_path / "straight", Watch(quiet=True))
    assert [t["method"] for t in summary["stages"][0]["tune"]] == [first, "grpo"]
    root = str(Path(__file__).parents[2])
    code = CHILD.format(paths=[root], at=str(tmp_path), first=first)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    killed = {line.split()[2] for line in done.stdout.splitlines() if line.startswith("killed")}
    assert killed == {first, "grpo"}, done.stdout
    one, other = (load_file(tmp_path / run / "final" / "model.safetensors") for run in ("straight", "killed"))
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
