"""What tests of whole runs share."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def trainers() -> Iterator[None]:
    """The trainers are imported once, and what lives then is not looked through at each `gc.collect` of a run."""
    from trl import GRPOTrainer

    assert GRPOTrainer
    gc.freeze()
    yield
    gc.unfreeze()
