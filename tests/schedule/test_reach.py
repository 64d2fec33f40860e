"""What an axis holds, against the tensors of transformers' own model; how far it goes, against every count there is."""

from __future__ import annotations

import pytest
import torch
from tests.tiny import EXTRA, tiny_config
from transformers import AutoModelForCausalLM

from prunetune.models.cost import cost_of
from prunetune.models.families import family_of
from prunetune.schedule.reach import VOCABULARY, alone, at, holdings, smallest
from prunetune.schedule.sizes import Sizes
from prunetune.schedule.target import PruneConfig, final_shape


def held_by(family):
    config = tiny_config(family)
    cost = cost_of(config)
    return config, cost, {h.axis: h for h in holdings(cost, family_of(config), config.to_dict(), align=8)}


@pytest.mark.parametrize("family", EXTRA)
def test_an_axis_holds_what_its_tensors_have(family):
    config, cost, held = held_by(family)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    sizes = {n: p.numel() for n, p in model.named_parameters()}
    layers = sum(n for name, n in sizes.items() if name.startswith(f"{family_of(config).layers}."))
    tokens = sum(p.numel() for p in model.parameters() if p.shape[0] == config.vocab_size)
    assert (held["layers"].params, held[VOCABULARY].params) == (layers, tokens)
    width = held["neurons"].units
    ffn = sum(
        p.numel() for n, p in model.named_parameters() if width in p.shape or (2 * width in p.shape and ".mlp." in n)
    )
    assert held["neurons"].params == ffn
    assert at(cost, {}) == sum(sizes.values())


@pytest.mark.parametrize("share", [0.95, 0.8, 0.6, 0.3])
def test_what_an_axis_alone_leaves_is_what_trying_every_count_finds(share):
    _, cost, held = held_by("llama")
    wanted = int(share * cost.params)
    for name, one in held.items():
        fit = [n for n in range(one.least, one.units + 1) if at(cost, {name: n}) <= wanted]
        assert alone(cost, one, wanted) == max(fit, default=None)
    assert smallest(cost, [held["neurons"], held["layers"]]) == at(
        cost, {"layers": 1, "neurons": held["neurons"].least}
    )


def test_what_no_stock_model_has_is_said():
    _, _, held = held_by("olmo2")
    assert "all heads together" in held["heads"].stays and held["neurons"].stays is None
    config = tiny_config("llama", num_attention_heads=4, num_key_value_heads=1)
    found = {h.axis: h for h in holdings(cost_of(config), family_of(config), config.to_dict(), align=8)}
    assert found["heads"].stays == "there is one only" and found["query_heads"].stays is None


@pytest.mark.parametrize(("layers", "width", "left"), [(4, 768, 48), (7, 768, 48), (8, 768, 192), (30, 1536, 384)])
def test_layers_go_where_too_few_neurons_would_stay(layers: int, width: int, left: int) -> None:
    """Of few layers each is much of the model: they stay longer (docs/log.md)."""
    sizes = Sizes(depth=layers, width=width, base=1_000_000, layer=300_000, neuron=768, hidden=256)
    at = sizes.params(layers, left)
    assert final_shape(PruneConfig(target=at), sizes) == (layers, left)
    assert final_shape(PruneConfig(target=at - 1), sizes)[0] == layers - 1
