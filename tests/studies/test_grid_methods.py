"""Methods of a grid that are no plain loop: other runners, controls, own budgets; tables by round, against arithmetic."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import grid as runner
import pytest
import yaml
from cells import Grid, GridError, paper, sha_of
from from_scratch import llama
from paired import t_interval
from results import Results
from tables import decide, readme, write
from tests.studies.study import invented_study, tiny_study

from prunetune import Recipe
from prunetune.baselines.full_model import full_model_run
from prunetune.baselines.sliced_cost import kept_for, sliced_cost
from prunetune.baselines.slicegpt_run import slicegpt_run
from prunetune.common.progress import Watch
from prunetune.schedule.sizes import Sizes
from prunetune.schedule.target import final_shape

STUDIES = Path(__file__).parents[2] / "studies"


@pytest.mark.slow
def test_the_baselines_that_need_code_leave_records_like_the_loop(tmp_path, capsys):
    methods = {
        "sliced": {"run": "slicegpt", "prune": {"step": 1.0}},
        "full": {"run": "full_model", "size": 1.0, "prune": {"target": 0.8, "rounds": 2}},
    }
    study = tiny_study(tmp_path, methods=methods, claims=[], by_round=list(methods))
    assert runner.main([str(study.folder), "--workers", "1", "--scratch", str(tmp_path / "scratch")]) == 0
    sliced, full = study.cells()
    assert (sliced.name, full.name) == ("sliced-0.8-600-s0", "full-1-600-s0")
    straight = {
        sliced: slicegpt_run(Recipe.parse(paper(sliced)), tmp_path / "a", Watch(quiet=True), align=4),
        full: full_model_run(Recipe.parse(paper(full)), tmp_path / "b", Watch(quiet=True)),
    }
    for cell, summary in straight.items():
        record = study.record(cell)
        assert record["params_ratio"] == summary["params_ratio"]
        assert record["held_out_loss"] == summary["final"]["held_out_loss"]
        assert record["final"]["evals"][0]["value"] == summary["final"]["evals"][0]["value"]
        assert record["recovery_tokens"] == summary["recovery_tokens"] > 0
        assert [r["name"] for r in record["rounds"]] == [s["name"] for s in summary["stages"]]
    assert 0 < study.record(sliced)["params_ratio"] <= 0.8
    assert [r["pruned_loss"] for r in study.record(full)["rounds"]] == [None, None]
    page = write(study.folder).read_text()
    measured = page.partition("## 80%, 600 tokens")[2].splitlines()
    for cell, left in ((sliced, f"{100 * study.record(sliced)['params_ratio']:.1f}"), (full, "100.0")):
        assert f"| {left} |" in next(line for line in measured if line.startswith(f"| {cell.method} |"))
    assert (study.folder / "figures" / "rounds.svg").is_file()


def test_an_unknown_runner_is_refused():
    with pytest.raises(GridError, match="run: magic"):
        runner.runner("magic")


def test_a_runner_is_part_of_what_a_record_was_made_from_and_the_loop_is_not(tmp_path):
    study = tiny_study(tmp_path, methods={"loop": {}, "sliced": {"run": "slicegpt"}}, claims=[])
    loop, sliced = study.cells()
    assert loop.recipe == sliced.recipe
    assert loop.sha == sha_of(loop.recipe) != sliced.sha


def test_methods_at_some_sizes_with_values_of_the_size_and_one_control_a_budget(tmp_path):
    methods = {
        "ptl": {},
        "layers": {"prune": {"target": {"depth": "$depth"}}},
        "small": {"sizes": [0.4]},
        "whole": {"run": "full_model", "size": 1.0},
    }
    study = invented_study(
        tmp_path / "s",
        dict.fromkeys(methods, 0.5),
        methods=methods,
        values={"depth": {0.6: 6, 0.4: 4}},
        claims=[
            {"of": "small", "over": "whole", "bound": -0.9, "scope": "each"},
            {"of": "ptl", "over": "original", "bound": -0.9, "scope": "mean"},
        ],
    )
    names = [c.name for c in study.cells() if c.seed == 0 and c.tokens == 100]
    assert names == [
        "ptl-0.6-100-s0", "layers-0.6-100-s0", "whole-1-100-s0", "ptl-0.4-100-s0", "layers-0.4-100-s0", "small-0.4-100-s0",
    ]  # fmt: skip
    depths = [c.recipe["prune"]["target"]["depth"] for c in study.cells() if c.method == "layers"]
    assert depths[:2] == [6, 4]
    assert not {"sizes", "size", "run"} & {k for c in study.cells() for k in c.recipe}
    results = Results.read(study)
    assert results.of("small", (0.6, 100)) == []
    assert results.of("whole", (0.6, 100)) == results.of("whole", (0.4, 100)) != []
    first, second = (decide(results, c) for c in study.claims)
    assert first.verdict == second.verdict == "held"
    assert first.measured.startswith("cells: 2 held")  # one size of two, both budgets
    gaps = [
        fmean(results.right(r).values()) - fmean(study.verdicts(r["original"]).values())
        for p in results.places
        for r in results.of("ptl", p)
    ]
    # every record has an untouched model of its own here, and a claim takes one a seed: only near
    assert float(second.measured.split()[0]) == pytest.approx(100 * fmean(gaps), abs=8)
    assert "| 60% | 100 | 59.6 | 59.6 | – | 99.6 |" in readme(results)


def test_a_budget_in_prompts_and_a_method_that_spends_something_else(tmp_path):
    rl = {"type": "grpo", "samples": "$tokens"}
    ct = {"type": "cpt", "tokens": 500}
    methods = {"rl": {"recover": [rl]}, "both": {"recover": [ct, rl]}, "ct": {"recover": [ct], "spends": "other"}}
    study = tiny_study(tmp_path, methods=methods, budget="samples", claims=[])
    assert [[m.get("samples") for m in c.recipe["recover"]] for c in study.cells()] == [[600], [None, 600], [None]]
    assert "spends" not in study.cells()[-1].recipe
    assert "## 80%, 600 prompts" in readme(Results.read(study))
    value = yaml.safe_load((study.folder / "grid.yaml").read_text())
    del value["methods"]["ct"]["spends"]
    (study.folder / "grid.yaml").write_text(yaml.safe_dump(value))
    with pytest.raises(GridError, match=r"ct: recover must spend the cell's budget: `samples: \$tokens`"):
        Grid.read(study.folder).cells()
    (study.folder / "grid.yaml").write_text(yaml.safe_dump({**value, "budget": "hours"}))
    with pytest.raises(GridError, match="budget: hours"):
        Grid.read(study.folder)


def test_accuracy_by_round_equals_direct_computation(tmp_path):
    claims = [{"of": "ptl", "over": "original", "above": -0.9, "scope": "mean", "round": 1}]
    study = invented_study(tmp_path / "s", {"ptl": 0.3, "once": 0.5}, by_round=["ptl", "once"], claims=claims)
    results, place = Results.read(study), (0.6, 100)
    records = [study.record(study.cell("ptl", *place, s)) for s in study.seeds]
    after = [r["rounds"][0]["evals"][0]["value"] for r in records]
    low, high = t_interval(after)
    page = write(study.folder).read_text()
    assert f"| 1 | {100 * fmean(after):.1f} [{100 * low:.1f}, {100 * high:.1f}] (80) |" in page
    assert (study.folder / "figures" / "rounds.svg").stat().st_size > 1000
    found = decide(results, study.claims[0])
    gains = [
        fmean(
            r["rounds"][0]["evals"][0]["value"] - r["original"]["evals"][0]["value"]
            for p in results.places
            for r in [study.record(study.cell("ptl", *p, s))]
        )
        for s in study.seeds
    ]
    low, high = t_interval(gains)
    assert found.measured == f"{100 * fmean(gains):+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
    assert found.verdict == "held" and "after round 1" in found.text
    records[0]["rounds"][0]["evals"][0]["n"] = 3
    study.records.put(records[0]["cell"], records[0])
    with pytest.raises(GridError, match="answered 3 of 60"):
        decide(Results.read(study), study.claims[0])


@pytest.mark.parametrize("name", ["03-table-1", "04-steps", "05-order", "06-criteria", "07-full-model", "08-grpo"])
def test_every_method_ends_at_the_size_of_its_row(name):
    study = Grid.read(STUDIES / name)
    config = llama(128, 256, 10)
    sizes = Sizes.of(config)
    assert study.base["model"] == "runs/traces-deep"
    assert set(study.notes) == set(study.methods)
    for cell in study.cells():
        if cell.run == "full_model":
            continue
        prune = Recipe.parse(paper(cell), cell.name).prune
        share = sizes.params(*final_shape(prune, sizes)) / sizes.original
        if cell.run == "slicegpt":
            share = sliced_cost(config, kept_for(config, share, prune.align or 8)).params / sizes.original
        assert cell.size - 0.025 < share <= cell.size + 0.011, cell.name
