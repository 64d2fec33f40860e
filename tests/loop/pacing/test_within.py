"""A run within a time: what is planned, what is cut down and in which order, what the clock leaves."""

from __future__ import annotations

import dataclasses
import itertools
import time
from pathlib import Path
from typing import Any

import pytest
from tests.tiny_run import Lines, tiny_recipe

from prunetune.common.progress import Watch
from prunetune.errors import OutOfReach, RecipeError
from prunetune.loop.context import Context, prepare
from prunetune.loop.loop import prune_tune_loop
from prunetune.loop.pacing import within as module
from prunetune.loop.pacing.clock import Clock
from prunetune.loop.pacing.pace import Asking, Pace
from prunetune.loop.pacing.steps import Tuning
from prunetune.loop.pacing.within import MOST_EPOCHS, _passes, fitted
from prunetune.loop.recovery.shares import Part
from prunetune.models.folders import resolve_model
from prunetune.recipe.goals import seconds
from prunetune.runs.records import known
from prunetune.tune.job import TuneJob
from prunetune.tune.methods import Local
from prunetune.tune.stage import run_job

QUIET = Watch(quiet=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("within")


def context(place: Path, within: float, n: int = 150, **changes: Any) -> Context:
    values = {"prune": {"target": 0.8, "align": 4, "rounds": "auto"}, "budget": "damage", "within": within, **changes}
    recipe = tiny_recipe(place, **values)
    evaluate = recipe.evaluate.model_dump(mode="json")
    evaluate["tasks"][0]["n"] = n
    evaluate |= {"round_n": None, "latency_repeats": 5}
    recipe = type(recipe).parse({**recipe.model_dump(mode="json"), "evaluate": evaluate})
    return prepare(recipe, resolve_model(recipe.model), QUIET)


PACE = Pace(
    load=0.0, score=8.0, compensate=0.0, loss=1.0, ask={"sums": Asking(batch=10, seconds=2.0, tokens=4)},
    latency=0.5, write=1.0, tune=(Tuning(each=0.01, beside=1.0, tokens_a_sample=20.0),), start=2.0, spent=5.0,
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("2h", 7200), ("1h30m", 5400), ("10min", 600), ("90 s", 90), ("600", 600), ("1.5h", 5400), (600, 600), ("x", "x")],
)
def test_times_as_people_write_them(text: Any, wanted: Any) -> None:
    assert seconds(text) == wanted


def test_recovery_fills_what_is_left(place: Path) -> None:
    at = context(place, 400)
    found = fitted(at, PACE)
    (method,) = found.recipe.recover
    trained = method.tokens * method.epochs * 0.01
    asked = 2 * 15 * 2.0  # the original and the final model, 150 problems, ten at once
    rest = 5 + 2 + asked + 1 + 8 + 2 + 4 + 1 + 9 + 1 + 1
    assert trained == pytest.approx(400 - rest, rel=0.1)
    assert found.asked is None and not any("cut down" in line for line in found.told)
    assert "sums" not in found.told[0] and "150 problems a task" in found.told[0]


def test_local_recovery_keeps_its_amount_and_leaves_the_rest(place: Path) -> None:
    small = {"batch_size": 8, "max_length": 64}
    both = [{"type": "local", "tokens": 200, "steps": 10, **small}, {"type": "cpt", "samples": 48, **small}]
    tune = Tuning(each=0.01, beside=1.0, tokens_a_sample=20.0)
    pace = dataclasses.replace(PACE, tune=(tune, tune))
    alone = fitted(context(place, 400, do_no_harm=False), PACE).recipe.recover[0]
    local, cpt = fitted(context(place, 400, recover=both, do_no_harm=False), pace).recipe.recover
    assert isinstance(local, Local) and (local.tokens, local.steps) == (200, 10)
    spent = 10 * 8 * 20 * 0.01 + 2  # ten steps of eight sequences, and what a job takes beside them, twice
    assert cpt.tokens * cpt.epochs * 0.01 == pytest.approx(alone.tokens * alone.epochs * 0.01 - spent, rel=0.1)
    slow = dataclasses.replace(pace, tune=(dataclasses.replace(tune, each=10.0), tune))
    least = fitted(context(place, 20_000, recover=[{**both[0], "steps": 300}, both[1]], do_no_harm=False), slow)
    assert least.recipe.recover[0].steps == 10  # of 40: the least that a method gets


