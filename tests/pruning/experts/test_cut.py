"""Experts, and neurons inside them, that go: equal to a router that never picks them, in memory and on disk."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.tiny import MIXTURES, layers_of, tiny_folder, tiny_model
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, PreTrainedModel

from prunetune.common.files import read_json, write_json
from prunetune.errors import BadCheckpoint, PlanError, UnsupportedModel
from prunetune.models.cost import cost_of
from prunetune.models.families import FAMILIES
from prunetune.models.folders import model_sha
from prunetune.models.folders.check import check_model_folder
from prunetune.pruning.apply import apply_in_memory, apply_on_disk
from prunetune.pruning.plan import PrunePlan

E, WIDTH = 6, 48
GONE = {i: tuple(sorted({i, (i + 3) % E})) for i in range(4)}
"""Two experts of every layer."""
MANY = {i: tuple(e for e in range(E) if e not in (i, i + 1)) for i in range(4)}
"""Four of them, so that fewer stay than a token is routed to."""


def neurons(layer: int, gone: tuple[int, ...] = ()) -> tuple[int, ...]:
    """Sixteen neurons of each expert that stays, others in each."""
    here = (e for e in range(E) if e not in gone)
    return tuple(e * WIDTH + j for e in here for j in range((e + layer) % 8, (e + layer) % 8 + 32, 2))


def plan_of(what: str, sha: str = "") -> PrunePlan:
    """`experts`, `many` (experts), `neurons` inside them, or `all`: both, and a layer."""
    experts = {"experts": GONE, "many": MANY, "all": {i: g for i, g in GONE.items() if i != 1}}.get(what, {})
    values: dict[str, Any] = {"drop": {"experts": experts}} if experts else {}
    if what in ("neurons", "all"):
        layers = [i for i in range(4) if what == "neurons" or i != 1]
        values["drop_neurons"] = {i: neurons(i, experts.get(i, ())) for i in layers}
    if what == "all":
        values["drop_layers"] = (1,)
    return PrunePlan(model_sha=sha, depth=4, width=WIDTH, sizes={"experts": E}, **values)


def experts_of(layer: Any, family: str) -> tuple[Any, Any]:
    """(router, experts) of a decoder layer."""
    found = FAMILIES[family].experts
    assert found is not None
    return layer.get_submodule(found.router), layer.get_submodule(found.module)


class Restricted(torch.nn.Module):
    """A family's own router, whose logits are -inf for what goes, and which picks no more than stay."""

    def __init__(self, router: Any, gone: tuple[int, ...]) -> None:
        super().__init__()
        self.router = router
        router.top_k = min(router.top_k, E - len(gone))
        self.mask = torch.zeros(E)
        self.mask[list(gone)] = -torch.inf

    def forward(self, hidden: torch.Tensor) -> Any:
        with Masked(self.mask):
            return self.router(hidden)


class Masked(TorchFunctionMode):
    """Adds a mask to what linear layers give."""

    def __init__(self, mask: torch.Tensor) -> None:
        super().__init__()
        self.mask = mask

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        return found + self.mask if func is torch.nn.functional.linear else found


def oracle(model: PreTrainedModel, plan: PrunePlan) -> PreTrainedModel:
    """The whole model: routers never pick what goes, down projections lack the neurons, layers that go do nothing."""
    masked, family = copy.deepcopy(model), model.config.model_type
    found = FAMILIES[family].experts
    assert found is not None
    for i, layer in enumerate(layers_of(masked)):
        if i in plan.drop_layers:
            layer.forward = lambda hidden_states, *args, **kwargs: hidden_states
            continue
        router, experts = experts_of(layer, family)
        block = layer.get_submodule(found.router.rpartition(".")[0])
        setattr(block, found.router.rpartition(".")[2], Restricted(router, plan.drops("experts").get(i, ())))
        for n in plan.drop_neurons.get(i, ()):
            down = experts.down_proj.data[n // WIDTH]
            (down if found.transposed else down.T)[n % WIDTH] = 0
    return masked


def logits(model: PreTrainedModel, places: int = 20) -> torch.Tensor:
    """Past the sliding window of 8; one row is padded on the left."""
    ids = torch.randint(3, 100, (2, places), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids, attention_mask=mask).logits
    return found[mask.bool()]


def generated(model: PreTrainedModel, *, cache: bool) -> torch.Tensor:
    ids = torch.randint(3, 100, (2, 5), generator=torch.Generator().manual_seed(1))
    options: dict[str, Any] = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "use_cache": cache}
    found: torch.Tensor = model.generate(ids, attention_mask=torch.ones_like(ids), **options)  # type: ignore[operator]
    return found


