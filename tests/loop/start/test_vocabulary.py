"""A run whose vocabulary is cut before its first round, from recipe to report, on a tiny model with a trained tokenizer."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import load_file
from tests.cli.test_app import call
from tests.pruning.vocabulary.test_folder import folder_of
from tests.tiny_run import rows, tiny_recipe

from prunetune.common.progress import Watch
from prunetune.errors import OutOfReach, RecipeError
from prunetune.loop import shapes
from prunetune.loop.context import prepare
from prunetune.loop.loop import prune_tune_loop
from prunetune.loop.start import vocabulary as module
from prunetune.models.cost import cost_of
from prunetune.models.folders import load_config, load_tokenizer
from prunetune.pruning.vocabulary.folder import cut_vocabulary
from prunetune.runs.shapes import ShapeRecord
from prunetune.schedule.damage import Probe

QUIET = Watch(quiet=True)
TRAINED = [{"type": "cpt", "samples": 8, "batch_size": 8, "max_length": 64}]


def recipe(at, prune, **changes):
    if not (at / "model").is_dir():
        folder_of("byte-level", at / "model")
        rows(at / "rows.jsonl")
    return tiny_recipe(at, **{"extends": "recommended", "recover": TRAINED, "prune": {"align": 8, **prune}, **changes})


def record(run, name="vocabulary.json"):
    return json.loads((run / "vocabulary" / name).read_text())


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """One round on neurons after the vocabulary cut, distilled from the default teacher."""
    at = tmp_path_factory.mktemp("fewer")
    wanted = recipe(at, {"target": 0.55, "vocabulary": "task"}, recover=[{**TRAINED[0], "type": "distill"}])
    prune_tune_loop(wanted, at / "run", QUIET)
    return at, wanted


def test_the_rounds_start_from_the_folder_that_the_command_makes(done):
    at, wanted = done
    fitted = prepare(wanted, at / "model", QUIET).fitted
    cut_vocabulary(at / "model", fitted, at / "by-hand")
    ours, theirs = at / "run/vocabulary/model", at / "by-hand"
    mine, other = (load_file(next(f.glob("model*.safetensors"))) for f in (ours, theirs))
    assert mine.keys() == other.keys() and all(torch.equal(mine[name], other[name]) for name in mine)
    assert (ours / "tokenizer.json").read_text() == (theirs / "tokenizer.json").read_text()
    final = load_config(at / "run/final")
    assert final.vocab_size == len(fitted.kept.rows) < load_config(at / "model").vocab_size
    assert load_tokenizer(at / "run/final").get_vocab() == load_tokenizer(ours).get_vocab()


def test_sizes_and_target_count_against_the_untouched_model(done):
    at, _ = done
    summary, whole = json.loads((at / "run/summary.json").read_text()), cost_of(load_config(at / "model"))
    assert summary["original"]["cost"]["params"] == whole.params
    assert summary["params_ratio"] == cost_of(load_config(at / "run/final")).params / whole.params <= 0.55
    wider = {**summary["final"]["shape"], "neurons": summary["final"]["shape"]["neurons"] + 8}
    assert cost_of(load_config(at / "model"), shape=wider).params > 0.55 * whole.params, "no neuron goes that need not"
    first = record(at / "run", "stage.json")
    assert first["cost"]["params"] == cost_of(load_config(at / "run/vocabulary/model")).params < whole.params


def test_the_original_is_measured_with_its_own_tokens_and_the_cut_changes_next_to_nothing(done):
    """Text that is cut as before has the same loss but for the softmax over fewer tokens, which only lowers it."""
    at, _ = done
    summary, first = json.loads((at / "run/summary.json").read_text()), record(at / "run", "stage.json")
    before, after = summary["original"]["held_out_loss"], first["held_out_loss"]
    assert before - 1.5 < after < before
    assert first["model_sha"] != summary["original"]["model_sha"]
    decision = json.loads((at / "run/decisions/01.json").read_text())
    assert decision["loss"] == after


def test_the_report_says_what_it_was_fitted_to_and_how_much_longer_other_text_becomes(done):
    at, _ = done
    found, text = record(at / "run"), (at / "run/report.md").read_text()
    data = found["lengths"]["data"]
    assert (data["ratio"], data["alike"], data["fitted"]) == (1.0, data["texts"], True)
    code = found["lengths"]["code (Python's argparse)"]
    assert code["ratio"] > 1 and not code["fitted"]
    old, new = (load_tokenizer(at / name) for name in ("model", "run/vocabulary/model"))
    foreign = [len(t.encode(module.LANGUAGES[0], add_special_tokens=False)) for t in (old, new)]
    assert 0 < foreign[0] < foreign[1]
    section = text.split("## Vocabulary")[1].split("##")[0]
    assert f"| code (Python's argparse) | no | x {code['ratio']:.3f} |" in section
    assert f"{found['original_rows']:,} -> {found['rows']:,} rows" in section
    assert re.search(rf"^\| vocabulary \|.*\| {found['rows']:,} \|", text, re.MULTILINE)


def test_a_second_start_makes_nothing_again(done, monkeypatch):
    at, wanted = done
    monkeypatch.setattr(module, "cut_vocabulary", lambda *a, **k: pytest.fail("cut again"))
    monkeypatch.setattr(module, "loss_of", lambda *a: pytest.fail("measured again"))
    before = (at / "run/summary.json").read_text()
    prune_tune_loop(wanted, at / "run", QUIET)
    assert (at / "run/summary.json").read_text() == before


def test_a_run_killed_after_the_vocabulary_goes_on_from_it(tmp_path, monkeypatch):
    wanted = recipe(tmp_path, {"target": 0.55, "vocabulary": "task"}, recover=[])

    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("prunetune.loop.loop.original", killed)
        with pytest.raises(KeyboardInterrupt):
            prune_tune_loop(wanted, tmp_path / "run", QUIET)
    monkeypatch.setattr(module, "cut_vocabulary", lambda *a, **k: pytest.fail("cut again"))
    summary = prune_tune_loop(wanted, tmp_path / "run", QUIET)
    assert summary.params_ratio and summary.params_ratio <= 0.55


def test_a_target_that_the_vocabulary_meets_alone_needs_no_round(tmp_path):
    wanted = recipe(tmp_path, {"target": 0.95, "vocabulary": "task"})
    summary = prune_tune_loop(wanted, tmp_path / "run", QUIET)
    assert not summary.stages and summary.final.name == "vocabulary" and summary.final.evals
    assert load_config(tmp_path / "run/final").vocab_size == record(tmp_path / "run")["rows"]
    assert "## Vocabulary" in (tmp_path / "run/report.md").read_text()


def test_a_count_is_kept_and_what_had_no_room_is_said(tmp_path):
    summary = prune_tune_loop(recipe(tmp_path, {"target": 0.6, "vocabulary": 320}, recover=[]), tmp_path / "run", QUIET)
    assert summary.shape["vocabulary"] == 320 == record(tmp_path / "run")["rows"]
    found = record(tmp_path / "run")
    assert (found["lost"] > 0) == (found["lengths"]["data"]["ratio"] > 1)


@pytest.mark.parametrize("fewer", [True, False], ids=["fewer tokens", "all tokens"])
def test_the_choice_among_axes_takes_or_leaves_the_vocabulary(fewer, tmp_path, monkeypatch):
    """Losses that favour one of both: the rounds start from the model that was chosen, with its tokenizer."""

    def losses(context, run, at, source, scores, places, more):
        cut = context.tokenizer.get_vocab().keys() != load_tokenizer(tmp_path / "model").get_vocab().keys()
        assert cut == (source != tmp_path / "model")
        return [Probe(*places[0], 0, 1.0 if cut == fewer else 2.0)]

    monkeypatch.setattr(shapes, "losses", losses)
    wanted = recipe(
        tmp_path, {"target": 0.9, "axes": ["neurons", "vocabulary"], "rounds": 1}, recover=[], budget="equal"
    )
    summary = prune_tune_loop(wanted, tmp_path / "run", QUIET)
    chosen = ShapeRecord.read(tmp_path / "run/decisions/shape.json")
    whole, left = load_config(tmp_path / "model").vocab_size, record(tmp_path / "run")["rows"]
    assert {c.shape["vocabulary"] for c in chosen.candidates} == {whole, left}
    assert chosen.shape["vocabulary"] == summary.shape["vocabulary"] == (left if fewer else whole)
    assert load_config(tmp_path / "run/final").vocab_size == (left if fewer else whole)
    assert ("## Vocabulary" in (tmp_path / "run/report.md").read_text()) == fewer


def test_what_cannot_be_is_told_before_any_work(tmp_path):
    with pytest.raises(OutOfReach, match="smaller than neurons and layers"):
        prepare(recipe(tmp_path, {"target": 0.02, "vocabulary": "task"}), tmp_path / "model", QUIET)
    with pytest.raises(OutOfReach, match="need more room"):
        prepare(recipe(tmp_path, {"target": 0.5, "vocabulary": 64}), tmp_path / "model", QUIET)
    with pytest.raises(RecipeError, match="another vocabulary"):
        recipe(tmp_path, {"target": 0.5, "vocabulary": "task"}, recover=[{"type": "distill", "teacher": "x"}])
    with pytest.raises(RecipeError, match="vocabulary"):
        recipe(tmp_path, {"target": 0.5, "vocabulary": "all"})
    with pytest.raises(RecipeError, match="by time"):
        recipe(tmp_path, {"target": "2x", "axes": ["neurons", "vocabulary"]})


def test_the_option_is_the_key_and_a_dry_run_knows_it(tmp_path, capsys):
    folder_of("byte-level", tmp_path / "model")
    rows(tmp_path / "rows.jsonl")
    ours = ["--model", tmp_path / "model", "--data", tmp_path / "rows.jsonl", "--target", "0.6"]
    code, _, err = call(capsys, "init", tmp_path / "r.yaml", *ours, "--vocabulary", "task")
    assert code == 0, err
    assert "vocabulary" in (tmp_path / "r.yaml").read_text()
    code, _, err = call(capsys, "init", tmp_path / "s.yaml", *ours, "--vocabulary", "few")
    assert code == 2 and "task, 32768" in err
