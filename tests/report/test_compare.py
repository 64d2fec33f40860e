from __future__ import annotations

import csv
import io
import json
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from tests.fake_run import TASKS, add_perplexity, fake_run

from prunetune.common.stats import mcnemar, wilson
from prunetune.errors import DataError, MissingPath, RecipeError, UnknownName
from prunetune.report.compare import compare
from prunetune.report.pairs import read_samples
from prunetune.report.question_cost import question_cost, stage_cost
from prunetune.report.speed import Speedup
from prunetune.runs.reading import read_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return fake_run(tmp_path_factory.mktemp("runs") / "first")


def _verdicts(stage: Path, task: str) -> dict[str, bool]:
    rows = (json.loads(line) for line in (stage / f"eval/{task}.jsonl").read_text().splitlines())
    return {r["id"]: r["correct"] for r in rows}


def test_a_run_is_compared_with_its_control(folder) -> None:
    found = compare([folder])
    assert [(m.name, m.kind) for m in found.models] == [
        ("demo (original)", "original"),
        ("first", "run"),
        ("first/control", "control"),
    ]
    assert found.tasks == tuple(TASKS)
    for task in TASKS:
        ours, theirs = (_verdicts(folder / d, task) for d in ("04-layers-2", "control/01-together-48"))
        lost = sum(ours[i] and not theirs[i] for i in ours)
        gained = sum(theirs[i] and not ours[i] for i in ours)
        paired = found.models[2].tasks[task].paired
        assert paired is not None
        assert (paired.lost, paired.gained, paired.n) == (lost, gained, len(ours))
        assert paired.mcnemar() == mcnemar(lost, gained)
        assert found.models[1].tasks[task].paired is None


def test_every_figure_is_the_records(folder) -> None:
    found, run = compare([folder]), read_run(folder)
    model, final = found.models[1], run.final
    assert final is not None
    assert run.original is not None
    assert (model.params, model.share) == (final.params, final.params / run.original.params)
    assert (model.recovery_tokens, model.recovery_seconds) == (run.recovery_tokens(), run.seconds()["tune"])
    for e in final.evals:
        t = model.tasks[e.task]
        assert t.result == e
        assert t.interval == wilson(e.correct, e.n)
        assert t.flops == final.cost.flops[e.task]
        assert t.cost == question_cost(stage_cost(run, final), read_samples(folder / final.name, e.task).values())
        assert (t.speedup_question.value, t.speedup_token.value) == (1.31, 1.27)
    original = found.models[0]
    assert (original.recovery_tokens, original.tasks["demo"].speedup_token) == (0, Speedup(1.0))


def test_named_runs_are_all_there_is(folder, tmp_path) -> None:
    other = fake_run(tmp_path / "second", control=False)
    names = [m.name for m in compare([folder, other]).models]
    assert names == ["demo (original)", "first", "second"], "one original, since both started from it"
    assert [m.name for m in compare([folder, folder / "control"]).models][1:] == ["first", "first/control"]


def test_runs_of_the_same_name_are_told_apart(folder, tmp_path) -> None:
    other = tmp_path / "elsewhere" / "first"
    shutil.copytree(folder, other)
    names = [m.name for m in compare([folder, other]).models if m.kind == "run"]
    assert names == [f"{folder.parent.name}/first", "elsewhere/first"]


def test_a_task_that_one_run_lacks_is_a_dash(folder, tmp_path) -> None:
    other = fake_run(tmp_path / "second", tasks={"demo": 240}, control=False)
    found = compare([folder, other])
    assert set(found.models[-1].tasks) == {"demo"}
    last = [line for line in found.to_text().splitlines() if line.startswith("second")][-1]
    assert "–" in last


