"""The experiment with narrower residual streams: a whole rotation changes nothing, a part of it is a stock model."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

AT = Path(__file__).parents[2] / "studies" / "14-axes" / "hidden.py"


@pytest.fixture(scope="module")
def hidden() -> Any:
    spec = importlib.util.spec_from_file_location("hidden_axis", AT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["hidden_axis"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=64, tie_word_embeddings=True,
    )  # fmt: skip
    made = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for name, weight in made.named_parameters():
        if "norm" in name:
            weight.uniform_(0.5, 1.5)
    return made


def test_all_channels_in_another_basis_are_the_same_function(hidden: Any, model: Any) -> None:
    rows = [torch.randint(1, 64, (20,)).tolist() for _ in range(8)]
    ids = torch.randint(1, 64, (2, 10))
    assert torch.allclose(hidden.narrowed(model, rows, 32)(ids).logits, model(ids).logits, atol=1e-5)


def test_fewer_channels_are_a_stock_model_of_the_size_that_was_told(hidden: Any, model: Any, tmp_path: Path) -> None:
    rows = [torch.randint(1, 64, (20,)).tolist() for _ in range(8)]
    kept = hidden.kept_for(model.config, most=25_000)
    small = hidden.narrowed(model, rows, kept)
    assert kept == 24 and small.config.hidden_size == 24 and small.config.head_dim == 8
    assert sum(p.numel() for p in small.parameters()) == 24 * hidden.params_a_channel(model.config)
    small.save_pretrained(tmp_path)
    ids = torch.randint(1, 64, (2, 10))
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.allclose(again(ids).logits, small(ids).logits, atol=1e-6)


def test_the_axes_that_stay_hold_what_the_text_uses(hidden: Any, model: Any) -> None:
    """The stream lies in eight channels: after the rotation eight hold all of it, and the loss of the rest is nothing."""
    torch.manual_seed(1)
    basis = torch.linalg.qr(torch.randn(32, 32))[0][:, :8]
    narrow = LlamaForCausalLM(model.config).eval().requires_grad_(False)
    for name, weight in narrow.named_parameters():
        if name.endswith(("embed_tokens.weight", "o_proj.weight", "down_proj.weight")):
            flat = weight if "embed" in name else weight.T
            flat.copy_(50 * flat @ basis @ basis.T)  # large beside the norm's epsilon
    ids = torch.randint(1, 64, (2, 10))
    small = hidden.narrowed(narrow, [torch.randint(1, 64, (20,)).tolist() for _ in range(8)], 8)
    assert torch.allclose(small(ids).logits, narrow(ids).logits, atol=1e-4)
