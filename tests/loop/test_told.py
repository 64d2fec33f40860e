"""events.jsonl of a run, what `watch` and `runs` make of it, a plugin's callback; every event from real work."""

from __future__ import annotations

import json
import os
import signal
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tests.tiny_run import Lines, tiny_recipe
from transformers import TrainerCallback
from typer.testing import CliRunner

from prunetune.cli.app import app
from prunetune.common import plugins
from prunetune.common.events import EVENTS, last_events
from prunetune.common.outputs import own_folder
from prunetune.common.progress import Watch
from prunetune.errors import Declined, MissingPath, UnknownName
from prunetune.evaluation.samples import read_samples
from prunetune.loop.loop import prune_tune_loop
from prunetune.recipe.schema import Recipe
from prunetune.report.live import sparkline
from prunetune.runs.state import find_runs, state_of

QUIET = Watch(quiet=True)
HEARD: list[float] = []


class Hearing(TrainerCallback):
    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        HEARD.append(logs["loss"]) if "loss" in (logs or {}) else None


def short(at: Path, **changes: Any) -> Recipe:
    """One round, two steps of recovery."""
    value = tiny_recipe(at, **changes).model_dump(mode="json")
    value["prune"] |= {"target": 0.9, "layers": 0, "step": 0.5}
    value["recover"][0]["samples"] = 16
    value["evaluate"]["latency_repeats"] = 0
    return Recipe.parse(value)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    at = tmp_path_factory.mktemp("runs")
    HEARD.clear()
    plugins.register("callback", "hearing", Hearing)
    try:
        prune_tune_loop(short(at, log=["hearing"]), at / "some" / "out", QUIET)
    finally:
        plugins._REGISTERED.pop(("callback", "hearing"))
    return at, at / "some" / "out"


def test_a_run_tells_its_steps_its_rounds_and_its_end(done):
    _, out = done
    found = last_events(out / EVENTS)
    record = json.loads(next(out.glob("01-*/stage.json")).read_text())
    assert [e.state for e in found if e.kind == "run"] == ["started", "finished"]
    assert found[0].pid == os.getpid()
    assert [e.stage for e in found if e.kind == "stage"] == ["original", record["name"]]
    told = next(e for e in found if e.stage == record["name"] and e.kind == "stage")
    assert told.accuracy == {"sums": record["evals"][0]["value"]}
    assert (told.params, told.loss) == (record["cost"]["params"], record["held_out_loss"])
    tune = [e for e in found if e.action == "tune cpt"]
    logged = {e["step"]: e["loss"] for e in record["tune"][0]["log"]}
    assert tune, "no step of training was told"
    assert {e.step: e.loss for e in tune} == {e.step: logged[e.step] for e in tune}
    assert tune[-1].step == tune[-1].of == 2
    assert tune[-1].left == 0
    assert all(e.tokens_per_s and e.memory and e.lr is not None for e in tune)
    actions = {e.action for e in found if e.stage == record["name"]}
    assert {"score", "prune", "tune cpt", "evaluate sums"} <= actions
    assert all(a.time <= b.time for a, b in pairwise(found))


def test_a_callback_of_a_plugin_hears_the_training(done):
    _, out = done
    record = json.loads(next(out.glob("01-*/stage.json")).read_text())
    assert [e["loss"] for e in record["tune"][0]["log"]] == HEARD


def test_a_finished_run_as_a_list_and_a_view(done):
    at, out = done
    assert find_runs(at) == [out]
    said = CliRunner().invoke(app, ["runs", str(at), "--json"])
    (row,) = json.loads(said.stdout)
    summary = json.loads((out / "summary.json").read_text())
    assert (row["state"], row["params_ratio"]) == ("finished", summary["params_ratio"])
    assert row["accuracy"] == {"sums": summary["final"]["evals"][0]["value"]}
    assert "finished" in CliRunner().invoke(app, ["runs", str(at)]).stdout
    shown = CliRunner().invoke(app, ["watch", str(out), "--once"]).stdout
    assert shown.splitlines()[0] == f"{out}  finished"
    assert all(name in shown for name in ("original", summary["final"]["name"], "sums"))
    assert CliRunner().invoke(app, ["watch", str(out)]).stdout  # of a run that has ended: shown, and over


