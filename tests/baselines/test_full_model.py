"""Full-model training: as many rounds, sequences and tokens as the loop's, and nothing cut."""

from __future__ import annotations

import pytest
from tests.tiny_run import tiny_recipe
from transformers import AutoModelForCausalLM

from prunetune.baselines.full_model import full_model_run
from prunetune.common.progress import Watch
from prunetune.data.stream import load_stream
from prunetune.errors import RecipeError
from prunetune.loop.loop import prune_tune_loop
from prunetune.tune.job import TuneJob
from prunetune.tune.stage import run_job

QUIET = Watch(quiet=True)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    at = tmp_path_factory.mktemp("full")
    recipe = tiny_recipe(at)
    return at, recipe, prune_tune_loop(recipe, at / "loop", QUIET), full_model_run(recipe, at / "full", QUIET)


def test_the_loops_rounds_sequences_and_tokens(done):
    _, _, loop, full = done
    assert [s["samples"] for s in full["stages"]] == [s["samples"] for s in loop["stages"]]
    assert [s["tokens"] for s in full["stages"]] == [s["tokens"] for s in loop["stages"]]
    assert full["params_ratio"] == 1.0
    assert all(s["removed"] == {"neurons": 0, "layers": []} for s in full["stages"])
    losses = [full["original"]["held_out_loss"], *(s["held_out_loss"] for s in full["stages"])]
    assert losses == sorted(losses, reverse=True)  # it learns in every round


def test_a_round_is_plain_tuning_on_its_part_of_the_stream(done, tmp_path):
    at, recipe, _, full = done
    first, last = full["stages"][0], full["final"]
    model = at / "full" / last["name"] / "tuned"
    assert AutoModelForCausalLM.from_pretrained(model).num_parameters() == last["cost"]["params"]
    assert not (at / "full" / first["name"] / "tuned").exists()  # only the newest model stays
    job = TuneJob(model=at / "model", out=tmp_path / "out", work=tmp_path / "work", sources=tuple(recipe.data),
                  method=recipe.recover[0].changed(samples=None), start=first["samples"][0], end=first["samples"][1], device="auto")  # fmt: skip
    straight = run_job(job)
    assert [e["loss"] for e in straight.log] == [e["loss"] for e in first["tune"][0]["log"]]
    assert len(load_stream(recipe.data, 0)) >= last["samples"][1]


def test_a_second_start_makes_nothing_again(done):
    at, recipe, _, full = done
    again = full_model_run(recipe, at / "full", QUIET)
    assert again["stages"] == full["stages"]


def test_what_a_baseline_cannot_do_is_said_before_any_work(tmp_path):
    recipe = tiny_recipe(tmp_path)
    own = {"type": "traces", "from": {"type": "demo", "size": 20}}
    for changes, said in (
        ({"data": [own]}, "samples nothing"),
        ({"recover": [{"type": "local"}]}, "no layers to teach"),
    ):
        with pytest.raises(RecipeError, match=said):
            full_model_run(recipe.parse({**recipe.model_dump(mode="json"), **changes}), tmp_path / "out", QUIET)
    assert not (tmp_path / "out").exists()
