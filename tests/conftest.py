"""Offline, one thread a worker, shapes checked at run time."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ["OMP_NUM_THREADS"] = "1"  # two workers on two cores: more threads would only wait for each other

import pytest
from jaxtyping import install_import_hook
from tests.shaped import SHAPED

install_import_hook(list(SHAPED), "beartype.beartype")

import torch


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _frozen() -> Iterator[None]:
    """What lives before a test is not looked through by `gc.collect`, which a run calls a dozen times."""
    gc.freeze()
    yield
    gc.unfreeze()


LIKE_OTHERS = frozenset(
    [
        "ministral",
        "gemma",
        "smollm3",
        "olmo",
        "olmo3",
        "seed_oss",
        "exaone4",
        "glm",
        "cohere",
        "hunyuan_v1_dense",
        "ernie4_5",
        "helium",
        "stablelm",
        "gemma4_unified_text",
        "arcee",
        "apertus",
        "starcoder2",
        "phi",
        "olmoe",
        "gemma4_unified",
        "mistral3",
        "qwen3_vl",
    ]
)
"""Families whose layers are those of another with other names, numbers or norms."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """CI has to end inside fifteen minutes: what takes long and tells least beside the rest, `make thorough` runs."""
    skip = pytest.mark.skip(reason="minutes: make thorough runs it")
    for item in items:
        given = getattr(item, "callspec", None)
        if given and LIKE_OTHERS.intersection(v for v in given.params.values() if isinstance(v, str)):
            item.add_marker("thorough")
        if "PRUNETUNE_THOROUGH" not in os.environ and item.get_closest_marker("thorough"):
            item.add_marker(skip)
