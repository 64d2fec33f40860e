"""The public API, pinned, and the guide's example, run."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
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


def test_what_the_package_imports_is_what_it_asks_for():
    """A wheel in an environment of its own has no tools of the developers'; what others bring is named with who brings it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [
        d for name, group in project["optional-dependencies"].items() if name not in ("dev", "docs") for d in group
    ]
    asked = {re.split(r"[^\w-]", d)[0].lower().replace("-", "_") for d in [*project["dependencies"], *extras]}
    brought = {"huggingface_hub": "transformers", "tokenizers": "transformers", "pyarrow": "datasets", "sympy": "math_verify",
               "pydantic_core": "pydantic", "yaml": "pyyaml", "trackio": "", "wandb": ""}  # fmt: skip
    assert {by for by in brought.values() if by} <= asked
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            for name in (n.partition(".")[0] for n in names):
                assert name in sys.stdlib_module_names or name in {"prunetune", *asked, *brought}, (
                    f"{path.name}: {name}"
                )


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