def test_text_markdown_csv_and_json_say_the_same(folder) -> None:
    found = compare([folder])
    text, markdown = found.to_text(), found.to_markdown()
    final = read_run(folder).final
    assert final is not None
    for e in final.evals:
        accuracy = f"{100 * e.value:.1f} % ± {100 * e.stderr:.1f}"
        assert accuracy in text
        assert accuracy in markdown
    rows = list(csv.DictReader(io.StringIO(found.to_csv())))
    values = json.loads(json.dumps(found.to_json()))
    assert len(rows) == len(values) == 3 * len(TASKS)
    for row, value in zip(rows, values, strict=True):
        assert list(row) == list(value)
        assert float(row["accuracy"]) == value["accuracy"]
        assert (row["mcnemar_p"] == "") == (value["mcnemar_p"] is None) == (value["model"] == "first")
    tables = [block.splitlines() for block in markdown.split("\n\n") if block.startswith("| ")]
    assert len(tables) == len(TASKS)
    for table in tables:
        assert len({line.count("|") for line in table}) == 1


def test_the_plot_has_a_line_a_run(folder, tmp_path) -> None:
    other = fake_run(tmp_path / "second", control=False)
    plot = compare([folder, other]).plot()
    assert plot is not None
    assert {"first", "second"} <= {
        "".join(e.itertext()).strip() for e in ET.fromstring(plot.svg).iter() if e.tag.endswith("text")
    }


def test_forms_by_name(folder, tmp_path) -> None:
    found = compare([folder])
    assert found.render("csv") == found.to_csv()
    assert json.loads(found.render("json")) == json.loads(json.dumps(found.to_json()))
    with pytest.raises(UnknownName, match="did you mean 'markdown'"):
        found.render("markdwn")
    found.write_figure(tmp_path / "figure.svg")
    assert ET.parse(tmp_path / "figure.svg").getroot().tag.endswith("svg")


def test_no_figure_without_a_shared_data_set(folder, tmp_path) -> None:
    other = fake_run(tmp_path / "second", tasks={"else": 20}, control=False)
    with pytest.raises(DataError, match="share no data set"):
        compare([folder, other]).write_figure(tmp_path / "figure.svg")


def test_what_cannot_be_compared(tmp_path) -> None:
    with pytest.raises(RecipeError, match="nothing to compare"):
        compare([])
    with pytest.raises(MissingPath, match="no such run folder"):
        compare([tmp_path / "none"])
    (tmp_path / "run/original").mkdir(parents=True)
    (tmp_path / "run/original/stage.json").write_text('{"index": 0, "name": "original"}')
    with pytest.raises(MissingPath, match="no stage of this run is finished"):
        compare([tmp_path / "run"])


def test_a_perplexity_is_compared_in_its_own_unit(tmp_path) -> None:
    found = compare([add_perplexity(fake_run(tmp_path / "first"))])
    for text in (found.to_text(), found.to_markdown()):
        assert "perplexity, n = 5000 tokens" in text
        assert "1,234.0 ± 12.0" in text and "123400" not in text and "1,234.0 %" not in text
    row = next(r for r in found.to_json() if r["task"] == "perplexity")
    assert (row["metric"], row["value"], row["accuracy"], row["wilson_low"]) == ("perplexity", 1234.0, None, None)
    assert found.plot() is not None, "the figure is of the accuracies"


def test_a_speed_up_within_the_noise_is_marked(tmp_path) -> None:
    run = fake_run(tmp_path / "first")
    assert "≈ 1" not in compare([run]).to_text()
    summary = json.loads((run / "summary.json").read_text())
    for timed in summary["latency"].values():
        timed |= {"decode_iqr_ms": 1.0, "repeats": 5}
    (run / "summary.json").write_text(json.dumps(summary))
    found = compare([run])
    assert "≈ 1.31×" in found.to_text() and "≈ 1.27×" in found.to_markdown()
    row = next(r for r in found.to_json() if r["model"] == "first")
    assert row["speedup_token"] == 1.27 and row["speedup_token_low"] < 1 < row["speedup_token_high"]
