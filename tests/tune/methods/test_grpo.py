"""GRPO as a stage: the reward is the task's verifier, the reference is this step's input, and what it reports."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.tiny import tiny_folder, tiny_model, tiny_tokenizer
from tests.tune.test_job import make_job, place, same, tensors

from prunetune.data.stream import Example, FileData
from prunetune.errors import MissingExtra, NotFinite, TaskError, TuneError
from prunetune.tasks.registry import Problem, Task, TaskConfig, Verdict
from prunetune.tune.methods import Grpo, Lora, Replay, Sft
from prunetune.tune.stage import run_job
from prunetune.tune.training.policy import check_reference, tensors_sha
from prunetune.tune.training.reward import Reward, form_of, reward_of

__all__ = ["place"]
SMALL: dict[str, Any] = {
    "learning_rate": 1e-2, "batch_size": 4, "group": 4, "max_new_tokens": 4, "precision": "fp32", "micro_batch_size": 16,
}  # fmt: skip


@pytest.fixture(scope="module")
def rows(place: Path) -> Path:
    """Questions whose right answer is any text with a 7 in it: easy to find, and to learn."""
    path = place / "sevens.jsonl"
    path.write_text("".join(json.dumps({"question": f"{i}?", "answer": "7"}) + "\n" for i in range(100, 148)))
    verifier = place / "seven.py"
    verifier.write_text(
        "def seven(output, reference):\n    return '7' in output\n"
        "def broken(output, reference):\n    raise ValueError('no such thing')\n"
        "def same(output, reference):\n    return output == reference\n"
    )
    return path


def grpo_job(place: Path, rows: Path, out: Path, verifier: str = "seven", **values: Any) -> Any:
    task = TaskConfig(
        name="sevens", path=str(rows), verifier=f"{place / 'seven.py'}:{verifier}", allow_custom_code=True
    )
    return make_job(
        place, out, Grpo(**{**SMALL, **values}), sources=(FileData(path=str(rows)),), task=task,
    )  # fmt: skip


def test_reward_rises_and_everything_is_logged(place: Path, rows: Path, tmp_path: Path) -> None:
    job = grpo_job(place, rows, tmp_path / "out", beta=0.001)
    result = run_job(job)
    assert (result.steps, result.samples, result.method) == (12, 48, "grpo")
    rewards = [e["reward"] for e in result.log]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.3
    assert result.log[0]["kl"] == pytest.approx(0, abs=1e-5) and result.log[-1]["kl"] > 0
    assert {"accuracy", "completion_tokens", "clipped", "lr", "loss", "grad_norm", "no_signal"} <= result.log[0].keys()
    assert result.tokens > 0 and "of 48 prompts" in result.notes[0]
    assert (job.out / "config.json").read_bytes() == (job.model / "config.json").read_bytes()
    assert not same(job.model, job.out)


def test_resumes_at_a_boundary(place: Path, rows: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    often = grpo_job(place, rows, tmp_path / "out", checkpoint_minutes=1e-9, batch_size=8)
    with pytest.raises(KeyboardInterrupt):
        run_job(often, stop)
    assert list(often.work.glob("checkpoint-*/whole.json"))
    seen: list[int] = []
    result = run_job(often, lambda done, total: seen.append(done))
    assert seen[0] == 3
    straight = run_job(grpo_job(place, rows, tmp_path / "straight", batch_size=8))
    assert same(tmp_path / "straight", often.out)
    assert [e["reward"] for e in result.log] == [e["reward"] for e in straight.log]


def test_adapters_are_trained_and_merged(place: Path, rows: Path, tmp_path: Path) -> None:
    job = grpo_job(place, rows, tmp_path / "out", lora=Lora(rank=4), samples=16)
    result = run_job(job)
    assert result.log[-1]["kl"] > 0, "the reference is the model without its adapters"
    before, after = tensors(job.model), tensors(job.out)
    assert before.keys() == after.keys() and not same(job.model, job.out)
    assert torch.equal(before["model.embed_tokens.weight"], after["model.embed_tokens.weight"])


def test_a_token_budget_ends_it(place: Path, rows: Path, tmp_path: Path) -> None:
    job = grpo_job(place, rows, tmp_path / "out", tokens=500)
    result = run_job(job)
    assert 500 <= result.tokens < 1000 and result.samples == 4 * result.steps < 48


def test_continuous_batching_samples_too_and_repeats_itself(place: Path, rows: Path, tmp_path: Path) -> None:
    runs = [run_job(grpo_job(place, rows, tmp_path / n, rollouts="continuous", samples=8)) for n in ("a", "b")]
    assert runs[0].steps == 2 and all(0 < e["completion_tokens"] <= 4 for e in runs[0].log)
    assert [e["reward"] for e in runs[0].log] == [e["reward"] for e in runs[1].log]
    assert same(tmp_path / "a", tmp_path / "b") and not same(place / "model", tmp_path / "a")


def test_vllm_that_is_not_there_is_one_message(place: Path, rows: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("vllm"):
        pytest.skip("vllm is installed")
    with pytest.raises(MissingExtra, match="vllm"):
        run_job(grpo_job(place, rows, tmp_path / "out", rollouts="vllm"))


def test_thinking_aloud_is_rewarded_and_learnt(place: Path, rows: Path, tmp_path: Path) -> None:
    """A model that thinks aloud in about half of its answers; all are right, so the form alone makes the difference."""
    answers = ["<think>7</think>7", "7"]
    both = tmp_path / "both.jsonl"
    both.write_text(
        "".join(json.dumps({"question": f"{i}?", "answer": answers[i % 2]}) + "\n" for i in range(100, 196))
    )
    half = Sft(batch_size=8, micro_batch_size=8, learning_rate=1e-2, epochs=8, precision="fp32", max_length=64)
    run_job(make_job(place, tmp_path / "half", half, sources=(FileData(path=str(both)),)))
    job = grpo_job(
        place, rows, tmp_path / "out", answer_format="think", max_new_tokens=20, beta=0.0, learning_rate=3e-3
    )
    result = run_job(job.model_copy(update={"model": tmp_path / "half"}))
    forms = [(e["reward"] - 0.9 * e["accuracy"]) / 0.1 for e in result.log]
    assert 0.1 < forms[0] < 0.9 and result.log[0]["accuracy"] > 0.5
    assert sum(forms[-3:]) / 3 > forms[0] + 0.2


def test_the_reference_is_this_steps_own_input(place: Path, rows: Path, tmp_path: Path) -> None:
    """After surgery a config may still name its parent: TRL would take that one, of the same shape, as its reference."""
    parent = tiny_folder(tmp_path / "parent", seed=3)
    child = tiny_folder(tmp_path / "child")
    named = json.loads((child / "config.json").read_text()) | {"_name_or_path": str(parent)}
    (child / "config.json").write_text(json.dumps(named))
    result = run_job(grpo_job(place, rows, tmp_path / "out", samples=4).model_copy(update={"model": child}))
    assert result.log[0]["kl"] == pytest.approx(0, abs=1e-6)
    stage: Any = SimpleNamespace(model=tiny_model(), job=SimpleNamespace(model=child))
    trainer: Any = SimpleNamespace(
        accelerator=SimpleNamespace(unwrap_model=lambda m: m), is_world_process_zero=lambda: True
    )
    for reference, right in (
        (tiny_model(), True),
        (tiny_model().bfloat16(), True),
        (tiny_model(seed=3), False),
        (None, True),
    ):
        trainer.ref_model = reference
        if right:
            check_reference(trainer, stage)
        else:
            with pytest.raises(TuneError, match="not this step's own input"):
                check_reference(trainer, stage)


def test_never_solved_is_not_called_recovered(place: Path, rows: Path, tmp_path: Path) -> None:
    hard = tmp_path / "hard.jsonl"
    hard.write_text(rows.read_text().replace('"7"', '"77777"'))  # longer than an answer may be
    result = run_job(grpo_job(place, hard, tmp_path / "out", "same", max_new_tokens=2, samples=8))
    assert "never solved a single prompt" in result.notes[1]


def test_errors_leave_one_message(place: Path, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="broken raised ValueError: no such thing"):
        run_job(grpo_job(place, rows, tmp_path / "a", "broken"))
    with pytest.raises(TuneError, match="no prompt"):
        run_job(grpo_job(place, rows, tmp_path / "a", max_length=2))
    with pytest.raises(TuneError, match="needs a task"):
        run_job(make_job(place, tmp_path / "a", Grpo(**SMALL)))
    with pytest.raises(TaskError):
        run_job(make_job(place, tmp_path / "a", Grpo(**SMALL), task=TaskConfig(name="x", path=str(rows))))
    with pytest.raises(ValueError, match="does not divide"):
        Grpo(batch_size=4, group=8, micro_batch_size=5)
    with pytest.raises(ValueError, match="no replay"):
        Grpo(replay=Replay(sources=(FileData(path="x"),)))


def _task(stop: tuple[str, ...] = ()) -> Task:
    def verify(problem: Problem, output: str) -> Verdict:
        found = output.rpartition("####")[2].strip() or None
        return Verdict(found == problem.reference.rpartition("####")[2].strip(), found, "")

    return Task("t", "1", (), verify, stop, 8)


def test_reward_is_nine_tenths_accuracy_and_one_tenth_form() -> None:
    examples = [Example("q", "so #### 4", "t"), Example("r", "so #### 5", "t")]
    reward = reward_of(_task(("Question:",)), examples, Grpo())
    assert reward.form == "hashes"
    texts = ["#### 4", "x", "#### 5", "#### 5 Question: #### 9"]
    assert reward.rewards(texts, index=[0, 0, 0, 1]) == pytest.approx([1.0, 0.0, 0.1, 1.0])
    assert reward.solved == {0: (1, 3), 1: (1, 1)}
    heavy = Reward(_task(), examples, Grpo(accuracy_weight=2.0, format_weight=0.5), "boxed")
    assert heavy.rewards(["#### 4", r"\boxed{4} #### 4"], index=[0, 0]) == [2.0, 2.5]
    with pytest.raises(TuneError, match="verifier of t raised KeyError"):
        Reward(Task("t", "1", (), lambda p, o: {}[o], (), 8), examples, Grpo(), None).rewards(["x"], index=[0])
    endless = Reward(_task(), examples, Grpo().model_copy(update={"accuracy_weight": float("inf")}), None)
    with pytest.raises(NotFinite, match="a reward is no number: nan"):
        endless.rewards(["x"], index=[0])
    with pytest.raises(TuneError, match="accepts none of the data's own answers"):
        reward_of(_task(), [Example("q", "", "t")], Grpo())


@pytest.mark.parametrize(
    ("answers", "form"),
    [
        (["a #### 1", "b #### 2"], "hashes"),
        ([r"thus \boxed{3}", "x"], None),
        ([r"thus \boxed{\frac{1}{2}}"], "boxed"),
        (["<think>hm</think> 4"], "think"),
        (["4"], None),
        ([], None),
    ],
)
def test_form_of_the_datas_own_answers(answers: list[str], form: str | None) -> None:
    assert form_of(answers) == form


def test_a_think_block_may_be_opened_by_the_prompt() -> None:
    reward = Reward(_task(), [Example("q", "so #### 4", "t")], Grpo(), "think")
    texts = ["<think>a</think> #### 4", "a</think> #### 4", "<think></think> #### 4", "<think>a</think>"]
    assert reward.rewards(texts, index=[0] * 4) == pytest.approx([1.0, 0.9, 0.9, 0.0])
    opened = ["Q\n<think>\n"] * 4
    assert reward.rewards(texts, index=[0] * 4, prompts=opened) == pytest.approx([1.0, 1.0, 1.0, 0.0])


def test_hash_of_weights_that_are_spread(tmp_path: Path) -> None:
    """One process of its own, as FSDP2 would have it: the tensors are DTensors."""
    code = (
        "import torch, torch.distributed as dist\n"
        "from torch.distributed.fsdp import fully_shard\n"
        "from torch.distributed.tensor import DTensor, init_device_mesh\n"
        "from prunetune.tune.training.policy import check_reference, tensors_sha\n"
        "from tests.tiny import tiny_model\n"
        f"dist.init_process_group('gloo', init_method='file://{tmp_path}/meet', rank=0, world_size=1)\n"
        "model = tiny_model()\n"
        "fully_shard(model, mesh=init_device_mesh('cpu', (1,)))\n"
        "assert all(isinstance(p, DTensor) for p in model.parameters())\n"
        "assert tensors_sha(model) == tensors_sha(tiny_model()) != tensors_sha(tiny_model(seed=1))\n"
        "dist.destroy_process_group()\n"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_hash_tells_models_apart() -> None:
    assert tensors_sha(tiny_model()) == tensors_sha(tiny_model()) != tensors_sha(tiny_model(seed=1))
    assert tiny_tokenizer().vocab_size == 104
