"""Rivals on tiny models: refused before any work, asked the same questions, paired with ours by hand."""

from __future__ import annotations

import json
import pickle

import pytest
from tests.tiny import tiny_folder
from tests.tiny_run import tiny_recipe

from prunetune.cli.preview import check_inputs, preview
from prunetune.common.progress import Watch
from prunetune.errors import BadCheckpoint, MissingPath, RecipeError
from prunetune.loop.beside.rivals import folder_of
from prunetune.loop.loop import prune_tune_loop
from prunetune.recipe.schema import Recipe

QUIET = Watch(quiet=True)


def against(at, *rivals) -> Recipe:
    value = tiny_recipe(at, prune={"target": 0.9, "step": 0.2, "align": 4}).model_dump(mode="json")
    value["evaluate"]["rivals"] = [str(r) for r in rivals]
    return Recipe.parse(value)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A run; then the same with rivals: a model of another family, and the original at 8 and at 4 bits."""
    at = tmp_path_factory.mktemp("rivals")
    tiny_folder(at / "sibling", "qwen3", seed=1, intermediate_size=24)
    first = prune_tune_loop(against(at), at / "out", QUIET)
    stamps = {p: p.stat().st_mtime_ns for p in (at / "out").rglob("stage.json")}
    recipe = against(at, at / "sibling", "int8", "int4")
    return at, recipe, first, stamps, prune_tune_loop(recipe, at / "out", QUIET)


def verdicts(folder):
    return {r["id"]: r["correct"] for r in map(json.loads, (folder / "eval/sums.jsonl").read_text().splitlines())}


def test_rivals_may_come_to_a_finished_run_and_nothing_else_is_made_again(done):
    _, _, first, stamps, summary = done
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps
    assert summary.final == first.final and not first.rivals and len(summary.rivals) == 3


def test_a_rival_answers_the_same_questions_and_is_paired_with_ours(done):
    at, _, _, _, summary = done
    ours = verdicts(at / "out" / summary.final.name)
    for rival in summary.rivals:
        theirs = verdicts(at / "out/rivals" / rival.folder)
        assert theirs.keys() == ours.keys() and len(theirs) == 4
        found = rival.against["sums"]
        assert found.n == 4 and found.low <= found.difference <= found.high
        assert found.difference == pytest.approx((sum(ours.values()) - sum(theirs.values())) / 4)


def test_parameters_and_bytes_are_the_rivals_own(done):
    from safetensors.torch import load_file

    at, _, _, _, summary = done
    sibling, int8, int4 = summary.rivals
    held = load_file(at / "sibling/model.safetensors")
    assert sibling.params == sum(t.numel() for t in held.values()) and sibling.weight_bytes == 2 * sibling.params
    assert int8.params == int4.params == summary.original.params
    assert int4.weight_bytes < int8.weight_bytes < summary.original.cost.weight_bytes
    assert int4.evals[0].n == 4 and "groups of 32" in int4.how


def test_the_first_table_of_the_report_has_them_and_a_sentence_on_equal_bytes(done):
    at, _, _, _, _summary = done
    report = (at / "out/report.md").read_text()
    models = report[report.index("## Models") : report.index("## Headline")]
    for name in ("| original |", "| final |", "| int8 (", "| int4 (", "/sibling |"):
        assert name in models, name
    assert "ours minus it" in models
    assert any(line.startswith(("* At equal bytes", "* No rival has the bytes")) for line in models.splitlines())
    assert "rivals, asked the same: " in preview(against(at, "int8"))[1]


def test_a_rival_is_asked_once(done):
    at, recipe, *_ = done
    files = [*(at / "out/rivals").rglob("*.json*")]
    stamps = {p: p.stat().st_mtime_ns for p in files}
    prune_tune_loop(recipe, at / "out", QUIET)
    assert {p: p.stat().st_mtime_ns for p in files} == stamps and len(files) >= 6


def test_an_unknown_or_unsafe_rival_is_refused_before_any_work(tmp_path):
    unsafe = tmp_path / "unsafe"
    unsafe.mkdir()
    (unsafe / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    (unsafe / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    for rival, error, told in (
        (tmp_path / "nowhere", MissingPath, "no such model folder"),
        (unsafe, BadCheckpoint, "pickles"),
        (tmp_path / "no.gguf", MissingPath, "no such GGUF file"),
    ):
        recipe = against(tmp_path, rival)
        with pytest.raises(error, match=told):
            check_inputs(recipe)  # what a dry run and a run begin with
        with pytest.raises(error, match=told):
            prune_tune_loop(recipe, tmp_path / "out", QUIET)
        assert not (tmp_path / "out").exists()


def test_rivals_that_are_none_are_told(tmp_path):
    with pytest.raises(RecipeError, match="int8 is named twice"):
        against(tmp_path, "int8", "int8")
    with pytest.raises(RecipeError, match="is the model itself"):
        against(tmp_path, tmp_path / "model")


def test_a_rivals_folder_has_its_name_and_says_which_of_two():
    assert folder_of("int4") == "int4"
    one, two = folder_of("a/model"), folder_of("b/model")
    assert one.startswith("model-") and two.startswith("model-") and one != two
    assert "/" not in folder_of("x/../..") and folder_of("x/../..") not in (".", "..")