def test_more_passes_than_help_are_not_made(place: Path) -> None:
    found = fitted(context(place, 100_000), PACE)
    (method,) = found.recipe.recover
    assert method.epochs == MOST_EPOCHS and f"({MOST_EPOCHS} passes over " in found.told[0]
    assert "it ends earlier" in found.told[-1]


def test_what_is_cut_down_is_told_in_order(place: Path) -> None:
    """From a time that holds all to one that holds next to nothing."""
    orders = ("problems a task, not", "no latency", "no probes", "scored sequences, not", "no recovery")
    seen: list[list[str]] = []
    for time_ in (400, 130, 100, 75, 68, 62):
        try:
            told = fitted(context(place, time_, score={"samples": 64, "held_out": 4, "max_length": 64}), PACE).told
        except OutOfReach as e:
            seen.append([*orders, str(e.valid)])
            continue
        cut = told[-1] if "cut down" in told[-1] else ""
        seen.append([o for o in orders if o in cut])
    lengths = [len(s) for s in seen]
    assert lengths == sorted(lengths) and lengths[0] == 0 and lengths[-1] >= 2, seen
    assert all(s[: len(a)] == a for a, s in itertools.pairwise(seen)), seen


def test_calibration_comes_before_recovery_until_a_neuron_has_enough_and_then_both_grow(place: Path) -> None:
    """64 sequences are 40 tokens a kept neuron, so 48 are the 30 that come first; recovery in batches of 32."""
    fitting = {"compensate": "least-squares", "score": {"samples": 64, "held_out": 4, "max_length": 64}}
    at = context(place, 100, n=50, **fitting)
    forty = dataclasses.replace(known(at.calibration, "calibration"), samples=64, a_neuron=40.0)
    at = dataclasses.replace(at, calibration=forty)
    evaluate = at.recipe.evaluate.model_copy(update={"latency_repeats": 0})
    (method,) = at.recipe.recover
    recipe = at.recipe.changed(evaluate=evaluate, recover=[method.changed(batch_size=32)])
    pace = dataclasses.replace(PACE, score=80.0, fixed=(20.0, 0.0))
    least, seen = 10 * 8 * 20 * 0.01, list[tuple[int, float, float]]()
    for time_ in range(90, 400, 10):
        found = fitted(dataclasses.replace(at, recipe=recipe.changed(within=float(time_))), pace)
        trained = sum((m.tokens or 0) * m.epochs * 0.01 for m in found.recipe.recover)
        if trained:  # else the bare cut
            seen.append((found.recipe.score.count, trained, trained / (time_ - pace.spent)))
    counts = [n for n, _, _ in seen]
    assert counts == sorted(counts) and {32, 48, 64} <= set(counts), seen
    assert all(least <= trained < 2 * least for n, trained, _ in seen if n < 48), seen
    assert all(share >= 0.24 for n, _, share in seen if n > 48), seen
    assert all(n >= 48 for n, _, share in seen if share > 0.25), seen
    assert "64 scored sequences (40 tokens a kept neuron)" in found.told[0]


def test_what_does_not_depend_on_the_sequences_stays() -> None:
    pace = dataclasses.replace(PACE, score=80.0, compensate=10.0, fixed=(20.0, 10.0)).scored(0.5)
    assert (pace.score, pace.compensate) == (50.0, 10.0)


def test_a_time_that_is_too_short_is_refused_with_the_least(place: Path) -> None:
    with pytest.raises(OutOfReach) as e:
        fitted(context(place, 20), PACE)
    assert "at least" in str(e.value)


def test_work_that_cannot_be_timed_is_refused(place: Path) -> None:
    with pytest.raises(OutOfReach, match="timed"):
        fitted(context(place, 400), dataclasses.replace(PACE, untimed=("grpo",)))


