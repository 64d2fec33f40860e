"""One prune of a model object: each stage gives what the functions behind it give, and the smaller model is a stock one."""

from __future__ import annotations

import pytest
import torch
from tests.tiny import DENSE, tiny_model, tiny_tokenizer

import prunetune
from prunetune.errors import DataError, OutOfReach, PlanError
from prunetune.pruning.apply import apply_in_memory
from prunetune.pruning.compensate import calibration_and_held_out
from prunetune.pruning.compensate import compensate as fold
from prunetune.pruning.scores import make_batches
from prunetune.pruning.scores import score as score_by

ROWS = [{"question": f"{i}+{i % 7}", "answer": f"{i}+{i % 7}={i + i % 7}"} for i in range(40, 72)]


@pytest.mark.parametrize("family", DENSE)
def test_the_stages_on_a_model_object(family):
    model, tokenizer = tiny_model(family), tiny_tokenizer()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    batches = prunetune.batches(tokenizer, ROWS)
    scores = prunetune.score(model, batches)
    torch.testing.assert_close(scores.neurons, score_by(model, batches, neuron_criterion="greedy").neurons)
    plan = prunetune.plan(scores, neurons=16)
    patch = prunetune.compensate(model, plan, batches)
    small = prunetune.apply(model, plan, patch)
    assert small.config.intermediate_size == 32 and type(small) is type(model)
    rows = [[int(t) for t, m in zip(i, k, strict=True) if m] for b in batches for i, k in zip(*b.values(), strict=True)]
    fitted, held_out = (make_batches(part, 0) for part in calibration_and_held_out(rows))
    oracle = apply_in_memory(model, plan, fold(model, plan, fitted, held_out=held_out).tensors)
    with torch.no_grad():
        torch.testing.assert_close(small(**batches[0]).logits, oracle(**batches[0]).logits)
        assert not torch.allclose(small(**batches[0]).logits, prunetune.apply(model, plan)(**batches[0]).logits)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_a_tokenizers_own_batches_will_do():
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    batch = tokenizer(["1+1=2", "12+13=25"], return_tensors="pt", padding=True)
    scores = prunetune.score(model, [batch], criterion="contribution", layer_criterion="cosine")
    assert scores.tokens == len("1+1=2") + len("12+13=25") and scores.layer_criterion == "cosine"


def test_mistakes_are_told():
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    for row in ({"question": "1+1"}, {"question": "1+1", "answer": None}, {"question": "", "answer": "2"}):
        with pytest.raises(DataError, match=r"row 2"):
            prunetune.batches(tokenizer, [ROWS[0], row])
    batches = prunetune.batches(tokenizer, ROWS)
    scores = prunetune.score(model, batches, criterion="contribution")
    with pytest.raises(OutOfReach):
        prunetune.plan(scores, neurons=48)
    patch = prunetune.compensate(model, prunetune.plan(scores, neurons=8), batches)
    with pytest.raises(PlanError, match="another plan"):
        prunetune.apply(model, prunetune.plan(scores, neurons=8, layers=1), patch)
