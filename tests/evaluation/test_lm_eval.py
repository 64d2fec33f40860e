"""lm-eval with local files: the same figures as the bare command, resume, the sandbox, clear errors. Offline."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from tests.killing import killed_after
from tests.tiny import brief_folder, tiny_folder

from prunetune.errors import DataError, MissingExtra, MissingPath, RecipeError, TaskError, UnknownName
from prunetune.evaluation.evaluate import evaluate
from prunetune.evaluation.lm_eval import evaluate_task, evaluate_with_harness
from prunetune.evaluation.samples import Kept, read_rows, read_samples
from prunetune.models.folders import load_model, load_tokenizer
from prunetune.models.prompt import PromptFormat
from prunetune.tasks import lm_eval as harness_data
from prunetune.tasks.registry import TaskConfig, build_task
from prunetune.tasks.sandbox.program import why_not

lm_eval = pytest.importorskip("lm_eval")
needs_sandbox = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

SUBJECTS = {
    "algebra": "algebra",
    "counting_&_probability": "counting_and_prob",
    "geometry": "geometry",
    "intermediate_algebra": "intermediate_algebra",
    "number_theory": "num_theory",
    "prealgebra": "prealgebra",
    "precalculus": "precalc",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that ends its answers after some forty tokens, so that the tests are quick."""
    return brief_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def gsm8k(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gsm8k")
    for split in ("train", "test"):
        rows = [{"question": f"{split} {i}?", "answer": f"so\n#### {i}"} for i in range(8)]
        (folder / f"{split}.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    return folder


def test_every_sample_equals_lm_evals_own(model: Path, gsm8k: Path, tmp_path: Path) -> None:
    """The oracle reads the same files through a YAML written by hand. (The command: studies/lib/same_as_lm_eval.py.)"""
    out = tmp_path / "ours"
    (result,) = evaluate_with_harness(
        model, ["gsm8k"], data={"gsm8k": str(gsm8k)}, limit=4, shots=2, batch_size=2, dtype="float32", out=out
    )
    include = Path(lm_eval.__file__).parent / "tasks" / "gsm8k" / "gsm8k.yaml"
    files = {s: str(gsm8k / f"{s}.jsonl") for s in ("train", "test")}
    by_hand = {"include": str(include), "task": "gsm8k", "dataset_path": "json", "dataset_name": None}
    by_hand["dataset_kwargs"] = {"data_files": files, "cache_dir": str(tmp_path / "cache")}
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "gsm8k.yaml").write_text(yaml.safe_dump(by_hand))
    manager = lm_eval.tasks.TaskManager(include_defaults=False)
    found: Any = lm_eval.simple_evaluate(
        model="hf", model_args={"pretrained": str(model), "dtype": "float32"}, batch_size=2, device="cpu",
        tasks=[str(tmp_path / "tasks" / "gsm8k.yaml")], task_manager=manager, limit=4,
        num_fewshot=2, log_samples=True,
    )  # fmt: skip
    samples = [s for s in found["samples"]["gsm8k"] if s["filter"] == "strict-match"]
    bare = {f"gsm8k/{s['doc_id']}": s for s in samples}
    ours = {s.id: s for s in read_samples(out / "lm-eval:gsm8k.jsonl")}
    assert ours.keys() == bare.keys() and len(ours) == 4
    for i, sample in ours.items():
        assert sample.prompt == bare[i]["arguments"][0][0]
        assert sample.output == bare[i]["resps"][0][0]
        assert sample.extracted == bare[i]["filtered_resps"][0]
        assert sample.correct == bool(bare[i]["exact_match"])
    assert (result.task, result.version, result.metric) == ("lm-eval:gsm8k", "3.0", "exact_match,strict-match")
    assert (result.n, result.shots, result.value) == (4, 2, 0.0)
    assert "exact_match,flexible-extract" in result.scores
    assert ours["gsm8k/0"].prompt.count("Question: train") == 2


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of requests of every call of lm-eval's `generate_until`."""
    from lm_eval.models.huggingface import HFLM

    calls: list[int] = []
    real = HFLM.generate_until

    def counting(self: Any, requests: Any, **more: Any) -> Any:
        calls.append(len(requests))
        return real(self, requests, **more)

    monkeypatch.setattr(HFLM, "generate_until", counting)
    return calls


def test_finished_answers_are_not_asked_again(model: Path, gsm8k: Path, tmp_path: Path, asked: list[int]) -> None:
    options: dict[str, Any] = {"data": {"gsm8k": str(gsm8k)}, "shots": 0, "batch_size": 1, "out": tmp_path}

    class Killed(Exception):
        pass

    def kill(done: int, _: int) -> None:
        if done == 2:
            raise Killed

    with pytest.raises(Killed):
        evaluate_with_harness(model, ["gsm8k"], limit=3, progress=kill, **options)
    seen: list[tuple[int, int]] = []
    evaluate_with_harness(model, ["gsm8k"], limit=3, progress=lambda *p: seen.append(p), **options)
    assert asked == [3, 1] and seen == [(3, 3)]
    evaluate_with_harness(model, ["gsm8k"], limit=4, **options)
    assert asked == [3, 1, 1]


@pytest.mark.thorough
def test_a_killed_evaluation_goes_on_where_it_was(model: Path, gsm8k: Path, tmp_path: Path, asked: list[int]) -> None:
    """The command itself, ended by SIGKILL once some answers are on disk."""
    rows = [{"question": f"test {i}?", "answer": f"so\n#### {i}"} for i in range(16)]
    (tmp_path / "test.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    (tmp_path / "train.jsonl").write_text((gsm8k / "train.jsonl").read_text())
    args = ["eval", str(model), "--task", "lm-eval:gsm8k", "--data", f"gsm8k={tmp_path}", "--shots", "0", "--limit", "16",
            "--batch-size", "1", "--device", "cpu", "--out", str(tmp_path / "out"), "--json"]  # fmt: skip
    answers = tmp_path / "out" / ".answers.jsonl"
    killed_after(args, answers, lines=2)
    finished = read_rows(answers, Kept)
    assert 2 <= len(finished) < 16
    again, straight = (
        evaluate_with_harness(
            model, ["gsm8k"], data={"gsm8k": str(tmp_path)}, shots=0, limit=16, batch_size=1, out=out, dtype="float32"
        )
        for out in (tmp_path / "out", None)
    )
    assert asked == [16 - len(finished), 16]
    assert again[0].value == straight[0].value and again[0].new_tokens == straight[0].new_tokens
    assert [a.answer for a in read_rows(answers, Kept)[: len(finished)]] == [a.answer for a in finished]
    assert len(read_samples(tmp_path / "out" / "lm-eval:gsm8k.jsonl")) == 16


def test_minerva_math_from_the_archives_own_folders(model: Path, tmp_path: Path) -> None:
    for subject in SUBJECTS:
        for split in ("train", "test"):
            folder = tmp_path / split / subject
            folder.mkdir(parents=True)
            row = {"problem": f"{subject}?", "level": "Level 1", "type": "x", "solution": "It is $\\boxed{2}$."}
            (folder / "1.json").write_text(json.dumps(row, indent=1))
    (result,) = evaluate_with_harness(
        model, ["minerva_math"], data={"minerva_math": str(tmp_path)}, limit=1, batch_size=7, out=tmp_path / "out"
    )
    assert (result.n, result.shots, result.metric) == (7, 4, "exact_match,none")
    assert {"exact_match,none", "math_verify,none"} <= set(result.scores)
    samples = read_samples(tmp_path / "out" / "lm-eval:minerva_math.jsonl")
    assert {s.id for s in samples} == {f"minerva_math_{name}/0" for name in SUBJECTS.values()}
    assert {s.question for s in samples} == {f"{s}?" for s in SUBJECTS}


@pytest.fixture(scope="module")
def mbpp_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [
        {
            "task_id": i,
            "text": f"Write f{i}.",
            "code": f"def f{i}(x):\r\n  return x",
            "test_list": [f"assert f{i}({k}) == {k}" for k in range(3)],
            "test_setup_code": "",
        }
        for i in (1, 2, 3, 4, 11, 12)
    ]
    path = tmp_path_factory.mktemp("mbpp") / "mbpp.jsonl"
    path.write_text("\n".join(json.dumps(r) for r in rows))
    return path


@needs_sandbox
def test_mbpp_runs_in_the_sandbox_with_lm_evals_prompt(model: Path, mbpp_file: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"data": {"mbpp": str(mbpp_file.parent)}, "limit": 1, "out": tmp_path}
    with pytest.raises(TaskError, match="only if you allow it"):
        evaluate_with_harness(model, ["mbpp"], **options)
    (result,) = evaluate_with_harness(model, ["mbpp"], allow_code_execution=True, **options)
    assert (result.metric, result.shots, result.n, result.value) == ("pass_at_1,none", 3, 1, 0.0)
    (sample,) = read_samples(tmp_path / "lm-eval:mbpp.jsonl")
    start = "You are an expert Python programmer, and here is your task: "
    tests = [f"assert f2({k}) == {k}" for k in range(3)]
    assert sample.prompt.startswith(
        f"{start}Write f2. Your code should pass these tests:\n\n"
        + "\n".join(tests)
        + "\n[BEGIN]\ndef f2(x):\r\n  return x\n[DONE]\n\n"
    )
    assert sample.prompt.endswith("assert f11(2) == 2\n[BEGIN]\n") and sample.prompt.count(start) == 4


@needs_sandbox
def test_mbpps_scorer() -> None:
    doc = {"test_list": ["assert f(1) == 2"], "test_setup_code": ""}
    assert harness_data.mbpp_results(doc, ["def f(x): return x + 1"]) == {"pass_at_1": 1.0}
    assert harness_data.mbpp_results(doc, ["def f(x): return x"]) == {"pass_at_1": 0.0}


def test_a_task_of_a_recipe_is_the_same_evaluation(model: Path, gsm8k: Path, tmp_path: Path) -> None:
    config = TaskConfig(name="lm-eval:gsm8k", path=str(gsm8k), n=3, options={"shots": 1}, seed=5)
    out = tmp_path / "eval" / "lm-eval:gsm8k.jsonl"
    loaded, tokenizer = load_model(model), load_tokenizer(model)
    ours = evaluate(loaded, tokenizer, build_task(config), fmt=PromptFormat(), out=out, batch_size=2, key="sha")
    (bare,) = evaluate_with_harness(
        model, ["gsm8k"], data={"gsm8k": str(gsm8k)}, limit=3, shots=1, seed=5, batch_size=2, out=tmp_path / "bare"
    )
    assert (ours.task, ours.n, ours.shots, ours.seed, ours.limit) == ("lm-eval:gsm8k", 3, 1, 5, 3)
    assert dataclasses.replace(ours, seconds=0.0) == dataclasses.replace(bare, seconds=0.0)
    assert read_samples(out) == read_samples(tmp_path / "bare" / "lm-eval:gsm8k.jsonl")
    chat = PromptFormat(template="chat")
    with pytest.raises(RecipeError, match="no chat template"):
        evaluate(loaded, tokenizer, build_task(config), fmt=chat, out=None)


def test_model_written_code_runs_in_our_sandbox_or_not_at_all(tmp_path: Path) -> None:
    path = Path(lm_eval.__file__).parent / "tasks" / "humaneval" / "humaneval.yaml"
    manager = SimpleNamespace(all_subtasks=["humaneval"], task_index={"humaneval": SimpleNamespace(yaml_path=path)})
    with pytest.raises(TaskError, match="unconfined"):
        harness_data.write_overrides(manager, ["humaneval"], {}, tmp_path)
    harness_data.write_overrides(manager, ["gsm8k"], {}, tmp_path)


def test_errors(model: Path, gsm8k: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(name: str, **more: Any) -> Any:
        return evaluate_with_harness(model, [name], limit=1, **more)

    with pytest.raises(MissingPath, match="no such data for gsm8k"):
        run("gsm8k", data={"gsm8k": str(tmp_path / "none")})
    with pytest.raises(DataError, match="NO_SUCH_VARIABLE is not set"):
        run("gsm8k", data={"gsm8k": "$NO_SUCH_VARIABLE/gsm8k"})
    with pytest.raises(DataError, match="no file for the split 'test'"):
        run("gsm8k", data={"gsm8k": str(tmp_path)})
    (tmp_path / "test.jsonl").write_text((gsm8k / "test.jsonl").read_text())
    with pytest.raises(DataError, match="worked examples of gsm8k"):
        run("gsm8k", data={"gsm8k": str(tmp_path)})

    if importlib.util.find_spec("vllm") is None:
        with pytest.raises(MissingExtra, match="vllm"):
            run("gsm8k", backend="vllm")
    short = tiny_folder(tmp_path / "short")  # a context of 256 tokens, all of which gsm8k wants for its answer
    with pytest.raises(TaskError, match="longer than the model's context"):
        evaluate_with_harness(short, ["gsm8k"], data={"gsm8k": str(gsm8k)}, limit=1, shots=0, batch_size=1)
    own = build_task(TaskConfig(name="demo", n=1))
    with pytest.raises(TaskError, match="only lm-eval's tasks"):
        evaluate_task(model, own, chat=False, out=None, backend="vllm")

    class Small:  # lm-eval's whole index takes many seconds
        all_tasks = ("gsm8k", "arc_easy")

        def __init__(self, **_: Any) -> None:
            pass

    monkeypatch.setattr("lm_eval.tasks.TaskManager", Small)
    with pytest.raises(UnknownName, match="did you mean 'gsm8k'"):
        run("gsm8")


def test_ifeval_without_its_sentence_splitter_says_what_to_do(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nltk = pytest.importorskip("nltk")

    def missing(_: str) -> None:
        raise LookupError

    monkeypatch.setattr(nltk.data, "find", missing)
    monkeypatch.setattr(nltk, "download", lambda *_, **__: False)
    with pytest.raises(TaskError, match=r"sentence splitter[\s\S]*nltk.downloader punkt_tab"):
        evaluate_with_harness(model, ["ifeval"])


def test_data_of_a_task_serve_its_variants_but_not_its_namesakes() -> None:
    data = {"gsm8k": "a", "minerva_math": "b", "minerva_math_algebra": "c"}
    names = ["gsm8k", "gsm8k_cot", "minerva_math_geometry", "minerva_math_algebra", "minerva_math500", "mbpp"]
    assert [harness_data.key_of(n, data) for n in names] == [
        "a" and "gsm8k",
        "gsm8k",
        "minerva_math",
        "minerva_math_algebra",
        None,
        None,
    ]