@pytest.mark.parametrize("what", ["experts", "many", "neurons", "all"])
@pytest.mark.parametrize("family", MIXTURES)
def test_logits_equal_the_oracle_with_a_cache_and_without(family: str, what: str) -> None:
    model, plan = tiny_model(family), plan_of(what)
    masked = oracle(model, plan)
    expected = logits(masked)
    pruned = apply_in_memory(model, plan)
    torch.testing.assert_close(logits(pruned), expected, atol=1e-5, rtol=1e-5)
    assert (logits(model) - expected).abs().max() > 1e-3  # else the oracle shows nothing
    for cache in (True, False):
        if what != "all":  # a layer that does nothing leaves its place in the oracle's cache empty
            assert torch.equal(generated(pruned, cache=cache), generated(masked, cache=cache))
    config = pruned.config
    assert config.num_experts_per_tok == (2 if what == "many" else model.config.num_experts_per_tok)
    assert config.num_experts == {"experts": 4, "many": 2, "neurons": 6, "all": 4}[what]
    assert cost_of(config).params == pruned.num_parameters()
    assert cost_of(model.config.to_dict(), shape=plan.new_shape).params == pruned.num_parameters()


LAYOUTS = ["as transformers saves", "one tensor for all"]


def folder_of(path: Path, family: str, layout: str, *, shards: bool) -> Path:
    """A checkpoint with one tensor an expert (as transformers saves all but GPT-OSS), or one for all of them."""
    model = tiny_model(family)
    if layout == LAYOUTS[0]:
        model.save_pretrained(path, max_shard_size="60KB" if shards else "1GB")
    else:
        model.config.save_pretrained(path)
        names = sorted(state := model.state_dict())
        parts = [names[::2], names[1::2]] if shards else [names]
        files = [f"model-{i + 1:05d}-of-00002.safetensors" for i in range(2)] if shards else ["model.safetensors"]
        for file, part in zip(files, parts, strict=True):
            save_file({n: state[n] for n in part}, path / file, {"format": "pt"})
        if shards:
            index = {n: file for file, part in zip(files, parts, strict=True) for n in part}
            write_json(path / "model.safetensors.index.json", {"metadata": {}, "weight_map": index})
    assert (len(list(path.glob("*.safetensors"))) > 1) == shards
    return path