def test_a_failure_says_why_and_a_kill_says_where(done, tmp_path, monkeypatch):
    at, _ = done
    recipe = short(at)

    def fails(*args: Any, **more: Any) -> None:
        raise UnknownName("thing", "x", ["y"])

    with monkeypatch.context() as m:
        m.setattr("prunetune.loop.loop.one_round", fails)
        with pytest.raises(UnknownName):
            prune_tune_loop(recipe, tmp_path / "failed", QUIET)
    state = state_of(tmp_path / "failed")
    assert (state.state, state.why) == ("failed", "unknown thing")

    if not (child := os.fork()):
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 2)

        def dies(*args: Any, **more: Any) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        monkeypatch.setattr("prunetune.loop.loop.one_round", dies)
        prune_tune_loop(recipe, tmp_path / "killed", QUIET)
        os._exit(1)
    os.waitpid(child, 0)
    state = state_of(tmp_path / "killed")
    assert state.state == "stopped"
    assert state.where().startswith("original, ")
    assert state.newest is not None and state.newest.name == "original"


def test_a_run_that_is_held_is_running_and_watch_ends_with_it(done, tmp_path, capsys):
    from rich.console import Console

    from prunetune.report.live import watch_run

    at = tmp_path / "held"
    with own_folder(at, "run"):
        assert state_of(at).state == "running"
        assert state_of(at).where() == "before the first measurement"
        holding = own_folder(at, "run")
        with pytest.raises(Exception, match="another prunetune process"), holding:
            pass
    assert state_of(at).state == "stopped"

    waits: list[float] = []
    held = own_folder(at, "run")
    held.__enter__()

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            held.__exit__(None, None, None)

    began = time.monotonic()
    assert watch_run(at, Console(), wait).state == "stopped"
    assert len(waits) == 3
    assert time.monotonic() - began < 5


def test_what_is_no_run_is_told(tmp_path):
    for call in (state_of, find_runs):
        with pytest.raises(MissingPath):
            call(tmp_path / "none")
    assert find_runs(tmp_path) == []


def test_a_run_of_0_1_has_no_events_and_is_listed_all_the_same(done, tmp_path):
    import shutil

    _, out = done
    old = tmp_path / "old"
    shutil.copytree(out, old, ignore=shutil.ignore_patterns(EVENTS, ".prunetune", ".lock"))
    assert find_runs(tmp_path) == [old]
    assert state_of(old).state == "finished"
    (old / "summary.json").unlink()
    assert (state_of(old).state, state_of(old).where()) == ("stopped", f"after {state_of(old).newest.name}")


def test_a_row_of_blocks_has_the_lowest_first():
    assert sparkline([1.0, 2.0, 1.5]) == "▁█▅"
    assert sparkline([2.0, 2.0]) == "▁▁"


def test_an_original_that_solves_nothing_is_shown_at_once(tmp_path: Path) -> None:
    """One question, what was answered, what was expected, and where the others are; before it is asked to go on."""
    watch = Lines()
    with pytest.raises(Declined):
        prune_tune_loop(short(tmp_path), tmp_path / "out", watch, go_on=lambda: False)
    assert any("little can be lost" in line for line in watch.lines)
    at = max(i for i, line in enumerate(watch.lines) if line.startswith("warning: "))
    wrong = read_samples(tmp_path / "out/original/eval/sums.jsonl")[0]
    assert watch.lines[at + 1] == f"  question: {wrong.question}"
    assert watch.lines[at + 2].startswith("  answered: ") and "\n" not in watch.lines[at + 2]
    assert watch.lines[at + 3] == f"  expected: {wrong.reference}"
    assert watch.lines[at + 4].endswith("out/original/eval/sums.jsonl")
