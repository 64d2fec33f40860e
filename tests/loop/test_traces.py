"""Own traces as a source of data: sampled once or anew each round, kept, resumed, checked for leaks, and told before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.tiny_run import rows, tiny_recipe

from prunetune.cli.forecast import forecast
from prunetune.cli.preview import check_inputs
from prunetune.common.progress import Watch
from prunetune.data.stream import FileData, load_stream
from prunetune.errors import DataError, RecipeError
from prunetune.loop.loop import prune_tune_loop
from prunetune.loop.pacing.rehearsal import rehearsed
from prunetune.loop.probe import Scores
from prunetune.loop.sampling import traces as module
from prunetune.models.folders import model_sha
from prunetune.recipe.schema import Recipe

QUIET = Watch(quiet=True)
TWO = {"target": 0.75, "rounds": 2, "align": 4, "layers": 0}
SMALL: dict[str, Any] = {"batch_size": 8, "learning_rate": 1e-3, "max_length": 64}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, int]]:
    """A model that knows every answer, and a wrong one; who was asked how many questions at a time."""
    seen: list[tuple[Path, int]] = []

    def sample(model: Any, tokenizer: Any, batch: list[Any], job: Any, task: Any) -> list[list[str]]:
        seen.append((job.model, len(batch)))
        return [[f"by {job.seed}: {e.answer}", "wrong"] for e in batch]

    monkeypatch.setattr("prunetune.tune.traces.sample_answers", sample)
    return seen


def traces(at: Path, **more: Any) -> dict[str, Any]:
    path = rows(at / "questions.jsonl", 60)
    return {
        "type": "traces",
        "from": {"type": "file", "path": str(path)},
        "n": 24,
        "per_question": 2,
        "batch_size": 8,
        **more,
    }


def cpt(data: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {"type": "cpt", "samples": 16, **SMALL, **({"data": [data]} if data else {}), **more}


def made(run: Path) -> list[Path]:
    return sorted((run / "traces").glob("*.jsonl"))


def test_sampled_once_scored_on_and_trained_on(tmp_path: Path, asked: list[tuple[Path, int]]) -> None:
    own = traces(tmp_path)
    score = {"samples": 8, "held_out": 4, "max_length": 64, "data": [own]}
    recipe = tiny_recipe(tmp_path, prune=TWO, score=score, recover=[cpt(own, samples=16)])
    summary = prune_tune_loop(recipe, tmp_path / "out", QUIET)
    assert asked == [(tmp_path / "model", 8)] * 3, "once, for both uses and both rounds"
    (file,) = made(tmp_path / "out")
    stream = load_stream([FileData(path=str(file))], recipe.seed)
    assert len(stream) == 24 and all(e.answer.startswith("by 0: ") for e in stream.examples)
    for at in sorted((tmp_path / "out").glob("0*-*")):
        assert Scores.read(at / "scores.safetensors").data_sha == stream.sha
    first, second = summary.stages
    assert [s.samples for s in (first, second)] == [(4, 4), (4, 4)], (
        "the recipe's own rows: held-out ones alone are taken"
    )
    assert [t.samples for s in (first, second) for t in s.tune] == [8, 8]
    kept = Recipe.read(tmp_path / "out" / "recipe.yaml")
    assert kept == recipe and "from:" in (tmp_path / "out" / "recipe.yaml").read_text()
    assert summary.seconds["traces"] >= 0 and summary.recipe["score"]["data"][0]["type"] == "traces"
    prune_tune_loop(recipe, tmp_path / "out", QUIET)
    assert len(asked) == 3


def test_a_run_killed_while_it_samples_goes_on(
    tmp_path: Path, asked: list[tuple[Path, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(tmp_path, prune={**TWO, "rounds": 1}, recover=[cpt(traces(tmp_path))])
    real = module.make_traces

    def killed(job: Any, progress: Any, key: object) -> Any:
        def stop(done: int, total: int) -> None:
            if done == 16:
                raise KeyboardInterrupt

        return real(job, stop, key)

    monkeypatch.setattr(module, "make_traces", killed)
    with pytest.raises(KeyboardInterrupt):
        prune_tune_loop(recipe, tmp_path / "out", QUIET)
    assert made(tmp_path / "out") == [] and len(asked) == 2
    monkeypatch.setattr(module, "make_traces", real)
    prune_tune_loop(recipe, tmp_path / "out", QUIET)
    assert len(asked) == 3
    prune_tune_loop(recipe, tmp_path / "straight", QUIET)
    (a,), (b,) = made(tmp_path / "out"), made(tmp_path / "straight")
    assert a.name == b.name and a.read_bytes() == b.read_bytes()
    assert model_sha(tmp_path / "out" / "final") == model_sha(tmp_path / "straight" / "final")


def test_renewed_by_the_model_of_each_round(tmp_path: Path, asked: list[tuple[Path, int]]) -> None:
    own = traces(tmp_path, of="current", renew=True)
    score = {"samples": 8, "held_out": 4, "max_length": 64, "data": [own]}
    recipe = tiny_recipe(tmp_path, prune=TWO, score=score, recover=[cpt(own, samples=None)], keep="all")
    summary = prune_tune_loop(recipe, tmp_path / "out", QUIET)
    first, second = made(tmp_path / "out")
    (one, two) = (s.name for s in summary.stages)
    assert {m for m, _ in asked[:3]} == {tmp_path / "model"}
    assert {m for m, _ in asked[3:]} == {tmp_path / "out" / one / "tuned"} and len(asked) == 6
    texts = [[json.loads(line) for line in f.read_text().splitlines()] for f in (first, second)]
    assert all(r["answer"].startswith(f"by {i}: ") for i, part in enumerate(texts, start=1) for r in part)
    assert not {r["question"] for r in texts[0]} & {r["question"] for r in texts[1]}, "the next questions"
    for at, file in ((one, first), (two, second)):
        found = load_stream([FileData(path=str(file))], recipe.seed)
        assert Scores.read(tmp_path / "out" / at / "scores.safetensors").data_sha == found.sha
    assert [t.samples for s in summary.stages for t in s.tune] == [24, 24]
    prune_tune_loop(recipe, tmp_path / "out", QUIET)
    assert len(asked) == 6


@pytest.mark.parametrize("renew", [False, True])
def test_questions_of_the_evaluation_among_them_are_told(
    tmp_path: Path, asked: list[tuple[Path, int]], renew: bool
) -> None:
    own = {**traces(tmp_path), "n": None, "renew": renew}  # the first 60 of the rows that the task asks 4 of
    recipe = tiny_recipe(tmp_path, prune={**TWO, "rounds": 1}, recover=[cpt(own, samples=None)])
    summary = prune_tune_loop(recipe, tmp_path / "out", QUIET)
    numbers = [
        int(p.split("+")[0])
        for p in (
            json.loads(x)["question"]
            for x in (tmp_path / "out" / "original" / "eval" / "sums.jsonl").read_text().splitlines()
        )
    ]
    assert summary.leaks["sums"].exact == sum(n < 60 for n in numbers) > 0


def test_a_dry_run_samples_nothing_and_tells(tmp_path: Path, asked: list[tuple[Path, int]]) -> None:
    own = traces(tmp_path)
    recipe = tiny_recipe(tmp_path, prune=TWO, recover=[cpt(own), cpt(traces(tmp_path, renew=True, of="current"))])
    check_inputs(recipe)
    text = forecast(recipe)[1]
    assert "2 answers of the original model to each of 24 questions" in text and "judged by sums" in text
    assert (
        "sampled once, kept in RUN/traces" in text
        and "of the current model" in text
        and "anew before each round" in text
    )
    value = rehearsed(recipe, tmp_path / "out", QUIET, lambda: None).to_json()
    assert value["parts"]["traces"] > 0 and not (tmp_path / "out").exists() and len(asked) == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": [{"of": "current"}]}, "of: current needs renew"),
        ({"data": [{"renew": True}]}, "held-out rows must stay"),
        ({"recover": [{"renew": True}, {"type": "demo", "size": 5}]}, "alone in their list"),
        ({"protect": [{}]}, "not under protect"),
        ({"data": [{"task": "gsm8k", "verifier": "number"}]}, "both judge"),
        ({"data": [{"from": {"type": "traces"}}]}, "type"),
    ],
)
def test_where_traces_cannot_be(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    given = {k: [{**traces(tmp_path), **d} if d.get("type") != "demo" else d for d in v] for k, v in changes.items()}
    if "recover" in given:
        given["recover"] = [cpt() | {"data": given["recover"]}]
    if "protect" in given:
        given["protect"] = {"data": given["protect"]}
    with pytest.raises(RecipeError, match=said):
        tiny_recipe(tmp_path, **given)


def test_traces_that_nobody_can_judge_or_read(tmp_path: Path) -> None:
    own = traces(tmp_path)
    recipe = tiny_recipe(tmp_path, data=[own], evaluate={"tasks": [], "latency_repeats": 0})
    with pytest.raises(RecipeError, match="nobody judges"):
        prune_tune_loop(recipe, tmp_path / "out", QUIET)
    with pytest.raises(RecipeError, match="nobody judges"):
        check_inputs(recipe)
    with pytest.raises(DataError, match="prunetune generate"):
        load_stream(recipe.data, 0)
