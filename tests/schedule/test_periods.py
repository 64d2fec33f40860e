"""Layers go in whole periods where engines hard-code the family's pattern, and what breaks it is told."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from tests.tiny import tiny_folder
from tests.tiny_run import tiny_recipe

from prunetune.cli.preview import about_periods, preview
from prunetune.common.progress import Watch
from prunetune.loop.loop import prune_tune_loop
from prunetune.models.families.pattern import engine_pattern
from prunetune.models.folders import config_values
from prunetune.pruning.plan import make_plan
from prunetune.schedule.sizes import Sizes
from prunetune.schedule.steps import plan_ahead
from prunetune.schedule.target import PruneConfig, final_shape, period_in
from prunetune.schedule.way import path

SIZES = Sizes(depth=24, width=512, base=20_000, layer=60_000, neuron=384, hidden=128, period=4)
GEMMA: dict[str, Any] = {"model_type": "gemma2", "num_hidden_layers": 4}


def prune(**values: Any) -> PruneConfig:
    return PruneConfig.model_validate({"align": 8, "step": 0.1, **values})


@pytest.mark.parametrize("order", ["neurons-then-layers", "layers-then-neurons", "alternating", "together"])
@pytest.mark.parametrize(
    "how", [{"step": 0.02}, {"step": 0.1}, {"rounds": 3}, {"rounds": 7}, {"step": {"neurons": 64}}]
)
@pytest.mark.parametrize("target", [0.15, 0.2, {"depth": 12, "width": 256}, {"depth": 8, "width": 512}])
def test_every_round_takes_whole_periods(order: str, how: dict[str, Any], target: Any) -> None:
    wanted = prune(target=target, order=order, **how)
    ahead = plan_ahead(wanted, SIZES)
    assert period_in(wanted, SIZES) == 4 and (ahead[-1].depth, ahead[-1].width) == final_shape(wanted, SIZES)
    assert ahead[-1].depth < 24 and all((a.step.layers or 0) % 4 == 0 for a in ahead)
    assert all((24 - depth) % 4 == 0 for depth, _ in path(wanted, SIZES, (24, 512)))


def test_what_is_named_stays_what_it_is() -> None:
    for free in ({"layers": 3}, {"target": {"depth": 21}}, {"layers": [1, 2, 3, 4]}, {"whole_periods": False}):
        wanted = prune(**{"target": 0.6, **free})
        assert period_in(wanted, SIZES) == 1
    assert period_in(prune(target=0.5, layers=4), SIZES) == 4
    few = Sizes(depth=3, width=512, base=20_000, layer=60_000, neuron=384, hidden=128, period=4)
    assert final_shape(prune(target=0.25), few)[0] < 3, "where no whole period is there to go, single layers do"


@pytest.mark.parametrize("period", [2, 3, 4])
def test_runs_of_neighbours_with_the_lowest_sum(period: int) -> None:
    """Against all ways to take a run, and then one of what is left."""
    layers = [5.0, 1.0, 9.0, 2.0, 2.0, 7.0, 1.0, 1.0, 8.0, 3.0, 4.0, 6.0]
    one = make_plan([[0.0]] * 12, layers, "sha", n_layers=period, period=period).drop_layers
    best = min(sum(layers[s : s + period]) for s in range(13 - period))
    assert sum(layers[i] for i in one) == best
    two = make_plan([[0.0]] * 12, layers, "sha", n_layers=2 * period, period=period).drop_layers
    kept = [i for i in range(12) if i not in two]
    assert len(two) == 2 * period and all(i % period == k % period for i, k in enumerate(kept))
    assert make_plan([[0.0]] * 12, layers, "sha", n_layers=2).drop_layers == (1, 6)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"target": {"depth": 2}}, "whole periods of 2"),
        ({"target": {"depth": 3}}, "warning: 1 layers of gemma2 go"),
        ({"target": {"depth": 2}, "whole_periods": False}, "warning: 2 layers of gemma2 go"),
        ({"target": 0.9, "layers": [1, 3]}, "warning: 2 layers of gemma2 go"),
        ({"target": 0.9, "layers": [1, 2]}, None),
        ({"target": {"width": 24}}, None),
    ],
)
def test_a_dry_run_tells_what_engines_will_make_of_it(values: dict[str, Any], told: str | None) -> None:
    sizes = Sizes(depth=4, width=48, base=1000, layer=2000, neuron=48, hidden=32, period=2)
    wanted = PruneConfig.model_validate({"align": 4, "rounds": 1, "order": "together", **values})
    said = about_periods(wanted, GEMMA, sizes)
    assert (told is None and not said) or (told is not None and told in said[0])


class Heard(Watch):
    """Keeps the lines."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)


@pytest.mark.parametrize(("depth", "broken"), [(3, True), (2, False)])
def test_a_run_and_its_card_tell_it(tmp_path: Path, depth: int, broken: bool) -> None:
    tiny_folder(tmp_path / "model", "gemma2")
    (tmp_path / "rows.jsonl").write_text(
        "".join(f'{{"question": "{i}+1", "answer": "{i + 1}"}}\n' for i in range(40)), encoding="utf-8"
    )
    recipe = tiny_recipe(
        tmp_path, "gemma2",
        prune={"target": {"depth": depth}, "rounds": 1, "order": "together"}, recover=[],
        evaluate={"tasks": [], "latency_repeats": 0},
    )  # fmt: skip
    heard = Heard()
    prune_tune_loop(recipe, tmp_path / "out", heard)
    final = config_values(tmp_path / "out" / "final")
    assert (engine_pattern(final) is not None) is broken
    assert any("warning: llama.cpp" in line for line in heard.lines) is broken
    assert ("there it computes another model" in (tmp_path / "out" / "final" / "README.md").read_text()) is broken
    assert ("warning" in preview(recipe)[1]) is broken
    assert len(list(itertools.chain(final["layer_types"]))) == depth
