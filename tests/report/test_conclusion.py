"""A word that the figures carry: good, not good, or cannot tell, by intervals; the next command can be run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.fake_run import fake_run

from prunetune.cli.asked import Asked, mapping_of
from prunetune.report.conclusion import GOOD, conclude, doubts, kept
from prunetune.report.speed import speedup
from prunetune.report.view import view
from prunetune.runs.reading import RunRecord, read_run
from prunetune.runs.records import CostRecord, EvalRecord, StageRecord, TuneRecord, Verdict
from prunetune.runs.summary import Summary


def result(right: int, n: int, truncated: int = 0, task: str = "demo", **more: Any) -> EvalRecord:
    return EvalRecord(task=task, value=right / n, stderr=0.0, n=n, correct=right, truncated=truncated, new_tokens=100.0, prompt_tokens=20.0, **more)  # fmt: skip


def run_of(path: Path, before: EvalRecord, after: EvalRecord | None, steps: int = 40, **summary: Any) -> RunRecord:
    original = StageRecord(
        index=0, name="original", evals=(before,), cost=CostRecord(params=1000), seconds={"evaluate": 10}, tokens=0
    )
    stages = ()
    if after is not None:
        tuned = TuneRecord(method="cpt", steps=steps, tokens=5000, seconds=30.0)
        stages = (
            StageRecord(index=1, name="01-both", evals=(after,), cost=CostRecord(params=800), tokens=5000, tune=(tuned,),
                        seconds={"score": 5, "tune": 30, "evaluate": 10}, verdict=Verdict(accepted=True, why="")),
        )  # fmt: skip
    return RunRecord(path=path, original=original, stages=stages, summary=Summary.model_validate(summary))


def answers(run: RunRecord, pairs: list[tuple[bool, bool]]) -> None:
    for stage, place in ((run.original, 0), (run.final, 1)):
        folder = run.folder(stage) / "eval"
        folder.mkdir(parents=True)
        rows = [{"id": f"q{i}", "question": f"{i}?", "output": "", "correct": p[place]} for i, p in enumerate(pairs)]
        (folder / "demo.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


@pytest.mark.parametrize(
    ("before", "after", "word", "says"),
    [
        (
            result(1, 16),
            result(0, 16),
            "cannot tell",
            "solves 1 of 16 problems of demo (1.1 to 28.3 %): little to keep",
        ),
        (result(0, 20), result(0, 20), "cannot tell", "solves 0 of 20"),
        (result(0, 20), result(3, 20), "cannot tell", "solves 0 of 20"),
        (result(990, 1000), result(985, 1000), "good", "99.5 % (98."),
        (result(990, 1000), result(300, 1000), "not good", "good is 90 % or more"),
        (result(18, 20), result(17, 20), "cannot tell", "20 problems are too few"),
        (result(900, 1000), result(820, 1000), "cannot tell", "1,000 problems are too few to tell"),
        (result(990, 1000), result(0, 1000), "not good", "0.0 % (0.0 to 0."),
        (result(900, 1000), result(300, 1000, truncated=600), "cannot tell", "600 of 1,000 answers to demo ran into"),
        (result(20, 200, truncated=150), result(20, 200), "cannot tell", "150 of the original's 200 answers"),
        (result(990, 1000), result(985, 1000, truncated=300), "good", "kept"),
        (result(1, 1), result(1, 1), "cannot tell", "too few"),
    ],
)
def test_the_word_is_that_of_the_interval(
    before: EvalRecord, after: EvalRecord, word: str, says: str, tmp_path: Path
) -> None:
    said = conclude(run_of(tmp_path, before, after))
    assert said is not None
    assert (said.word, says in said.why) == (word, True), said.why
    assert said.cost == "55 s, 5,000 recovery tokens, 80.0 % of the parameters left"
    assert said.slow == "tune 30 s (55 %), evaluate 20 s (36 %)"
    assert [line.split()[0] for line in said.lines()] == ["result", "cost", "slow", "next"]


def test_one_optimiser_step_is_no_recovery(tmp_path: Path) -> None:
    lost = result(990, 1000), result(300, 1000)
    assert "one optimiser step" in conclude(run_of(tmp_path, *lost, steps=1)).why
    assert conclude(run_of(tmp_path, *lost, steps=1)).word == "cannot tell"
    assert conclude(run_of(tmp_path, *lost, steps=2)).word == "not good"
    assert conclude(run_of(tmp_path, result(990, 1000), result(990, 1000), steps=1)).word == "good"


def test_nothing_removed_nothing_measured_and_a_promise(tmp_path: Path) -> None:
    promise = {"wanted": 0.95, "kept": False, "why": "no smaller model keeps it"}
    none = conclude(run_of(tmp_path, result(9, 10), None, final={"index": 0, "name": "original"}, promise=promise))
    assert (none.word, none.why) == ("not good", "no smaller model keeps it")
    assert conclude(run_of(tmp_path, result(9, 10), None)) is None, "nothing is finished yet"
    text = result(9, 10, metric="perplexity")
    assert "no task with right and wrong answers" in conclude(run_of(tmp_path, text, text)).why
    kept_ = conclude(
        run_of(tmp_path, result(190, 200), result(180, 200), promise=promise | {"kept": True, "why": "so"})
    )
    assert (kept_.word, kept_.why) == ("good", "keep 95.0 %: kept; so")
    weak = conclude(run_of(tmp_path, result(0, 20), result(0, 20), promise=promise | {"kept": True}))
    assert weak.word == "cannot tell", "nothing was kept of nothing"


def test_the_same_questions_say_more_than_two_error_bars(tmp_path: Path) -> None:
    """Half right before and after, of 200: apart, nothing is known; the same ones right, everything is."""
    run = run_of(tmp_path / "a", result(100, 200), result(99, 200))
    assert conclude(run).word == "cannot tell"
    answers(run, [(i < 100, i < 99) for i in range(200)])
    assert conclude(run).word == "good" and kept(run, "demo").low > GOOD
    other = run_of(tmp_path / "b", result(100, 200), result(100, 200))
    answers(other, [(i < 100, i >= 100) for i in range(200)])
    assert conclude(other).word == "cannot tell"


def test_the_sentence_says_no_share_of_what_cannot_be_shared(tmp_path: Path) -> None:
    one = view(run_of(tmp_path, result(1, 16), result(0, 16)))
    assert one.sentence == (
        "80.0 % of the parameters; demo: 6.2 % right before, 0.0 % (0.0 to 19.4) after: no share to speak of."
    )
    assert not any("collapsed" in n for n in one.notes), "1 of 16 against 0 of 16"
    none = view(run_of(tmp_path, result(0, 20), result(0, 20))).sentence
    assert "not measured" not in none and "demo: 0.0 % (0.0 to 16.1) right before" in none
    many = view(run_of(tmp_path, result(16, 16), result(0, 16)))
    assert any("collapsed" in n for n in many.notes)
    assert "keep 0.0 % (0.0 to " in many.sentence


def test_doubts_about_an_original() -> None:
    assert doubts([result(150, 200), result(5, 200, metric="perplexity")]) == []
    assert "solves 1 of 16" in doubts([result(1, 16)])[0]
    assert "18 of the original's 20 answers to demo ran into the length limit" in doubts([result(12, 20, 18)])[0]


@pytest.mark.parametrize(
    ("before", "after"),
    [((1, 16), (0, 16)), ((990, 1000), (300, 1000)), ((18, 20), (17, 20)), ((900, 1000), (300, 1000, 600))],
)
def test_the_next_command_is_one(before: Any, after: Any, tmp_path: Path) -> None:
    at = fake_run(tmp_path / "run", control=False)
    (at / "final").mkdir(exist_ok=True)
    (at / "final" / "chat_template.jinja").write_text("{{ messages }}")
    run = run_of(at, result(*before), result(*after))
    words = conclude(run).then.split()
    assert words[:5] == ["prunetune", "run", str(at / "recipe.yaml"), "--out", f"{at}-2"]
    (at / "recipe.yaml").write_text(
        "model: demo\ndata: [{type: demo}]\nprune: {target: 0.8}\nevaluate: {tasks: [{name: demo}]}\n"
    )
    given = dict(zip(words[5::2], words[6::2], strict=True))
    options = {"--n": "n", "--target": "target", "--tokens": "tokens", "--set": "sets"}
    values = {options[k]: (v,) if k == "--set" else int(v) if k == "--n" else v for k, v in given.items()}
    assert mapping_of(Asked(words[2], **values))["model"] == "demo"


def test_the_next_command_fits_the_run(tmp_path: Path) -> None:
    """No chat template is advised that is not there, no more problems of a file that was asked whole."""
    none = run_of(tmp_path, result(0, 60, task="mine"), result(0, 60, task="mine"))
    assert conclude(none).then == f"head -n 3 {tmp_path}/original/eval/mine.jsonl"
    (tmp_path / "final").mkdir()
    (tmp_path / "final" / "chat_template.jinja").write_text("{{ messages }}")
    assert conclude(none).then.endswith("-2 --set prompt.template=chat")
    few = run_of(tmp_path, result(18, 20, task="mine"), result(17, 20, task="mine"))
    assert conclude(few).then.endswith("-2 --n 100")
    task = {"name": "mine", "path": "test.csv", "n": None, "verifier": "number"}
    whole = replace(few, recipe={"evaluate": {"tasks": [task]}})
    assert conclude(whole).then.endswith("-2 --task mine=MORE-QUESTIONS.csv --verifier number")
    part = replace(few, recipe={"evaluate": {"tasks": [{**task, "n": 20}]}})
    assert conclude(part).then.endswith("-2 --n 100")
    text = result(9, 10, metric="perplexity")
    bare = run_of(tmp_path, text, text)
    for data, option in (
        ([{"type": "file", "path": "a.csv"}], "--task mine=QUESTIONS.csv --verifier number"),
        ([{"type": "preset", "name": "gsm8k"}], "--task gsm8k"),
        ([{"type": "preset", "name": "code"}], "--task mine=QUESTIONS.csv --verifier number"),
        ([{"type": "demo"}], "--task demo"),
    ):
        assert conclude(replace(bare, recipe={"data": data})).then.endswith(f"-2 {option}")


def test_a_whole_run_has_its_word_in_the_report(tmp_path: Path) -> None:
    found = view(read_run(fake_run(tmp_path / "run")))
    assert found.conclusion is not None and found.conclusion.word in ("good", "not good", "cannot tell")


def test_a_measured_speed_is_told_with_its_interval(tmp_path: Path) -> None:
    run = read_run(fake_run(tmp_path / "run"))
    found = speedup(run, "decode")
    said = conclude(run)
    assert found is not None and said is not None
    assert said.speed.startswith(f"{found.text()} a token, one answer at a time")
    assert f"speed   {said.speed}" in said.lines()
    unmeasured = conclude(run_of(tmp_path, result(90, 100), result(80, 100)))
    assert unmeasured is not None and unmeasured.speed == ""
    assert not any(line.startswith("speed") for line in unmeasured.lines())


def test_the_cost_says_what_the_time_left_and_what_the_control_took(tmp_path: Path) -> None:
    plain = run_of(tmp_path, result(90, 100), result(90, 100), planned_tokens=89_000)
    said = conclude(replace(plain, control=run_of(tmp_path, result(90, 100), result(90, 100), seconds={"latency": 7})))
    assert said is not None
    assert said.cost.startswith(
        "55 s (and 52 s for the control), 5,000 recovery tokens of 89.0 k planned (the time was up)"
    )
    enough = conclude(run_of(tmp_path, result(90, 100), result(90, 100), planned_tokens=5100))
    assert enough is not None and "planned" not in enough.cost and "control" not in enough.cost
