"""The study runner: what a cell leaves, what is shared, what is resumed; each against the loop itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import grid as runner
import pytest
from cells import Grid, GridError, paper
from tables import write
from tests.studies.study import tiny_study

from prunetune import Recipe, prune_tune_loop
from prunetune.common.progress import Watch
from prunetune.loop import measure
from prunetune.loop.recovery import recover as recovering

STUDIES = Path(__file__).parents[2] / "studies"


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Both cells, by two worker processes from the command line."""
    at = tmp_path_factory.mktemp("study")
    study = tiny_study(at)
    call = [sys.executable, STUDIES / "lib" / "grid.py", study.folder, "--workers", "2", "--scratch", at / "scratch"]
    out = subprocess.run(call, capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr
    return at, study, out.stdout


@pytest.mark.slow
def test_a_record_holds_what_the_loop_itself_finds(done):
    at, study, _ = done
    for cell in study.cells():
        record = study.record(cell)
        run = at / "straight" / cell.method
        summary = prune_tune_loop(Recipe.parse(paper(cell)), run, Watch(quiet=True))
        rows = [
            json.loads(line)
            for line in (run / summary["final"]["name"] / "eval" / "sums.jsonl").read_text().splitlines()
        ]
        assert study.verdicts(record["final"]) == {r["id"]: float(r["correct"]) for r in rows}
        assert 0 < sum(r["correct"] for r in rows) < len(rows) == 20
        rows = [json.loads(line) for line in (run / "original" / "eval" / "sums.jsonl").read_text().splitlines()]
        assert study.verdicts(record["original"]) == {r["id"]: float(r["correct"]) for r in rows}
        stages = summary["stages"]
        assert record["original"]["held_out_loss"] == summary["original"]["held_out_loss"]
        assert record["held_out_loss"] == summary["final"]["held_out_loss"]
        assert record["pruned_loss"] == stages[-1]["pruned_loss"]
        assert record["params_ratio"] == summary["params_ratio"] <= 0.8
        assert [(r["width"], r["depth"], r["tokens"]) for r in record["rounds"]] == [
            (s["width"], s["depth"], s["tokens"]) for s in stages
        ]
        assert record["recovery_tokens"] == sum(s["tokens"] for s in stages) > 0
    assert [len(study.record(c)["rounds"]) for c in study.cells()] == [2, 1]


@pytest.mark.slow
def test_the_untouched_model_is_measured_once_and_models_are_gone(done):
    at, study, out = done
    assert len(list((at / "scratch" / "originals").glob("*/original/stage.json"))) == 1
    assert not [p for p in (at / "scratch").rglob("*") if p.suffix == ".safetensors" or p.name in ("tuned", "final")]
    assert out.splitlines()[0] == "09-tiny: 2 cells, 0 done"
    assert study.records.file.stat().st_size < 20_000


@pytest.mark.slow
def test_a_deleted_record_is_made_again_and_nothing_else(done, capsys, monkeypatch):
    at, study, _ = done
    first, second = study.cells()
    before, kept = study.record(second), study.record(first)
    measured, answers = [], measure.answers

    def noted(self, model, sha, folder, n):
        measured.append(folder.name)
        return answers(self, model, sha, folder, n)

    monkeypatch.setattr(measure, "answers", noted)
    call = [str(study.folder), "--workers", "1", "--scratch", str(at / "scratch")]
    assert runner.main([*call, "--again", "--only", f"method={second.method}"]) == 0
    assert measured and "original" not in measured
    again = study.record(second)
    for r in (before, again):
        for vary in ("seconds", "wall_seconds", "commit"):
            r.pop(vary)
        for stage in r["rounds"]:
            stage.pop("seconds")
    assert again == before
    assert study.record(first) == kept
    assert "1 cells, 0 done" in capsys.readouterr().out


@pytest.mark.slow
def test_a_half_run_cell_goes_on_and_a_failing_one_stops_no_other(tmp_path, monkeypatch):
    study = tiny_study(tmp_path)
    default, once = study.cells()
    scratch = tmp_path / "scratch"
    trained, launch = [], recovering.launch

    def dies_in_round_2(job, *args, **kwargs):
        trained.append(job.out.parent.name)
        if len(trained) == 2:
            raise ZeroDivisionError("killed")
        return launch(job, *args, **kwargs)

    monkeypatch.setattr(recovering, "launch", dies_in_round_2)
    call = [str(study.folder), "--workers", "1", "--scratch", str(scratch)]
    assert runner.main(call) == 1
    assert study.record(default) is None
    assert study.record(once) is not None
    assert "ZeroDivisionError" in (scratch / f"{default.name}.error.txt").read_text()
    finished = json.loads(next((scratch / default.name).glob("01-*/stage.json")).read_text())["held_out_loss"]
    assert runner.main(call) == 0
    assert study.record(default)["rounds"][0]["held_out_loss"] == finished
    assert [t[:2] for t in trained] == [
        "01",
        "02",
        "01",
        "02",
    ]  # default, default (dies), once, default's round 2 alone
    assert not (scratch / f"{default.name}.error.txt").exists()


@pytest.mark.slow
def test_tables_are_made_from_records_alone(done):
    _, study, _ = done
    page = write(study.folder).read_text()
    share = 100 * sum(study.verdicts(study.record(study.cells()[0])["final"]).values()) / 20
    assert f"| {study.cells()[0].method} | {share:.1f} [" in page.partition("## 80%, 600 tokens")[2]
    assert "2 of 2 cells" in page


def test_cells_come_in_a_useful_order_and_spend_their_budget(tmp_path):
    study = tiny_study(tmp_path, seeds=[0, 1], sizes=[0.8, 0.6], tokens=[100, 400])
    names = [c.name for c in study.cells()]
    assert names[:5] == [
        "default-0.8-100-s0",
        "once-0.8-100-s0",
        "default-0.6-100-s0",
        "once-0.6-100-s0",
        "default-0.8-400-s0",
    ]
    assert all(n.endswith("s0") for n in names[:8])
    cell = study.cell("once", 0.6, 400, 1)
    assert (cell.recipe["seed"], cell.recipe["prune"]["target"], cell.recipe["recover"][0]["tokens"]) == (1, 0.6, 400)
    assert cell.recipe["evaluate"]["tasks"][0]["seed"] == 1
    assert cell.recipe["prune"] == {"target": 0.6, "align": 4, "step": 1.0}  # merged key by key


def test_a_method_that_spends_another_budget_is_refused(tmp_path):
    study = tiny_study(tmp_path, methods={"default": {}, "once": {"recover": [{"type": "cpt", "tokens": 5}]}})
    with pytest.raises(GridError, match="once: recover must spend"):
        study.cells()


def test_a_record_of_another_recipe_is_refused(tmp_path):
    study = tiny_study(tmp_path)
    cell = study.cells()[0]
    study.records.put(cell.name, {"recipe_sha": cell.sha})
    assert study.record(cell) == {"recipe_sha": cell.sha}
    text = (study.folder / "grid.yaml").read_text().replace("learning_rate: 0.001", "learning_rate: 0.002")
    (study.folder / "grid.yaml").write_text(text)
    changed = Grid.read(study.folder)
    with pytest.raises(GridError, match="another recipe"):
        changed.record(changed.cells()[0])


@pytest.mark.parametrize("path", sorted(STUDIES.glob("[0-9]*/grid.yaml")), ids=lambda p: p.parent.name)
def test_every_shipped_grid_is_valid(path):
    study = Grid.read(path.parent)
    for cell in study.cells():
        if cell.retired:
            assert study.record(cell), f"{cell.name} has no record and cannot be run"
        else:
            Recipe.parse(paper(cell), cell.name)
