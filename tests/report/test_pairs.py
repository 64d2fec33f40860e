from __future__ import annotations

import pytest
from tests.fake_run import fake_run

from prunetune.common.stats import Paired
from prunetune.errors import BadCheckpoint
from prunetune.evaluation.samples import Sample
from prunetune.report.pairs import one_question, read_samples, side_by_side
from prunetune.runs.reading import read_run


def test_samples(tmp_path) -> None:
    folder = fake_run(tmp_path / "run", finished=False)
    run = read_run(folder)
    samples = read_samples(folder / "original", "demo")
    assert run.original is not None
    result = run.original.eval_of("demo")
    assert result is not None
    assert (len(samples), sum(s.correct for s in samples.values())) == (result.n, result.correct)
    assert read_samples(folder / "original", "other") == {}


def test_a_broken_line_of_samples_is_named(tmp_path) -> None:
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval/t.jsonl").write_text('{"id": 1, "output": "x", "correct": true}\n{"id": 2}\n')
    with pytest.raises(BadCheckpoint, match="line 2"):
        read_samples(tmp_path, "t")


def _samples(verdicts: dict[str, bool]) -> dict[str, Sample]:
    return {k: Sample(id=k, question=k, output="", extracted=None, correct=v) for k, v in verdicts.items()}


def test_side_by_side_takes_the_first_of_each_class_by_id() -> None:
    first = _samples({"q-10": True, "q-9": True, "q-2": False, "q-3": True, "q-1": True, "only-here": True})
    second = _samples({"q-10": False, "q-9": False, "q-2": True, "q-3": True, "q-1": True})
    found = side_by_side("t", first, second)
    assert found is not None
    assert found.counts == Paired(both=2, lost=2, gained=1, neither=0)
    assert {k: a.id for k, (a, _) in found.examples.items()} == {"both right": "q-1", "lost": "q-9", "gained": "q-2"}
    second["q-4"], first["q-4"] = (_samples({"q-4": False})["q-4"] for _ in range(2))
    found = side_by_side("t", first, second)
    assert found is not None
    assert found.examples["both wrong"][0].id == "q-4"
    assert side_by_side("t", first, {}) is None


def test_questions_that_only_share_an_id_are_not_paired() -> None:
    first = _samples({"q-1": True, "q-2": True})
    second = {
        **_samples({"q-1": False}),
        "q-2": Sample(id="q-2", question="another question", output="", correct=False),
    }
    found = side_by_side("t", first, second)
    assert found is not None
    assert found.counts == Paired(both=0, lost=1, gained=0, neither=0)


def test_ids_without_numbers_are_ordered_as_text() -> None:
    both = _samples({"b6033771ba1e": True, "a62cde4adac2": True})
    found = side_by_side("t", both, both)
    assert found is not None
    assert found.examples["both right"][0].id == "a62cde4adac2"


def test_three_answers_to_the_first_question_that_tells_them_apart() -> None:
    first = _samples({"q-1": True, "q-2": True, "q-3": True, "q-10": True})
    second = _samples({"q-1": True, "q-2": False, "q-3": True, "q-10": True})
    control = _samples({"q-1": True, "q-2": False, "q-10": False, "q-3": False})
    found = one_question(first, second, control, "naive cut")
    assert found is not None
    assert (found.question, [(n, a.correct) for n, a in found.by]) == (
        "q-3",
        [("original", True), ("naive cut", False), ("compacted", True)],
    )
    same = one_question(first, first, first, "x")
    assert same is not None and same.question == "q-1"
    assert one_question(first, second, {}, "x") is None
