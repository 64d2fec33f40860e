"""Key/value groups and query heads that go: equal to zeroed columns of `o_proj`, for every family, in memory and on disk."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import DENSE, down_of, layers_of, o_of, tiny_config, tiny_folder, tiny_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from prunetune.common.files import read_json
from prunetune.errors import PlanError, UnsupportedModel
from prunetune.models.cost import cost_of
from prunetune.models.families import FAMILIES
from prunetune.models.folders import model_sha
from prunetune.pruning.apply import apply_in_memory, apply_on_disk
from prunetune.pruning.plan import PrunePlan

MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "gemma2-bias": ("gemma2", {"attention_bias": True}),
    "qwen3-bias": ("qwen3", {"attention_bias": True}),
    "phi3-partial": ("phi3", {"partial_rotary_factor": 0.5}),
}
CUT = [name for name in DENSE if not FAMILIES[name].heads_stay]
CASES = {**{f: (f, dict[str, Any]()) for f in CUT}, **MORE}
SIZES = {"heads": 4, "query_heads": 2}
GROUPS = {"heads": {i: ((i + 1) % 4, 3) if (i + 1) % 4 < 3 else (0, 3) for i in range(4)}}
QUERIES = {"query_heads": {i: tuple(2 * g + (g + i) % 2 for g in range(4)) for i in range(4)}}
BOTH = {
    **GROUPS,
    "query_heads": {
        i: tuple(q for g, q in enumerate(QUERIES["query_heads"][i]) if g not in GROUPS["heads"][i]) for i in range(4)
    },
}
DROPS = {"heads": GROUPS, "query_heads": QUERIES, "both": BOTH}


def model_of(case: str, **changes: Any) -> PreTrainedModel:
    """Four groups of two query heads each, of width 8 where the family has a width of its own, else of width 4."""
    family, more = CASES[case]
    return tiny_model(family, num_attention_heads=8, num_key_value_heads=4, **more, **changes)


def plan_of(drop: dict[str, Any], *, every: bool = False, sha: str = "") -> PrunePlan:
    """`every`: neurons and a layer go too."""
    others: dict[str, Any] = {}
    if every:
        drop = {name: {i: units for i, units in layers.items() if i != 1} for name, layers in drop.items()}
        others = {"drop_layers": (1,), "drop_neurons": {i: tuple(range(i, i + 16)) for i in (0, 2, 3)}}
    return PrunePlan(model_sha=sha, depth=4, width=48, sizes=SIZES, drop=drop, **others)


def oracle(model: PreTrainedModel, plan: PrunePlan) -> PreTrainedModel:
    """The whole model with the columns of what goes at zero; layers that go do nothing."""
    masked = copy.deepcopy(model)
    for i, layer in enumerate(layers_of(masked)):
        if i in plan.drop_layers:
            layer.forward = lambda hidden_states, *args, **kwargs: hidden_states
            continue
        for readout, blocks in ((down_of(masked, i), 48), (o_of(masked, i), 8)):
            columns = readout.weight.data.unflatten(1, (blocks, -1))
            if blocks == 48:
                columns[:, list(plan.drop_neurons.get(i, ()))] = 0
            else:
                gone = set(range(8)) - set(plan.kept("query_heads", i))
                gone |= {q for q in range(8) if q // 2 in plan.drops("heads").get(i, ())}
                columns[:, sorted(gone)] = 0
    return masked


def logits(model: PreTrainedModel, places: int = 20) -> torch.Tensor:
    """Past the sliding window of 8; one row is padded on the left."""
    ids = torch.randint(3, 100, (2, places), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids, attention_mask=mask).logits
    return found[mask.bool()]


@pytest.mark.parametrize("every", [False, True], ids=["alone", "with neurons and a layer"])
@pytest.mark.parametrize("what", DROPS)
@pytest.mark.parametrize("case", CASES)
def test_logits_equal_the_oracle(case: str, what: str, every: bool) -> None:
    model, plan = model_of(case), plan_of(DROPS[what], every=every)
    expected = logits(oracle(model, plan))
    pruned = apply_in_memory(model, plan)
    torch.testing.assert_close(logits(pruned), expected, atol=1e-5, rtol=1e-5)
    assert (logits(model) - expected).abs().max() > 1e-3  # else the oracle shows nothing
    config = pruned.config
    assert (config.num_key_value_heads, config.num_attention_heads) == {
        "heads": (2, 4), "query_heads": (4, 4), "both": (2, 2),
    }[what]  # fmt: skip
    assert config.head_dim == (getattr(model.config, "head_dim", None) or 4)
    if hasattr(config, "query_pre_attn_scalar"):
        assert config.query_pre_attn_scalar == model.config.query_pre_attn_scalar
    now, then = (m.model.layers[0].self_attn.scaling for m in (pruned, model))
    assert now == then


@pytest.mark.parametrize("case", CASES)
def test_disk_equals_memory_and_plain_transformers_goes_on_with_and_without_a_cache(case: str, tmp_path: Path) -> None:
    model = model_of(case)
    model.save_pretrained(tmp_path / "source", max_shard_size="30KB")
    plan = plan_of(BOTH, every=True, sha=model_sha(tmp_path / "source"))
    apply_on_disk(tmp_path / "source", plan, tmp_path / "disk")
    memory = apply_in_memory(model, plan)
    disk = AutoModelForCausalLM.from_pretrained(tmp_path / "disk", dtype="auto").eval()
    a, b = memory.state_dict(), disk.state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert torch.equal(logits(disk), logits(memory))
    values = read_json(tmp_path / "disk" / "config.json")
    assert cost_of(values).params == disk.num_parameters()
    whole = model.config.to_dict()
    assert cost_of(whole, shape=plan.new_shape).params == disk.num_parameters()
    ids = torch.randint(3, 100, (2, 5), generator=torch.Generator().manual_seed(1))
    options: dict[str, Any] = {"max_new_tokens": 20, "min_new_tokens": 20, "do_sample": False}
    cached = disk.generate(ids, attention_mask=torch.ones_like(ids), use_cache=True, **options)
    assert torch.equal(cached, disk.generate(ids, attention_mask=torch.ones_like(ids), use_cache=False, **options))


@pytest.mark.parametrize("family", CUT)
def test_what_a_config_class_refuses_is_refused_before_the_cut(family: str) -> None:
    """Three heads do not divide a hidden size of 32: some classes mind, though the heads' width is given."""
    config = tiny_config(family, num_attention_heads=4, num_key_value_heads=4)
    try:
        type(config)(**{**config.to_dict(), "num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 8})
        refused = False
    except Exception:  # of the class: any
        refused = True
    assert FAMILIES[family].even_heads == refused
    model = tiny_model(family, num_attention_heads=4, num_key_value_heads=4)
    drop = {"heads": {i: (0,) for i in range(4)}}
    plan = PrunePlan(model_sha="", depth=4, width=48, sizes={"heads": 4, "query_heads": 1}, drop=drop)
    if refused:
        with pytest.raises(UnsupportedModel, match="multiple of the attention heads"):
            apply_in_memory(model, plan)
    else:
        torch.testing.assert_close(
            logits(apply_in_memory(model, plan)), logits(_without_first(model)), atol=1e-5, rtol=1e-5
        )


def _without_first(model: PreTrainedModel) -> PreTrainedModel:
    masked = copy.deepcopy(model)
    for i in range(len(layers_of(masked))):
        o_of(masked, i).weight.data.unflatten(1, (4, -1))[:, 0] = 0
    return masked


@pytest.mark.parametrize("family", [f for f in DENSE if FAMILIES[f].heads_stay])
def test_heads_that_cannot_go_alone_are_refused(family: str) -> None:
    model = tiny_model(family)
    groups = model.config.to_dict().get("num_key_value_heads") or 4
    drop, sizes = {"heads": {i: (0,) for i in range(4)}}, {"heads": groups, "query_heads": 4 // groups}
    with pytest.raises(UnsupportedModel, match="head"):
        apply_in_memory(model, PrunePlan(model_sha="", depth=4, width=48, sizes=sizes, drop=drop))


def test_long_rope_of_phi3_has_as_many_factors_as_its_class_expects() -> None:
    """The class takes hidden size / heads for the width of a head, whatever the config says."""
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "rope_theta": 10000.0}
    model = tiny_model("phi3", rope_parameters=rope, original_max_position_embeddings=64)
    plan = PrunePlan(
        model_sha="",
        depth=4,
        width=48,
        sizes={"heads": 2, "query_heads": 2},
        drop={"heads": {i: (0,) for i in range(4)}},
    )
    with pytest.raises(UnsupportedModel, match="factors of LongRoPE"):
        apply_in_memory(model, plan)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"drop": {"heads": {0: (0,)}}, "sizes": SIZES}, "same number of heads"),
        ({"drop": {"heads": {i: (0,) for i in range(4)}}}, "does not say how many"),
        ({"drop": {"heads": {i: (0, 1, 2, 3) for i in range(4)}}, "sizes": SIZES}, "no key/value group"),
        ({"drop": {"heads": {i: (4,) for i in range(4)}}, "sizes": SIZES}, "outside 0..3"),
        ({"drop": {"query_heads": {i: (0,) for i in range(4)}}, "sizes": SIZES}, "in each of its heads"),
        ({"drop": {"query_heads": {i: (0, 1) for i in range(4)}}, "sizes": SIZES}, "same number of query_heads"),
        ({"drop": {"query_heads": {i: tuple(range(8)) for i in range(4)}}, "sizes": SIZES}, "no query head"),
        ({"drop": {**GROUPS, "query_heads": {i: (6,) for i in range(4)}}, "sizes": SIZES}, "goes as a whole"),
        ({"drop": {"heads": {"01": (1,)}}, "sizes": SIZES}, "not the number of a layer"),
    ],
)
def test_plans_that_make_no_sense_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        PrunePlan(model_sha="", depth=4, width=48, **changes)


def test_a_plan_with_heads_round_trips_and_fits_one_model_alone(tmp_path: Path) -> None:
    plan = plan_of(BOTH, every=True)
    plan.write(tmp_path / "plan.json")
    assert PrunePlan.read(tmp_path / "plan.json") == plan
    assert plan.new_shape == {"layers": 3, "neurons": 32, "heads": 2, "query_heads": 1}
    assert plan.sha != plan_of(GROUPS, every=True).sha
    with pytest.raises(PlanError, match="another number of key/value groups"):
        apply_in_memory(tiny_model("llama"), plan)
    folder = tiny_folder(tmp_path / "model", "llama", num_attention_heads=8, num_key_value_heads=4)
    apply_on_disk(folder, plan_of(BOTH, every=True, sha=model_sha(folder)), tmp_path / "out")
