from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from tests.fake_run import DEPTH, WIDTH, fake_run

from prunetune.pruning.plan import PrunePlan
from prunetune.report.figures.heatmap import removed_map
from prunetune.runs.reading import RunRecord, read_run


def _chain(path: Path, plans: list[PrunePlan]) -> RunRecord:
    for i, plan in enumerate(plans, 1):
        at = path / f"0{i}-x"
        at.mkdir(parents=True)
        (at / "plan.json").write_text(plan.model_dump_json())
        (at / "stage.json").write_text(json.dumps({"index": i, "name": at.name}))
    return read_run(path)


def test_plans_compose_to_places_in_the_original(tmp_path) -> None:
    first = PrunePlan(model_sha="a", depth=3, width=4, drop_layers=(1,), drop_neurons={0: (0,), 2: (3,)})
    second = PrunePlan(model_sha="b", depth=2, width=3, drop_neurons={0: (0,), 1: (2,)})
    found = removed_map(_chain(tmp_path, [first, second]))
    assert found is not None
    share, gone = found
    assert gone == {1: "01-x"}
    # layer 0 lost neuron 0, then the first of 1, 2, 3; layer 2 lost neuron 3, then the last of 0, 1, 2
    np.testing.assert_array_equal(share, [[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 1, 1]])


def test_plans_that_do_not_fit_each_other_are_not_drawn(tmp_path) -> None:
    first = PrunePlan(model_sha="a", depth=3, width=4, drop_layers=(1,))
    assert removed_map(_chain(tmp_path, [first, first])) is None


def test_removed_map_agrees_with_the_plans(tmp_path) -> None:
    run = read_run(fake_run(tmp_path / "run"))
    found = removed_map(run)
    assert found is not None
    share, gone = found
    last = run.plans()[-1][1]
    assert len(gone) == DEPTH - last.new_depth
    cells = np.diff(np.linspace(0, WIDTH, share.shape[1] + 1).round().astype(int))
    kept = [round(float(((1 - row) * cells).sum())) for i, row in enumerate(share) if i not in gone]
    assert kept == [last.new_width] * last.new_depth
