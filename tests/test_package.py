"""The public API, pinned, and the README's example, run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.tiny_run import tiny_recipe

import prunetune

ROOT = Path(__file__).parent.parent


def test_public_names():
    assert sorted(prunetune.__all__) == ["PrunetuneError", "Recipe", "prune_tune_loop"]
    for name in prunetune.__all__:
        assert callable(getattr(prunetune, name))
    with pytest.raises(AttributeError, match="nothing"):
        prunetune.nothing  # noqa: B018


def test_the_readme_s_python_example_runs(tmp_path, monkeypatch):
    """The block is taken from the README as it stands; only the recipe it reads is a tiny one."""
    (block,) = re.findall(r"```python\n(.*?prune_tune_loop.*?)```", (ROOT / "README.md").read_text(), re.S)
    small = tiny_recipe(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(prunetune.Recipe, "read", classmethod(lambda cls, ref: small))
    space: dict[str, object] = {}
    exec(compile(block, "README.md", "exec"), space)  # our own README
    assert (tmp_path / "runs" / "demo" / "final" / "config.json").is_file()
