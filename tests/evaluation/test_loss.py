"""Loss on held-out text against a direct computation."""

from __future__ import annotations

import math

import pytest
import torch
from tests.tiny import tiny_model, tiny_tokenizer

from prunetune.data.stream import Example
from prunetune.errors import DataError
from prunetune.evaluation.loss import perplexity, reasoning_loss
from prunetune.models.prompt import PromptFormat, encode_example

FMT = PromptFormat()
EXAMPLES = [Example(f"What is {i}?", "steps " * i + f"#### {i}", "t") for i in range(1, 6)]


def direct(ids: list[int], first: int) -> list[float]:
    with torch.inference_mode():
        logits = tiny_model("llama")(input_ids=torch.tensor([ids])).logits[0]
    return [float(-logits[i - 1].log_softmax(-1)[ids[i]]) for i in range(first, len(ids))]


def test_reasoning_loss_is_the_mean_over_answer_tokens() -> None:
    rows = [encode_example(tiny_tokenizer(), e.question, e.answer, FMT, 64) for e in EXAMPLES]
    each = [direct(r.input_ids, r.prompt_length) for r in rows]
    mean = sum(map(sum, each)) / sum(map(len, each))
    value, stderr = reasoning_loss(tiny_model("llama"), tiny_tokenizer(), EXAMPLES, FMT, 64)
    assert value == pytest.approx(mean, rel=1e-5)
    spread = sum((sum(e) - mean * len(e)) ** 2 for e in each) * 5 / 4
    assert stderr == pytest.approx(math.sqrt(spread) / sum(map(len, each)), rel=1e-4)


def test_the_batches_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    together = reasoning_loss(tiny_model("llama"), tiny_tokenizer(), EXAMPLES, FMT, 64)
    monkeypatch.setattr("prunetune.evaluation.loss.LOGIT_ELEMENTS", 1)
    assert reasoning_loss(tiny_model("llama"), tiny_tokenizer(), EXAMPLES, FMT, 64) == pytest.approx(together, rel=1e-5)


def test_an_answer_beyond_the_length_limit_is_an_error() -> None:
    with pytest.raises(DataError, match="length limit"):
        reasoning_loss(tiny_model("llama"), tiny_tokenizer(), EXAMPLES, FMT, 5)


def test_perplexity_of_a_text() -> None:
    text, tokenizer = "The quick brown fox jumps over the lazy dog. " * 3, tiny_tokenizer()
    ids = tokenizer.encode(text)
    windows = [[1, *ids[i : i + 31]] for i in range(0, len(ids), 31)]
    nats = [x for w in windows for x in direct(w, 1)]
    result = perplexity(tiny_model("llama"), tokenizer, text, window=32)
    assert result.tokens == len(ids) == len(nats)
    assert result.perplexity == pytest.approx(math.exp(sum(nats) / len(nats)), rel=1e-4)
    assert result.bits_per_byte == pytest.approx(sum(nats) / math.log(2) / len(text), rel=1e-4)
    assert perplexity(tiny_model("llama"), tokenizer, text, window=32, limit=2).tokens == 62
    with pytest.raises(DataError, match="too short"):
        perplexity(tiny_model("llama"), tokenizer, "")
