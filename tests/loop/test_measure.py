"""What a run measures beside its task: controls of every kind go through the whole loop and into the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.tiny import brief_folder
from tests.tiny_run import Lines, rows, tiny_recipe

from prunetune.loop.loop import prune_tune_loop
from prunetune.loop.measure import line_of
from prunetune.recipe.schema import Recipe
from prunetune.runs.records import StageRecord


@pytest.mark.slow
def test_controls_in_a_recipe(tmp_path: Path) -> None:
    """A perplexity, SQuAD and a task of lm-eval's beside the task; round_n holds for lm-eval's too."""
    pytest.importorskip("lm_eval")
    brief_folder(tmp_path / "model")
    rows(tmp_path / "rows.jsonl")
    value = tiny_recipe(tmp_path).model_dump(mode="json")
    for split in ("train", "test"):
        rows(tmp_path / f"{split}.jsonl", 8)  # the test questions are among the training rows: a leak
    paragraph = {"context": "It rained.", "qas": [{"id": "a", "question": "What?", "answers": [{"text": "rain"}]}]}
    (tmp_path / "squad.json").write_text(json.dumps({"data": [{"paragraphs": [paragraph]}]}))
    (tmp_path / "text.txt").write_text("The quick brown fox. " * 20)
    value["prune"] |= {"target": 0.95, "layers": 0}
    value["recover"][0]["samples"] = 160
    controls = [
        {"name": "perplexity", "path": str(tmp_path / "text.txt"), "options": {"window": 64}},
        {"name": "squad", "path": str(tmp_path / "squad.json"), "max_new_tokens": 2},
        {"name": "lm-eval:gsm8k", "path": str(tmp_path), "n": 3, "options": {"shots": 0}},
    ]
    value["evaluate"] = {"tasks": [*value["evaluate"]["tasks"], *controls], "round_n": 2, "latency_repeats": 0}
    watch = Lines()
    summary = prune_tune_loop(Recipe.parse(value), tmp_path / "out", watch)
    names = ["sums", "perplexity", "squad", "lm-eval:gsm8k"]
    assert list(summary["accuracy"]) == names
    assert [summary["accuracy"][t]["n"] for t in names[2:]] == [1, 3], "the final model answers all that were asked for"
    for stage in (summary["original"], summary["final"]):
        found = {e["task"]: e for e in stage["evals"]}
        assert found["perplexity"]["value"] > 1 and found["lm-eval:gsm8k"]["limit"] == 3
        shown = f"{found['perplexity']['value']:,.2f}" if found["perplexity"]["value"] < 100 else "perplexity "
        assert shown in line_of(StageRecord.model_validate(stage), summary.original)
        assert (tmp_path / "out" / stage["name"] / "eval" / "lm-eval:gsm8k.jsonl").is_file()
    assert "perplexity" not in summary["leaks"] and summary["leaks"]["lm-eval:gsm8k"]["questions"] == 3
    assert summary["leaks"]["lm-eval:gsm8k"]["exact"] > 0
    assert any(line.startswith("warning: the recovery data hold") and "lm-eval:gsm8k" in line for line in watch.lines)
    markdown = (tmp_path / "out" / "report.md").read_text()
    assert (
        "| perplexity, n = " in markdown
        and "exact match, squad" in markdown
        and "exact match, lm-eval:gsm8k" in markdown
    )
    before = summary["seconds"]["evaluate"]
    again = prune_tune_loop(Recipe.parse(value), tmp_path / "out", watch)
    assert again["seconds"]["evaluate"] == before, "nothing is measured twice"


def test_a_reward_or_a_stop_needs_a_verifier(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    control = {"name": "perplexity", "path": "x"}
    own = recipe.model_dump(mode="json")["evaluate"]["tasks"][0]

    def judged(*tasks: dict[str, object]) -> str | None:
        value = recipe.model_dump(mode="json") | {"evaluate": {"tasks": list(tasks)}}
        found = Recipe.parse(value).evaluate.judged
        return found.name if found else None

    assert (judged(control, own), judged(control, {"name": "lm-eval:gsm8k"}), judged()) == ("sums", None, None)


def test_a_line_says_n_and_which_loss_is_which() -> None:
    e = {"task": "sums", "value": 0.985, "stderr": 0.009, "n": 200}
    cost = {"params": 1_000_000}
    first = StageRecord.model_validate(
        {"index": 0, "name": "original", "cost": cost, "held_out_loss": 0.77, "evals": [e]}
    )
    cut = first.model_copy(update={"index": 1, "name": "01", "pruned_loss": 0.774, "held_out_loss": 0.415})
    assert line_of(first, first).endswith("100.0%  sums 98.5 % ± 0.9, n = 200")
    assert line_of(cut, first).endswith(
        "sums 98.5 % ± 0.9, n = 200  held-out loss: original 0.770, cut 0.774, recovered 0.415"
    )
    assert line_of(first.model_copy(update={"evals": ()}), first).endswith("100.0%  held-out loss 0.770")
