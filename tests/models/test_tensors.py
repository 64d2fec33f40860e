"""The table of a family's tensors against transformers' own classes, and against the formula of the cost."""

from __future__ import annotations

import math

import pytest
import torch
from tests.tiny import EXTRA, tiny_config
from transformers import AutoModelForCausalLM

from prunetune.models.cost import params
from prunetune.models.tensors import expected_tensors

CASES = {
    **{name: (name, {}) for name in EXTRA},
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}),
    "qwen2-tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3-biases": ("qwen3", {"attention_bias": True}),
    "gemma2-biases": ("gemma2", {"attention_bias": True}),
    "smollm3-biases": ("smollm3", {"attention_bias": True, "mlp_bias": True}),
    "one-head": ("llama", {"num_key_value_heads": 1, "head_dim": 16}),
}


@pytest.mark.parametrize("case", CASES)
def test_names_and_shapes_are_those_of_the_class(case: str) -> None:
    family, changes = CASES[case]
    config = tiny_config(family, **changes)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    wanted = {name: tuple(p.shape) for name, p in model.named_parameters()}
    found = expected_tensors(config.to_dict())
    assert found == wanted
    assert sum(map(math.prod, found.values())) == params(config)
