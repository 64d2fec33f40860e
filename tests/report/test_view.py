from __future__ import annotations

from dataclasses import replace

import pytest
from tests.fake_run import fake_run, summed

from prunetune.report.conclusion import kept
from prunetune.report.view import view
from prunetune.runs.reading import RunRecord, read_run
from prunetune.runs.records import Verdict


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunRecord:
    return read_run(fake_run(tmp_path_factory.mktemp("run")))


def test_the_sentence_is_the_records(run) -> None:
    assert run.original is not None
    assert run.final is not None
    share = run.final.params / run.original.params
    said = [
        (kept(run, a.task).text(), f"({a.text()}, then {b.text()})")
        for a, b in zip(run.original.evals, run.final.evals, strict=True)
    ]
    ratios = [b.value / a.value for a, b in zip(run.original.evals, run.final.evals, strict=True)]
    assert all(share.startswith(f"{100 * r:.1f} % (") for (share, _), r in zip(said, ratios, strict=True))
    sentence = view(run).sentence
    assert sentence.startswith(
        f"{100 * share:.1f} % of the parameters keep {said[0][0]} of the accuracy on demo {said[0][1]}"
    )
    assert f" and {said[1][0]} on gsm_symbolic {said[1][1]}" in sentence


def test_the_sentence_says_why_a_search_ended(run) -> None:
    promise = {"wanted": 0.9, "kept": True, "why": "so"}
    kept = summed(run, promise=promise)
    assert view(kept).sentence.endswith(". It keeps 90.0 % of the accuracy, as asked.")
    half = run.original.cost.model_copy(update={"params": run.original.params // 2})
    undone = run.stages[-1].model_copy(update={"cost": half, "verdict": Verdict(accepted=False, why="less")})
    searched = view(replace(kept, stages=(*run.stages, undone))).sentence
    assert searched.endswith("as small as keeps 90.0 % of the accuracy: the next step tried, to 50.0 %, was undone.")
    assert view(summed(run, promise=promise | {"kept": False})).sentence == view(run).sentence


def test_bars_are_shares_of_the_original(run) -> None:
    bars = view(run).bars
    assert [(b.label, b.kind) for b in bars] == [
        ("original", "original"),
        ("compacted", "final"),
        ("pruned once", "control"),
    ]
    assert [b.share for b in bars] == [
        1.0,
        run.final.params / run.original.params,
        run.control.final.params / run.original.params,
    ]


def test_nothing_removed(run) -> None:
    assert view(summed(run, bare=True, final={"index": 0, "name": "original"})).sentence == "Nothing was removed."
    assert view(summed(replace(run, stages=()), bare=True)).sentence == "No stage is finished yet."


def test_the_final_model_is_paired_with_original_and_control(run) -> None:
    found = view(run)
    assert [(p.task, p.counts.n) for p in found.pairs] == [("demo", 240), ("gsm_symbolic", 120)]
    assert [p.task for p in found.control_pairs] == ["demo", "gsm_symbolic"]
    after = run.final.evals[0].correct
    assert found.pairs[0].counts.both + found.pairs[0].counts.gained == after
    assert found.control_pairs[0].counts.both + found.control_pairs[0].counts.gained == after


def test_what_is_missing_is_said(run) -> None:
    assert view(run).missing == ()
    bare = view(summed(replace(run, control=None), bare=True, final=run.summary["final"])).missing
    words = ("control", "Speed", "environment")
    assert len(bare) == len(words)
    assert all(any(word in m for m in bare) for word in words)
    assert "not finished" in view(summed(run, bare=True)).missing[0]
