"""Writes docs/families.md, which family is served how far: `make families`. A test keeps the page as this makes it.

A "yes" of an axis or of a recovery method is what a test does for that family; the tests' own lists are read. What vLLM
and llama.cpp name is in engines.json, by their own lists: add the class of a new family there, after a look at both.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.loop.test_families import LOOPED, RECOVERED
from tests.loop.test_wrappers import LOOPED as WRAPPERS_LOOPED
from tests.loop.test_wrappers import RECOVERED as WRAPPERS_RECOVERED
from tests.pruning.test_apply import CASES as APPLIED
from tests.pruning.test_heads import CUT
from tests.pruning.test_wrappers import HEADS
from tests.pruning.vocabulary.test_families import CUT as VOCABULARIES
from tests.tiny import DENSE, MIXTURES
from tests.tune.test_families import TRAINED
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from prunetune.models.families import FAMILIES
from prunetune.models.families.wrappers import WRAPPERS

ROOT = Path(__file__).resolve().parents[1]
ENGINES: dict[str, Any] = json.loads((ROOT / "docs/engines.json").read_text(encoding="utf-8"))

_METHODS: dict[str, tuple[list[str], str]] = {
    "cpt": (LOOPED, "tests/loop/test_families.py"),
    "sft": (TRAINED, "tests/tune/test_families.py"),
    "distill": (TRAINED, "tests/tune/test_families.py"),
    "grpo": (LOOPED, "tests/loop/test_families.py"),
}
assert set(RECOVERED) <= set(_METHODS)

HELD: dict[str, tuple[list[str], str]] = {
    "layers": (list(APPLIED), "tests/pruning/test_apply.py"),
    "neurons": (list(APPLIED), "tests/pruning/test_apply.py"),
    "heads": (CUT, "tests/pruning/test_heads.py"),
    "query_heads": (CUT, "tests/pruning/test_heads.py"),
    "vocabulary": (VOCABULARIES, "tests/pruning/vocabulary/test_families.py"),
    **_METHODS,
}
"""Column -> (the families that a test runs it for, the test)."""

MIXED: dict[str, tuple[list[str], str]] = {
    **{axis: (MIXTURES, "tests/pruning/experts/test_cut.py") for axis in ("layers", "neurons", "experts")},
    "heads": ([name for name in MIXTURES if not FAMILIES[name].heads_stay], "tests/pruning/experts/test_cut.py"),
    "vocabulary": (VOCABULARIES, "tests/pruning/vocabulary/test_families.py"),
    **_METHODS,
}
"""The same of mixtures of experts."""

WRAPPED: dict[str, tuple[list[str], str]] = {
    "layers": (list(WRAPPERS), "tests/pruning/test_wrappers.py"),
    "neurons": (list(WRAPPERS), "tests/pruning/test_wrappers.py"),
    "heads": (HEADS, "tests/pruning/test_wrappers.py"),
    **{method: (WRAPPERS_LOOPED, "tests/loop/test_wrappers.py") for method in WRAPPERS_RECOVERED},
}
"""The same of models with a vision tower."""


def class_of(model_type: str) -> str:
    """The class that transformers writes into `architectures`."""
    if model_type in WRAPPERS:
        return str(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[model_type])
    return str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type])


def named(architecture: str) -> tuple[str, str]:
    """Whether vLLM's and llama.cpp's lists name a class."""
    for title, found in (
        ("both", "yes yes"),
        ("vLLM alone", "yes -"),
        ("llama.cpp alone", "- yes"),
        ("neither", "- -"),
    ):
        if architecture in ENGINES[f"named by {title}"]:
            vllm, llama = found.split()
            return vllm, llama
    raise SystemExit(f"docs/engines.json does not say whether vLLM and llama.cpp name {architecture}: look, and add it")


def table(names: list[str], held: dict[str, tuple[list[str], str]]) -> list[str]:
    """A row a family."""
    head = ["family", *(f"`{column}`" for column in held), "vLLM", "llama.cpp"]
    rows = [
        [f"`{name}`", *("yes" if name in of else "-" for of, _ in held.values()), *named(class_of(name))]
        for name in names
    ]
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def tests(held: dict[str, tuple[list[str], str]]) -> str:
    """Which test holds which column."""
    files: dict[str, list[str]] = {}
    for column, (_, test) in held.items():
        files.setdefault(test, []).append(column)
    return "; ".join(f"{', '.join(columns)}: `{test}`" for test, columns in files.items())


def page() -> str:
    """docs/families.md."""
    lists = [
        f"* {name}: `{at['source']}` at `{at['commit'][:12]}`, read on {at['read']}"
        for name, at in ENGINES["lists"].items()
    ]
    parts = [
        "# Families, axes, engines",
        "",
        "<!-- Made by `make families` (docs/families.py). -->",
        "",
        f"What can be cut and recovered in each of {len(FAMILIES)} families. Every *yes* of an axis or a method is a test that runs on that family: the cut model equals",
        "the whole one with the same parts set to zero, the loop goes through two rounds with `cpt` and `grpo`, and the first loss of `sft` and of `distill` is the one that plain",
        "transformers gives. The models behind the names: [Concepts](concepts.md#families). The columns vLLM and llama.cpp say that their own lists name the architecture; they were not run here.",
        "`make test` runs these tests for one family of each kind of layer, `make thorough` for those that differ from it in names, numbers or norms.",
        "",
        *table(DENSE, HELD),
        "",
        f"Held by: {tests(HELD)}. Loaded by plain transformers where prunetune cannot be imported: `tests/publish/test_elsewhere.py`.",
        "",
        "## Mixtures of experts",
        "",
        "Neurons are those inside each expert. What else works, and what does not: [the method](method.md#prune).",
        "",
        *table(MIXTURES, MIXED),
        "",
        f"Held by: {tests(MIXED)}.",
        "",
        "## Models with a vision tower",
        "",
        "The language model inside is cut and trained on text; all else is carried over byte for byte. With an image the result equals the oracle.",
        "`--text-only` writes the language model alone, which is then served as its family above.",
        "",
        *table(list(WRAPPERS), WRAPPED),
        "",
        f"Held by: {tests(WRAPPED)}.",
        "",
        "## The engines' lists",
        "",
        *lists,
        "",
        "Engines that hard-code which layers see a window compute another model where layers go out of step: [whole periods](method.md#layers-in-whole-periods).",
        "`prunetune check RUN` converts and asks the engines that are installed.",
        "",
    ]
    return "\n".join(parts)


if __name__ == "__main__":
    (ROOT / "docs/families.md").write_text(page(), encoding="utf-8")