@pytest.mark.parametrize("shards", [False, True], ids=["single", "sharded"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", MIXTURES)
def test_disk_equals_memory_and_plain_transformers_generates(
    family: str, layout: str, shards: bool, tmp_path: Path
) -> None:
    source = folder_of(tmp_path / "source", family, layout, shards=shards)
    check_model_folder(source)
    names = _names(source)
    fused = any(n.endswith("experts.down_proj") for n in names)
    assert fused == (layout == LAYOUTS[1] or family == "gpt_oss")
    for what in ("all", "experts"):
        plan, out = plan_of(what, model_sha(source)), tmp_path / what
        apply_on_disk(source, plan, out)
        check_model_folder(out)
        memory = apply_in_memory(tiny_model(family), plan)
        disk = AutoModelForCausalLM.from_pretrained(out, dtype="auto").eval()
        a, b = memory.state_dict(), disk.state_dict()
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
        assert any(n.endswith("experts.down_proj") for n in _names(out)) == fused  # the layout stays
        assert generated(disk, cache=True).shape == (2, 17)
        old, new = (read_json(p / "config.json") for p in (source, out))
        changed = {k for k in {*old, *new} if old.get(k) != new.get(k)}
        width = "moe_intermediate_size" if family == "qwen3_moe" else "intermediate_size"
        number = "num_experts" if family == "olmoe" else "num_local_experts"
        assert changed - {"layer_types"} == {number, *({"num_hidden_layers", width} if what == "all" else ())}


def _names(folder: Path) -> list[str]:
    found = []
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found += list(file.keys())
    return found


@pytest.mark.parametrize("family", [f for f in MIXTURES if not FAMILIES[f].heads_stay])
def test_heads_go_as_in_dense_models(family: str) -> None:
    model = tiny_model(family)
    drop = {"heads": {i: (i % 2,) for i in range(4)}}
    plan = PrunePlan(model_sha="", depth=4, width=WIDTH, sizes={"heads": 2, "query_heads": 2}, drop=drop)
    masked = copy.deepcopy(model)
    for i, layer in enumerate(layers_of(masked)):
        layer.self_attn.o_proj.weight.data.unflatten(1, (2, -1))[:, i % 2] = 0
    pruned = apply_in_memory(model, plan)
    torch.testing.assert_close(logits(pruned), logits(masked), atol=1e-5, rtol=1e-5)
    assert (logits(model) - logits(masked)).abs().max() > 1e-3
    assert cost_of(pruned.config).params == pruned.num_parameters()


def test_a_config_of_the_hub_keeps_its_own_word_for_the_number(tmp_path: Path) -> None:
    """Qwen's says `num_experts`, transformers 5 writes `num_local_experts`; both at once would contradict."""
    source = tiny_folder(tmp_path / "source", "qwen3_moe")
    values = read_json(source / "config.json")
    values["num_experts"] = values.pop("num_local_experts")
    write_json(source / "config.json", values)
    check_model_folder(source)
    assert cost_of(values) == cost_of(tiny_model("qwen3_moe").config)
    apply_on_disk(source, plan_of("many", model_sha(source)), tmp_path / "out")
    new = read_json(tmp_path / "out" / "config.json")
    assert (new["num_experts"], new["num_experts_per_tok"]) == (2, 2) and "num_local_experts" not in new
    disk = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert disk.config.num_experts == 2
    assert torch.equal(logits(disk.eval()), logits(apply_in_memory(tiny_model("qwen3_moe"), plan_of("many"))))


def test_a_checkpoint_that_lacks_an_expert_is_told(tmp_path: Path) -> None:
    source = tiny_folder(tmp_path / "source", "mixtral")
    state = load_file(source / "model.safetensors")
    lost = "model.layers.1.block_sparse_moe.experts.4.w2.weight"
    save_file({n: t for n, t in state.items() if n != lost}, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(BadCheckpoint, match=r"lack .*layers\.1\.mlp\.experts\.down_proj"):
        check_model_folder(source)


def test_plans_that_do_not_fit_are_refused() -> None:
    model = tiny_model("qwen3_moe")
    dense = PrunePlan(model_sha="", depth=4, width=WIDTH, drop_neurons={i: (0,) for i in range(4)})
    with pytest.raises(PlanError, match="as if a layer had one FFN"):
        apply_in_memory(model, dense)
    other = PrunePlan(
        model_sha="", depth=4, width=WIDTH, sizes={"experts": 8}, drop={"experts": {i: (0,) for i in range(4)}}
    )
    with pytest.raises(PlanError, match="another number of experts"):
        apply_in_memory(model, other)
    with pytest.raises(PlanError, match="another number of experts"):
        apply_in_memory(tiny_model("llama"), plan_of("experts"))
    with pytest.raises(ValueError, match="leaves no expert"):
        PrunePlan(model_sha="", depth=1, width=4, sizes={"experts": 2}, drop={"experts": {0: (0, 1)}})
    with pytest.raises(ValueError, match="same number of neurons in each of its experts"):
        PrunePlan(model_sha="", depth=1, width=4, sizes={"experts": 2}, drop_neurons={0: (0, 1)})


@pytest.mark.parametrize("layers", [[1], [0, 3]])
def test_layers_among_others_without_experts_are_refused(layers: list[int]) -> None:
    with pytest.raises(UnsupportedModel, match="layers without experts"):
        cost_of({**tiny_model("qwen3_moe").config.to_dict(), "mlp_only_layers": layers})
    with pytest.raises(UnsupportedModel, match="not uniform"):
        cost_of({**tiny_model("qwen3_moe").config.to_dict(), "decoder_sparse_step": 2})
