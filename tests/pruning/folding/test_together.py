"""Several plans folded in one walk: the first as `compensate` has it, each as its own least squares where streams agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.pruning.test_compensate import CALIBRATION, CASES, HELD_OUT, make_plan
from tests.tiny import tiny_model

from prunetune.common.files import mark
from prunetune.errors import PlanError
from prunetune.pruning import halfway
from prunetune.pruning.compensate import RIDGES, compensate
from prunetune.pruning.folding.together import together
from prunetune.pruning.halfway import Halfway

PLANS = [make_plan(drop_layers=(), count=count) for count in (8, 20, 32)]
WAYS: dict[str, Any] = {"held_out": HELD_OUT, "ridges": RIDGES}


@pytest.mark.parametrize("case", CASES)
def test_the_first_plan_is_folded_as_a_cut_would_and_the_others_as_far_as_their_streams_agree(case: str) -> None:
    family, changes = CASES[case]
    model = tiny_model(family, **changes)
    found = together(model, PLANS, CALIBRATION, **WAYS)
    for place, (plan, tensors) in enumerate(zip(PLANS, found, strict=True)):
        wanted = compensate(model, plan, CALIBRATION, held_out=HELD_OUT).tensors
        assert tensors.keys() == wanted.keys()
        same = wanted if place == 0 else [name for name in wanted if ".0." in name]  # layer 0 sees the same embeddings
        assert same
        for name in same:
            torch.testing.assert_close(tensors[name], wanted[name], rtol=1e-3, atol=1e-4)


def test_a_walk_that_was_killed_goes_on_and_its_result_is_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(halfway, "SECONDS", 0.0)
    mark(tmp_path, "run")
    model, at, told = tiny_model("llama"), tmp_path / ".together.half", list[int]()

    def kill(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    straight = together(model, PLANS, CALIBRATION, **WAYS)
    with pytest.raises(KeyboardInterrupt):
        together(model, PLANS, CALIBRATION, progress=kill, halfway=Halfway(at, "key"), **WAYS)
    for wanted in ([3, 4], []):  # the second start; one after the walk had ended
        found = together(
            model, PLANS, CALIBRATION, progress=lambda d, _: told.append(d), halfway=Halfway(at, "key"), **WAYS
        )
        assert told == wanted
        told.clear()
        for ours, theirs in zip(found, straight, strict=True):
            assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_plans_that_take_layers_are_refused() -> None:
    with pytest.raises(PlanError, match="neurons alone"):
        together(tiny_model("llama"), [make_plan()], CALIBRATION, **WAYS)
