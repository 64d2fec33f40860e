"""A dry run on this machine: fails where the run fails, with its words; tells minutes, disk and memory; keeps nothing."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.tiny_run import tiny_recipe

from prunetune.cli import app as cli
from prunetune.data import hub
from prunetune.loop.context import prepare
from prunetune.loop.pacing import minutes as sums
from prunetune.loop.pacing.beside import latency_range
from prunetune.loop.pacing.pace import Asking, Pace, measured
from prunetune.loop.pacing.steps import Tuning
from prunetune.models.folders import resolve_model


def call(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    argv, sys.argv = sys.argv, ["prunetune", *map(str, words)]
    capsys.readouterr()
    try:
        cli.main()
        code = 0
    except SystemExit as e:
        code = int(e.code or 0)
    finally:
        sys.argv = argv
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("rehearsal")
    tiny_recipe(place)
    return place


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def recipe(at: Path, **changes: Any) -> dict[str, Any]:
    value: dict[str, Any] = tiny_recipe(at).model_dump(mode="json")
    for key, change in changes.items():
        value[key] = {**value[key], **change} if isinstance(change, dict) and isinstance(value[key], dict) else change
    return value


def task(at: Path, **changes: Any) -> dict[str, Any]:
    known = {"name": "sums", "path": str(at / "rows.jsonl"), "verifier": "number", "n": 4, "max_new_tokens": 4}
    return {"evaluate": {"tasks": [{**known, **changes}]}}


def broken(at: Path) -> dict[str, dict[str, Any]]:
    """Recipes that a run refuses before it trains."""
    (at / "raises.py").write_text("raise RuntimeError('not today')\n")
    (at / "nothing.py").write_text("def g(output, reference): return True\n")
    (at / "few.jsonl").write_text('{"question": "1+1", "answer": "2"}\n')
    (at / "odd.jsonl").write_text('{"question": "1+1", "answer": null}\n' * 3)
    own = {"allow_custom_code": True}
    return {
        "verifier is not there": task(at, verifier=f"{at}/none.py:f", **own),
        "verifier raises": task(at, verifier=f"{at}/raises.py:f", **own),
        "verifier lacks f": task(at, verifier=f"{at}/nothing.py:f", **own),
        "task's rows": task(at, path=str(at / "none.jsonl")),
        "data file": {"data": [{"type": "file", "path": str(at / "none.jsonl")}]},
        "too few": {"data": [{"type": "file", "path": str(at / "few.jsonl")}]},
        "no text": {"data": [{"type": "file", "path": str(at / "odd.jsonl")}]},
        "method's data": {"recover": [{"type": "cpt", "data": [{"type": "file", "path": str(at / "none.jsonl")}]}]},
        "target": {"prune": {"target": 0.001}},
        "template": {"prompt": {"template": "chat"}},
        "hub data": {"data": [{"type": "hub", "name": "nobody/nothing"}]},
        "hub model": {"model": "nobody/nothing"},
        "no model": {"model": str(at / "none")},
        "launcher": {"launcher": "zero9"},
        "optimiser": {"recover": [{"type": "cpt", "samples": 48, "optimizer": "adamw_8bit", "max_length": 64}]},
        "too narrow": {"score": {"max_length": 3}},
    }


NAMES = (
    "verifier is not there", "verifier raises", "verifier lacks f", "task's rows", "data file", "too few", "no text",
    "method's data", "target", "template", "hub data", "hub model", "no model", "launcher", "optimiser", "too narrow",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_dry_run_fails_where_the_run_does_with_its_words(
    name: str, at: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe(at, **broken(at)[name])))
    begun = time.monotonic()
    dry = call(capsys, "run", file, "--out", tmp_path / "dry", "--dry-run")
    assert time.monotonic() - begun < 30
    assert not (tmp_path / "dry").exists()
    real = call(capsys, "run", file, "--out", tmp_path / "real")
    assert dry[0] == real[0] == 2, (dry, real)
    told = [
        text[text.index("error: ") :].replace(str(tmp_path / "real"), str(tmp_path / "dry"))
        for text in (dry[2], real[2])
    ]
    assert told[0] == told[1]


def test_all_broken_recipes_are_tried(at: Path) -> None:
    assert set(broken(at)) == set(NAMES)


def test_a_folder_that_the_run_would_refuse(at: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file, out = tmp_path / "recipe.yaml", tmp_path / "out"
    file.write_text(yaml.safe_dump(recipe(at)))
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    found = [call(capsys, "run", file, "--out", out, *more) for more in (["--dry-run"], [])]
    assert [f[0] for f in found] == [2, 2]
    dry, real = (said[said.index("error: ") :] for _, _, said in found)
    assert dry == real


def test_minutes_disk_and_memory_are_told_and_the_run_says_the_same(
    at: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file, out = tmp_path / "recipe.yaml", tmp_path / "out"
    file.write_text(yaml.safe_dump(recipe(at)))
    code, text, _ = call(capsys, "run", file, "--out", out, "--dry-run", "--json")
    value = json.loads(text)
    assert code == 0 and not out.exists()
    assert value["minutes"] == pytest.approx(sum(value["parts"].values()) / 60)
    assert {"start", "evaluation", "scoring", "recovery", "writing", "latency", "report"} <= set(value["parts"])
    assert value["minutes_at_most"] >= value["minutes"]
    assert 0 < value["disk_bytes"] < value["free_bytes"] and 0 < value["memory_bytes"] < value["there_bytes"]
    said = call(capsys, "run", file, "--out", out, "--dry-run")[1]
    line = next(x for x in said.splitlines() if x.startswith("on this machine: about "))
    code, _, err = call(capsys, "run", file, "--out", out)
    assert code == 0 and line in err


def test_a_dry_run_within_a_time_tells_the_plan_or_refuses(
    at: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe(at)))
    code, text, _ = call(capsys, "run", file, "--out", tmp_path / "out", "--dry-run", "--budget", "1h")
    assert code == 0 and "within 60 min 00 s, as measured here: cpt " in text.replace("1 h 00 min", "60 min 00 s")
    code, _, err = call(capsys, "run", file, "--out", tmp_path / "out", "--dry-run", "--budget", "1s")
    assert code == 2 and "not even the least" in err and "at least" in err


def test_what_is_counted_is_the_amounts_times_the_seconds(at: Path) -> None:
    """By hand: two neuron rounds and one layer round of the tiny recipe, paper's way."""
    from prunetune.common.progress import Watch

    plain = tiny_recipe(at)
    context = prepare(plain, resolve_model(plain.model), Watch(quiet=True))
    pace = Pace(
        load=1.0, score=10.0, compensate=5.0, loss=0.5, ask={"sums": Asking(batch=2, seconds=3.0, tokens=4)},
        latency=0.25, write=2.0, tune=(Tuning(each=0.1, beside=4.0, tokens_a_sample=20.0),), start=7.0,
    )  # fmt: skip
    found = sums.minutes(context, pace)
    rounds = found.rounds
    assert rounds == len(list(prune_tune_rounds(context)))
    assert found.parts["recovery"] == pytest.approx(0.1 * 48 * 20 + rounds * 4.0)
    assert found.parts["scoring"] == rounds * 11.0
    asked = 2 * 3.0  # four problems, two at once
    assert found.parts["evaluation"] == pytest.approx(2 * asked + rounds * (2 * 3.0 + 2 * 1.5) + 1.5)
    assert found.more == 0


