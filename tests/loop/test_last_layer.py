"""A family whose class fixes the kind of its last layer: no run takes that layer, whoever chooses."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.loop.test_control import ONE_ROUND
from tests.tiny import tiny_config
from tests.tiny_run import tiny_recipe

from prunetune.common.files import read_json
from prunetune.errors import OutOfReach
from prunetune.loop import loop
from prunetune.schedule.sizes import Sizes
from prunetune.schedule.target import PruneConfig, final_shape


def dropped(out: Path) -> list[list[int]]:
    return [read_json(p)["drop_layers"] for p in sorted(out.glob("0*/plan.json"))]


def test_neither_the_run_nor_the_cut_by_hand_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "write_report", lambda *_args, **_options: None)
    recipe = tiny_recipe(tmp_path, "gemma4_text", **{**ONE_ROUND, "control": "naive", "recover": []})
    loop.prune_tune_loop(recipe, tmp_path / "out")
    ((own,),) = dropped(tmp_path / "out")
    assert own != 3 and dropped(tmp_path / "out" / "control") == [[2]]


def test_nor_a_threshold_that_every_layer_lies_below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "write_report", lambda *_args, **_options: None)
    prune = {"sigma_layer": 1e9, "align": 4, "max_rounds": 3}
    recipe = tiny_recipe(tmp_path, "gemma4_text", **{**ONE_ROUND, "control": "none", "recover": [], "prune": prune})
    loop.prune_tune_loop(recipe, tmp_path / "out")
    whole = 4
    for layers in dropped(tmp_path / "out"):
        assert whole - 1 not in layers
        whole -= len(layers)
    kinds = read_json(tmp_path / "out" / "final" / "config.json")["layer_types"]
    assert len(kinds) == whole < 4 and kinds[-1] == "full_attention"


@pytest.mark.parametrize(("family", "layers"), [("gemma4_text", [3]), ("gemma4_text", [0, 3])])
def test_a_recipe_that_names_it_is_refused_before_any_work(family: str, layers: list[int]) -> None:
    prune = PruneConfig.model_validate({"target": 0.6, "layers": layers})
    with pytest.raises(OutOfReach, match="last layer stays") as e:
        final_shape(prune, Sizes.of(tiny_config(family)))
    assert e.value.valid == "0 to 2"
    assert final_shape(prune, Sizes.of(tiny_config("llama")))[0] == 4 - len(layers)
