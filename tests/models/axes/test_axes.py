"""The registry of axes: what each says of a config is what transformers builds from it, for every family."""

from __future__ import annotations

import pytest
import torch
from tests.tiny import tiny_config
from transformers import AutoModelForCausalLM

from prunetune.errors import UnknownName
from prunetune.models.axes import AXES, axis_of, resized, shape_of
from prunetune.models.families import FAMILIES, family_of, layer_of

FEWER = {"layers": 2, "neurons": 40, "heads": 1, "query_heads": 1, "experts": 4}


@pytest.mark.parametrize("name", [a for a in AXES if a != "layers"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_tensors_that_lose_units_are_those_whose_size_follows_the_config(family: str, name: str) -> None:
    """By the shapes of two models on the meta device: those slices change, by that many rows, and nothing else does."""
    if "heads" in name and FAMILIES[family].heads_stay:
        pytest.skip(FAMILIES[family].heads_stay)
    if name == "experts" and FAMILIES[family].experts is None:
        assert axis_of(name).units(tiny_config(family).to_dict()) == 0
        return
    biases = {"mlp_bias": True, "attention_bias": True} if family in ("llama", "smollm3") else {}
    config = tiny_config(family, **biases)
    values, axis = config.to_dict(), axis_of(name)
    shape = shape_of(values)
    fewer = tiny_config(family, **biases)
    for key, value in resized(values, {name: FEWER[name]}).items():
        setattr(fewer, key, value)
    assert axis.units(fewer.to_dict()) == FEWER[name]
    with torch.device("meta"):
        whole, cut = (AutoModelForCausalLM.from_config(c).state_dict() for c in (config, fewer))
    slices = {s.suffix: s for s in axis.slices(family_of(config), shape)}
    for tensor, new in cut.items():
        found = layer_of(family_of(config), tensor)
        old = whole[tensor].shape
        if found is None or found[1] not in slices:
            assert new.shape == old, tensor
            continue
        one = slices[found[1]]
        rows = one.rows(old[one.dim], shape[name] if one.each else axis.places(shape))
        assert rows is not None
        left = FEWER[name] if one.each else axis.places({**shape, name: FEWER[name]})
        assert new.shape[one.dim] == left * sum(rows[0]) + rows[1], tensor
        assert old.numel() // old[one.dim] == new.numel() // new.shape[one.dim], tensor
    if axis.readout is not None and not (name == "neurons" and FAMILIES[family].experts):
        weight = f"{FAMILIES[family].layers}.0.{axis.readout(family_of(config))}.weight"
        assert slices[layer_of(family_of(config), weight)[1]].dim == 1  # type: ignore[index]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_shape_is_what_the_config_says(family: str) -> None:
    values = tiny_config(family).to_dict()
    shape = shape_of(values)
    assert {name: shape[name] for name in ("layers", "neurons")} == {"layers": 4, "neurons": 48}
    assert set(shape) == set(AXES) - ({"experts"} if FAMILIES[family].experts is None else set())
    assert shape.get("experts") == (6 if FAMILIES[family].experts else None)
    assert resized(values, shape) == {}


def test_an_axis_that_nobody_has_is_named() -> None:
    with pytest.raises(UnknownName, match="neurons"):
        axis_of("neuron")
