"""The embedded demo: problems, splits, tokenizer, and the model folder that ships inside the package."""

from __future__ import annotations

import functools
import json
import re
import string
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from prunetune.data.demo.problems import STEPS, TEST_PART, distinct, problems, split_of
from prunetune.data.demo.tokenizer import VOCAB_SIZE, byte_tokenizer
from prunetune.errors import DataError, UnknownName
from prunetune.evaluation.evaluate import evaluate
from prunetune.models.folders import DEMO_MODEL
from prunetune.models.prompt import PromptFormat, encode_example
from prunetune.tasks.registry import TaskConfig, build_task


@pytest.fixture(scope="module")
def shipped() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(DEMO_MODEL)


def value_of(question: str) -> int:
    """The question's value by an independent reading: Python's own precedence agrees, as `*` comes first only."""
    first, *rest = re.findall(r"^\d+(?:\*\d+)?|[+-]\d+", question)
    product = 1
    for factor in first.split("*"):
        product *= int(factor)
    return product + sum(int(term) for term in rest)


def test_solutions_are_right_line_by_line() -> None:
    for question, solution in problems(2000, 1, "train") + problems(500, 1, "test"):
        *steps, last = solution.split("\n")
        assert len(steps) == STEPS
        for step in steps:
            left, right = step.split("=")
            assert value_of(left) == int(right) >= 0
        assert last == f"#### {value_of(question)}"
        # The steps use the question's own terms in order: the signs and digits behind the first operand.
        terms = re.findall(r"[+*-]\d+", question)
        assert [re.search(r"[+*-]\d+(?==)", s)[0] for s in steps] == terms  # type: ignore[index]


def test_splits_are_disjoint_and_a_pure_function_of_the_question() -> None:
    train = {q for seed in (0, 1) for q, _ in problems(20_000, seed, "train")}
    test = {q for seed in (0, 1) for q, _ in problems(5_000, seed, "test")}
    assert not train & test
    assert {split_of(q) for q in train} == {"train"}
    assert {split_of(q) for q in test} == {"test"}
    assert len(train) > 39_000  # two seeds draw nearly disjoint problems
    questions = [q for q, _ in problems(3000, 5, "train")] + [q for q, _ in problems(1000, 5, "test")]
    assert len(set(questions)) == 4000


def test_the_split_takes_its_share() -> None:
    every = [f"{a}+{b}+{c}+1-1" for a in range(10, 100) for b in range(1, 10) for c in range(1, 10)]
    share = sum(split_of(q) == "test" for q in every) / len(every)
    assert abs(share - 1 / TEST_PART) < 0.02


def test_more_than_a_million_problems_in_the_test_split_alone() -> None:
    @functools.cache
    def chains(value: int, left: int) -> int:
        """Chains of `left` further terms that never fall below zero."""
        if left == 0:
            return 1
        return sum(chains(v, left - 1) for d in range(1, 10) for v in (value + d, value - d) if v >= 0)

    from_numbers = sum(chains(v, STEPS) for v in range(10, 100))
    from_products = sum(chains(a * b, STEPS - 1) for a in range(2, 10) for b in range(2, 10))
    assert distinct() == from_numbers + from_products
    assert distinct() // TEST_PART > 1_000_000


def test_problems_are_the_same_on_every_machine() -> None:
    expected = [("2*8+4+5-7", "2*8=16\n16+4=20\n20+5=25\n25-7=18\n#### 18")]
    assert problems(1, 0, "train") == expected
    assert problems(300, 7, "test")[:100] == problems(100, 7, "test")
    assert problems(50, 7, "test") != problems(50, 8, "test")
    code = "from prunetune.data.demo.problems import problems; print(problems(1, 0, 'train'))"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "5"}
    )
    assert out.stdout.strip() == repr(expected)


def test_impossible_requests_are_refused() -> None:
    with pytest.raises(UnknownName, match="train"):
        problems(1, 0, "validation")  # type: ignore[arg-type]
    for n in (-1, 10**7):
        with pytest.raises(DataError, match="distinct"):
            problems(n, 0, "train")


def test_rows_are_short(shipped: PreTrainedTokenizerFast) -> None:
    rows = [encode_example(shipped, q, a, PromptFormat(), 96) for q, a in problems(2000, 3, "train")]
    assert not any(r.truncated for r in rows)
    assert max(len(r.input_ids) for r in rows) <= 80
    assert all(r.input_ids[-1] == shipped.eos_token_id for r in rows)


def test_tokenizer_round_trips_and_takes_digits_one_by_one(shipped: PreTrainedTokenizerFast) -> None:
    for text in [string.printable, "12345 67", "Question: 7*8-9\nAnswer: 7*8=56", " two  spaces ", "Zoë ≤ 日本 🙂"]:
        ids = shipped.encode(text)
        assert shipped.decode(ids) == text
        assert shipped.unk_token_id is None or shipped.unk_token_id not in ids
    printable = [chr(i) for i in range(32, 127)]
    assert len({shipped.encode(c)[0] for c in printable}) == len(printable)
    assert all(len(shipped.encode(c)) == 1 for c in printable)
    assert shipped.tokenize("9081") == ["9", "0", "8", "1"]


def test_special_tokens_are_three_and_end_is_not_padding(shipped: PreTrainedTokenizerFast) -> None:
    assert (shipped.pad_token_id, shipped.bos_token_id, shipped.eos_token_id) == (0, 1, 2)
    assert len(shipped) <= VOCAB_SIZE
    assert shipped.encode("a") == shipped.encode("a", add_special_tokens=False)  # adds no BOS of its own


def test_shipped_tokenizer_is_the_one_that_the_source_makes(shipped: PreTrainedTokenizerFast) -> None:
    assert byte_tokenizer().get_vocab() == shipped.get_vocab()
    text = "Question: 12+3\nAnswer:"
    assert byte_tokenizer().encode(text) == shipped.encode(text)


def test_folder_is_plain_and_small() -> None:
    names = {p.name for p in DEMO_MODEL.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "README.md"} <= names
    assert sum(p.stat().st_size for p in DEMO_MODEL.iterdir()) < 5_000_000
    config = json.loads((DEMO_MODEL / "config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == "llama"
    assert config["vocab_size"] == VOCAB_SIZE
    generation = json.loads((DEMO_MODEL / "generation_config.json").read_text(encoding="utf-8"))
    assert generation["eos_token_id"] == config["eos_token_id"] == 2


def test_ffn_holds_enough_to_reach_the_demo_target() -> None:
    model = AutoModelForCausalLM.from_pretrained(DEMO_MODEL)
    assert model.dtype == torch.bfloat16
    neurons = sum(p.numel() for n, p in model.named_parameters() if ".mlp." in n)
    assert neurons / model.num_parameters() > 0.7


def test_demo_model_solves_fresh_problems(shipped: PreTrainedTokenizerFast) -> None:
    model = AutoModelForCausalLM.from_pretrained(DEMO_MODEL).eval()
    task = build_task(TaskConfig(name="demo", n=64, seed=99))
    result = evaluate(model, shipped, task, fmt=PromptFormat(), out=None)
    assert result.value >= 0.95
    assert result.truncated <= 1


def test_card_states_command_and_accuracy() -> None:
    card = (DEMO_MODEL / "README.md").read_text(encoding="utf-8")
    assert "python studies/train/train_demo_model.py" in card
    percent = re.search(r"\*\*([\d.]+)%\*\*", card)
    assert percent is not None
    assert float(percent[1]) >= 95