def prune_tune_rounds(context: Any) -> list[Any]:
    from prunetune.schedule.steps import plan_ahead

    return list(plan_ahead(context.recipe.prune, context.sizes))


def test_timing_leaves_nothing_and_covers_every_kind(at: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prunetune.common.progress import Watch

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    plain = tiny_recipe(at, compensate="least-squares", score={"samples": 8, "held_out": 4, "max_length": 64})
    context = prepare(plain, resolve_model(plain.model), Watch(quiet=True))
    pace = measured(dataclasses.replace(context, began=time.monotonic() - 50))
    assert pace.start > 50, "by the clock on the wall, from the start of the command"
    assert min(pace.load, pace.score, pace.compensate, pace.loss, pace.write, pace.latency) > 0
    assert 0 <= pace.fixed[0] <= pace.score and 0 <= pace.fixed[1] <= pace.compensate
    assert pace.ask["sums"].seconds > 0 and pace.tune[0] is not None and pace.tune[0].each > 0
    assert pace.untimed == () and not list(tmp_path.glob("prunetune-pace-*"))


def test_a_hub_that_does_not_answer_is_known_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    begun = time.monotonic()
    assert hub.is_offline()
    assert time.monotonic() - begun < 5
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:1")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:8")
    assert not hub.is_offline()


def test_a_run_that_was_not_rehearsed_says_how(at: Path, tmp_path: Path) -> None:
    from prunetune.loop.pacing.rehearsal import foretold

    assert "--dry-run" in foretold(tiny_recipe(at))


def test_latency_takes_between_the_first_look_and_the_last_that_patience_begins() -> None:
    """As `measure` does it: 8, 16 or 32 repeats of two models and a warm-up; no more are begun after a minute in all."""
    assert latency_range(1, 0.5) == (2.0, 2.0), "not timed until it is known"
    assert latency_range(5, 0.1) == pytest.approx((1.8, 6.6))
    assert latency_range(5, 1.5) == pytest.approx((27.0, 99.0)), "51 s after the second look: a third is begun"
    assert latency_range(5, 2.0) == pytest.approx((36.0, 68.0)), "68 s after the second"
    assert latency_range(5, 10.0) == pytest.approx((180.0, 180.0))


def test_a_range_is_told_where_timings_decide(at: Path) -> None:
    plain = sums.Minutes({"latency": 30.0, "recovery": 70.0}, 1, 0.0, longer=80.0)
    assert plain.text().splitlines()[0].startswith("on this machine: about 1 min 40 s to 3 min 00 s (recovery")
    assert " to " not in dataclasses.replace(plain, longer=5.0).text()


def test_the_table_has_no_more_tokens_than_the_data_hold(
    at: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe(at)))
    words = ["run", file, "--out", tmp_path / "out", "--dry-run", "--tokens", "30k"]
    _, text, err = call(capsys, *words)
    held = re.search(r"about ([\d,]+) tokens, of the 30.0 k tokens asked for", " ".join(err.split()))
    assert held, err
    shares = [int(n.replace(",", "")) for n in re.findall(r" cpt +([\d,]+)", text)]
    assert sum(shares) == pytest.approx(int(held[1].replace(",", "")), rel=0.01) and "30.0 k" not in text
