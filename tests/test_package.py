"""The public API, pinned, and the guide's example, run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from tests.tiny import tiny_folder
from tests.tiny_run import tiny_recipe

import prunetune

ROOT = Path(__file__).parent.parent


def test_public_names():
    names = ["PrunetuneError", "Recipe", "__version__", "apply", "batches", "compact", "compensate", "plan",
             "prune_tune_loop", "register", "score"]  # fmt: skip
    assert sorted(prunetune.__all__) == names == dir(prunetune)
    assert all(callable(getattr(prunetune, name)) for name in names if name != "__version__")
    assert re.match(r"\d+\.\d+", prunetune.__version__)
    with pytest.raises(AttributeError, match="nothing"):
        prunetune.nothing  # noqa: B018


@pytest.mark.slow
def test_the_guide_s_python_example_runs(tmp_path, monkeypatch):
    """The block is taken from docs/guide.md as it stands, and is short; `my-model` is a tiny one."""
    (block,) = re.findall(r"```python\n(import prunetune\n.*?)```", (ROOT / "docs" / "guide.md").read_text(), re.S)
    assert len(block.strip().splitlines()) <= 12
    whole = tiny_folder(tmp_path / "my-model", max_position_embeddings=256)
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {}
    exec(compile(block, "guide.md", "exec"), space)  # our own page
    small, model = space["small"], space["model"]
    assert small.config.intermediate_size == model.config.intermediate_size - 16
    assert sorted(p.name for p in tmp_path.iterdir()) == [whole.name], "nothing is left behind"


def test_a_path_or_a_name_will_do_as_a_recipe(tmp_path):
    recipe = tiny_recipe(
        tmp_path,
        recover=[],
        evaluate={"tasks": [], "latency_repeats": 0},
        prune={"target": 0.9, "rounds": 1, "align": 4},
    )
    recipe.write(tmp_path / "recipe.yaml")
    summary = prunetune.prune_tune_loop(str(tmp_path / "recipe.yaml"), tmp_path / "run")
    assert summary.params_ratio <= 0.9