@pytest.mark.parametrize(
    "changes", [{"control": "once"}, {"stop_at": {"accuracy": 0.9}}, {"budget": "2h", "within": "1h"}]
)
def test_what_does_not_go_with_a_time(place: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(RecipeError):
        tiny_recipe(place, **{"within": "1h", **changes})


def test_the_clock_counts_earlier_starts_and_what_comes_after() -> None:
    clock = Clock(within=100.0, spent=30.0, each=(0.1,), least=(1,), after=20.0, begun=time.monotonic() - 10.0)
    assert clock.left() == pytest.approx(40.0, abs=1.0)
    assert dataclasses.replace(clock, within=10.0).left() == 0.0


def test_a_rung_that_is_timed_is_reserved_for_no_more(place: Path) -> None:
    three = Clock(
        within=100.0, spent=0.0, each=(0.1,), least=(1,), after=40.0, rung=10.0, rungs=3, begun=time.monotonic()
    )
    assert [round(three.left(rungs)) for rungs in (3, 2, 1)] == [60, 70, 80]
    prune = {"align": 4, "layers": 0}
    plain = fitted(context(place, 600.0, prune={**prune, "target": 0.7}), PACE)
    found = fitted(context(place, 600.0, prune=prune, ladder=[0.9, 0.8, 0.7]), PACE)
    assert found.rung == plain.rung > 0 and found.after - 2 * found.rung == pytest.approx(plain.after)


def test_a_run_recovers_for_what_is_left_and_goes_on_with_its_plan(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planned by one pace, and by that which is timed again just before recovery: half as fast, half the tokens."""
    recipe = tiny_recipe(place, within=400, budget="damage", prune={"target": 0.8, "align": 4, "rounds": 1})
    planned = dataclasses.replace(PACE, tune=(Tuning(each=0.1, beside=1.0, tokens_a_sample=20.0),))
    timed = list[Path]()

    def again_timed(context: Context, place: int, method: Any, model: Path, at: Path, kept: Any) -> Tuning:
        timed.append(model)
        return Tuning(each=0.2, beside=1.0, tokens_a_sample=20.0)

    monkeypatch.setattr(module, "measured", lambda context: planned)
    monkeypatch.setattr(module, "tuning", again_timed)
    summary = prune_tune_loop(recipe, tmp_path / "out", QUIET)
    (tuned,) = summary.stages[0].tune
    assert 900 < (tuned.tokens or 0) < 1.25 * 400 / 0.2  # what is left of 400 s, a fifth of a second each
    assert [p.name for p in timed] == ["pruned"]
    assert (tmp_path / "out" / ".time.json").is_file()
    monkeypatch.setattr(module, "measured", lambda context: pytest.fail("measured again"))
    again = prune_tune_loop(recipe, tmp_path / "out", QUIET)
    assert again.stages == summary.stages


def test_a_recovery_that_the_clock_cuts_short_says_so_everywhere(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time counts from the start that is given, not from the call: of 400 s 395 are gone already."""
    recipe = tiny_recipe(place, within=400, budget="damage", prune={"target": 0.8, "align": 4, "rounds": 1})
    fast = Tuning(each=1e-9, beside=0.0, tokens_a_sample=20.0)
    planned = dataclasses.replace(PACE, tune=(Tuning(each=0.1, beside=1.0, tokens_a_sample=20.0),))
    monkeypatch.setattr(module, "measured", lambda context: planned)
    monkeypatch.setattr(module, "tuning", lambda *_: fast)
    watch = Lines()
    summary = prune_tune_loop(recipe, tmp_path / "out", watch, began=time.monotonic() - 395)
    (tuned,) = summary.stages[0].tune
    assert tuned.steps == 1 and (tuned.tokens or 0) < 0.8 * (summary.planned_tokens or 0)
    assert any("were planned: no time is left for it" in line for line in watch.lines), watch.lines
    stopped = next(line for line in watch.lines if "recovery (cpt) stopped after 1 of " in line)
    assert stopped.endswith("the time was up") and stopped.strip() in (tmp_path / "out" / "report.md").read_text()
    assert "planned (the time was up)" in (tmp_path / "out" / "report.md").read_text()
    assert 395 < summary.seconds["start"] < 500 and watch.lines[-1].startswith("within 6 min 40 s: ")
    assert summary.latency is not None and summary.latency.final is not None
    assert summary.latency.final.repeats == 1, "no more than it takes where nothing is left"


def test_where_less_fits_than_was_planned_the_data_are_gone_over_less_often(place: Path) -> None:
    five = tiny_recipe(place).recover[0].changed(epochs=5)
    part = Part(0, five, samples=None, tokens=1000)
    assert [_passes(part, fits) for fits in (10, 1000, 1001, 4500, 9000)] == [1, 1, 2, 5, 5]
    assert _passes(dataclasses.replace(part, tokens=None), 10) == 5


def test_training_ends_when_its_time_is_over(place: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(place)
    job = TuneJob(
        model=place / "model", out=tmp_path / "out", work=tmp_path / "work", sources=tuple(recipe.data), end=160,
        method=recipe.recover[0].changed(samples=None), seconds=1e-6, fmt=recipe.prompt,
    )  # fmt: skip
    found = run_job(job)
    assert found.steps == 1 and found.planned > 10
    assert (tmp_path / "out" / "config.json").is_file()
