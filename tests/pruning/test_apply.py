"""Surgery against an oracle: the original model with zeroed `down_proj` columns and a skipped layer."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny import DENSE, EXTRA, down_of, layers_of, tiny_folder, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from prunetune.common.files import file_sha, read_json, write_json
from prunetune.errors import BadCheckpoint, NotWritable, PlanError, UnsupportedModel
from prunetune.models.cost import cost_of
from prunetune.models.families import FAMILIES, family_of
from prunetune.models.folders import load_model, model_sha
from prunetune.models.shards import INDEX, SINGLE, ShardReader, open_shards
from prunetune.pruning.apply import apply_in_memory, apply_on_disk, cut_config, cut_name, cut_tensor
from prunetune.pruning.plan import PrunePlan

# Every family, and the variants that change which tensors there are.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{f: (f, {}) for f in DENSE},
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}),
    "smollm3-biases": ("smollm3", {"attention_bias": True, "mlp_bias": True}),
    "qwen2-tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3-sliding": ("qwen3", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    # As LFM2 is published: two thirds of what is written, rounded up to 48.
    "lfm2-adjusted": ("lfm2", {"block_auto_adjust_ff_dim": True, "intermediate_size": 70, "block_multiple_of": 16}),
}
LENGTH = 24  # three sliding windows


def make_plan(sha: str = "", drop_layers: tuple[int, ...] = (1,), depth: int = 4, width: int = 48) -> PrunePlan:
    """Other neurons in every layer; never sorted by accident into a prefix."""
    g = torch.Generator().manual_seed(3)
    kept = [layer for layer in range(depth) if layer not in drop_layers]
    drop = {layer: tuple(sorted(torch.randperm(width, generator=g)[:20].tolist())) for layer in kept}
    return PrunePlan(model_sha=sha, depth=depth, width=width, drop_layers=drop_layers, drop_neurons=drop)


def oracle(model: PreTrainedModel, plan: PrunePlan) -> PreTrainedModel:
    """The whole model, with the plan's neurons silenced and its layers skipped."""
    model = copy.deepcopy(model)
    for layer, neurons in plan.drop_neurons.items():
        with torch.no_grad():
            down_of(model, layer).weight[:, list(neurons)] = 0
    for layer in plan.drop_layers:
        layers_of(model)[layer].register_forward_hook(lambda _module, args, _out: args[0])
    return model


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    ids = torch.randint(3, 100, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    return model(ids, use_cache=False).logits


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for path, infos in open_shards(folder).items():
        with ShardReader(path) as reader:
            found.update({name: reader.read(name) for name in infos})
    return found


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert tensor.dtype == b[name].dtype
        assert torch.equal(tensor, b[name]), name


# ------------------------------------------------------------------------------------------------------------- oracle


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("drop_layers", [(1,), (0, 2), ()])
def test_logits_equal_the_oracle(case: str, drop_layers: tuple[int, ...]) -> None:
    family, changes = CASES[case]
    model = tiny_model(family, **changes)
    plan = make_plan(drop_layers=drop_layers)
    expected = logits(oracle(model, plan))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    pruned = apply_in_memory(model, plan)
    assert len(layers_of(pruned)) == pruned.config.num_hidden_layers == 4 - len(drop_layers)
    assert pruned.config.intermediate_size == 28
    torch.testing.assert_close(logits(pruned), expected, atol=1e-5, rtol=1e-5)
    assert (logits(model) - expected).abs().max() > 1e-2  # else the oracle shows nothing
    for p in pruned.parameters():
        p.data.zero_()
    assert_same(before, model.state_dict())  # the source is neither changed nor shared


@pytest.mark.parametrize("case", CASES)
def test_cached_generation_equals_uncached(case: str) -> None:
    family, changes = CASES[case]
    pruned = apply_in_memory(tiny_model(family, **changes), make_plan())
    ids = torch.randint(3, 100, (2, 5), generator=torch.Generator().manual_seed(1))
    options: dict[str, Any] = {"max_new_tokens": 20, "min_new_tokens": 20, "do_sample": False}
    mask = torch.ones_like(ids)
    cached = pruned.generate(ids, attention_mask=mask, use_cache=True, **options)
    assert torch.equal(cached, pruned.generate(ids, attention_mask=mask, use_cache=False, **options))
    assert cached.shape == (2, 25)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_memory_and_disk_agree_and_save_again_is_equal(case: str, dtype: torch.dtype, tmp_path: Path) -> None:
    family, changes = CASES[case]
    model = tiny_model(family, **changes).to(dtype)
    model.save_pretrained(tmp_path / "source", max_shard_size="30KB")  # several shards
    assert (tmp_path / "source" / INDEX).exists()
    plan = make_plan(model_sha(tmp_path / "source"))
    apply_on_disk(tmp_path / "source", plan, tmp_path / "disk")
    apply_in_memory(model, plan).save_pretrained(tmp_path / "memory")
    assert_same(tensors(tmp_path / "disk"), tensors(tmp_path / "memory"))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "disk", dtype="auto")
    assert again.dtype == dtype
    again.save_pretrained(tmp_path / "again")
    assert_same(tensors(tmp_path / "disk"), tensors(tmp_path / "again"))
    assert torch.equal(logits(again), logits(load_model(tmp_path / "memory")))


@pytest.mark.parametrize("case", CASES)
def test_config_differs_in_the_cut_fields_alone(case: str, tmp_path: Path) -> None:
    family, changes = CASES[case]
    source = tiny_folder(tmp_path / "source", family, **changes)
    raw = read_json(source / "config.json")
    raw.update(an_unknown_field={"kept": True}, torch_dtype="float32", rope_theta=12345.0)
    write_json(source / "config.json", raw)
    apply_on_disk(source, make_plan(model_sha(source)), tmp_path / "out")
    cut = read_json(tmp_path / "out" / "config.json")
    assert list(cut) == list(raw)  # the same fields in the same order
    changed = {key for key in raw if raw[key] != cut[key]}
    allowed = {
        "intermediate_size",
        "num_hidden_layers",
        *FAMILIES[family].per_layer_keys,
        *FAMILIES[family].layer_count_keys,
        *FAMILIES[family].layer_map_keys,
        *(("block_auto_adjust_ff_dim",) if raw.get("block_auto_adjust_ff_dim") else ()),
    }
    assert {"intermediate_size", "num_hidden_layers"} <= changed <= allowed
    for key in FAMILIES[family].per_layer_keys:
        if raw.get(key):
            assert cut[key] == [raw[key][i] for i in (0, 2, 3)]


# Fields that transformers 4 did not write, and from which transformers derives the same lists.
OLD = {
    "gemma2": {},
    "gemma3_text": {"sliding_window_pattern": 2},
    "qwen2": {},
    "qwen3-sliding": {},
    "smollm3": {},
}


@pytest.mark.parametrize("case", OLD)
def test_lists_that_an_old_config_lacks_are_written(case: str, tmp_path: Path) -> None:
    family, changes = CASES[case]
    source = tiny_folder(tmp_path / "source", family, **changes)
    raw = read_json(source / "config.json")
    for key in FAMILIES[family].per_layer_keys:
        raw.pop(key)
    write_json(source / "config.json", {**raw, **OLD[case]})
    plan = make_plan(model_sha(source))
    model = load_model(source)
    assert "sliding_attention" in model.config.layer_types
    assert "full_attention" in model.config.layer_types
    apply_on_disk(source, plan, tmp_path / "out")
    torch.testing.assert_close(logits(load_model(tmp_path / "out")), logits(oracle(model, plan)), atol=1e-5, rtol=1e-5)


def test_the_older_keys_of_lfm2_are_cut_as_the_newer_ones(tmp_path: Path) -> None:
    """Its published files say `block_ff_dim` and `full_attn_idxs`, which its class takes for others."""
    source = tiny_folder(tmp_path / "source", "lfm2", **CASES["lfm2-adjusted"][1])
    raw = read_json(source / "config.json")
    raw |= {"block_ff_dim": raw.pop("intermediate_size"), "full_attn_idxs": [1, 3]}
    raw.pop("layer_types")
    write_json(source / "config.json", raw)
    model, plan = load_model(source), make_plan(model_sha(source))
    assert model.config.layer_types == ["conv", "full_attention"] * 2
    apply_on_disk(source, plan, tmp_path / "out")
    cut = read_json(tmp_path / "out" / "config.json")
    assert (cut["block_ff_dim"], cut["intermediate_size"], cut["block_auto_adjust_ff_dim"]) == (28, 28, False)
    assert cut["full_attn_idxs"] == [2] and cut["layer_types"] == ["conv", "conv", "full_attention"]
    assert cost_of(cut).params == sum(p.numel() for p in load_model(tmp_path / "out").parameters())
    torch.testing.assert_close(logits(load_model(tmp_path / "out")), logits(oracle(model, plan)), atol=1e-5, rtol=1e-5)


def test_constant_lists_are_not_added(tmp_path: Path) -> None:
    source = tiny_folder(tmp_path / "source", "qwen3")
    raw = read_json(source / "config.json")
    raw.pop("layer_types")
    write_json(source / "config.json", raw)
    apply_on_disk(source, make_plan(model_sha(source)), tmp_path / "out")
    assert "layer_types" not in read_json(tmp_path / "out" / "config.json")


@pytest.mark.parametrize(("count", "expected"), [(0, 0), (1, 1), (2, 1), (3, 2), (4, 3), (70, 3)])
def test_max_window_layers_counts_the_kept_ones(count: int, expected: int) -> None:
    raw = {"num_hidden_layers": 4, "intermediate_size": 48, "max_window_layers": count}
    assert cut_config(make_plan(), FAMILIES["qwen2"], raw, raw)["max_window_layers"] == expected


def test_a_list_shorter_than_the_model_is_refused() -> None:
    raw = {"num_hidden_layers": 4, "intermediate_size": 48, "layer_types": ["full_attention"] * 2}
    with pytest.raises(UnsupportedModel, match="layer_types"):
        cut_config(make_plan(), FAMILIES["gemma2"], raw, raw)


# ------------------------------------------------------------------------------------------------------------- copied


def test_what_is_not_weights_is_carried_over(tmp_path: Path) -> None:
    source = tiny_folder(tmp_path / "source", "llama")
    write_json(source / "generation_config.json", {"do_sample": True, "temperature": 0.6, "eos_token_id": [2, 7]})
    (source / "chat_template.jinja").write_text("{{ messages }}")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tools.jinja").write_text("{{ tools }}")
    (source / "modeling_evil.py").write_text("raise SystemExit")
    out = tmp_path / "out"
    apply_on_disk(source, make_plan(model_sha(source)), out)
    same = ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"]
    for name in [*same, "additional_chat_templates/tools.jinja"]:
        assert (out / name).read_bytes() == (source / name).read_bytes(), name
    assert not (out / "modeling_evil.py").exists()
    assert AutoTokenizer.from_pretrained(out)("a1").input_ids == tiny_tokenizer()("a1").input_ids
    assert AutoModelForCausalLM.from_pretrained(out).generation_config.eos_token_id == [2, 7]


def test_memory_carries_generation_config_and_forgets_the_parent(tmp_path: Path) -> None:
    model = load_model(tiny_folder(tmp_path / "source", "gemma2"))
    model.generation_config.temperature = 0.6
    pruned = apply_in_memory(model.train(), make_plan())
    assert pruned.generation_config.temperature == 0.6
    assert pruned.generation_config is not model.generation_config
    assert model.config._name_or_path == str(tmp_path / "source")
    assert pruned.config._name_or_path == pruned.name_or_path == ""
    assert model.config.num_hidden_layers == len(model.config.layer_types) == 4
    assert not pruned.training
    assert type(pruned) is type(model)


@pytest.mark.parametrize("tied", [True, False])
def test_tied_head_in_the_file_or_not(tied: bool, tmp_path: Path) -> None:
    """A tied model's file may hold the head as well; it is cut as it lies."""
    from safetensors.torch import save_file

    source = tiny_folder(tmp_path / "source", "llama", tie_word_embeddings=True)
    if not tied:
        state = load_file(source / SINGLE)
        save_file(
            {**state, "lm_head.weight": state["model.embed_tokens.weight"].clone()}, source / SINGLE, {"format": "pt"}
        )
    plan = make_plan(model_sha(source))
    model = load_model(source)
    apply_on_disk(source, plan, tmp_path / "out")
    assert ("lm_head.weight" in load_file(tmp_path / "out" / SINGLE)) is not tied
    pruned = load_model(tmp_path / "out")
    assert pruned.lm_head.weight is pruned.model.embed_tokens.weight
    torch.testing.assert_close(logits(pruned), logits(oracle(model, plan)), atol=1e-5, rtol=1e-5)


def test_a_base_models_names_are_understood(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    source = tiny_folder(tmp_path / "source", "llama")
    model = load_model(source)
    state = load_file(source / SINGLE)
    save_file({k.removeprefix("model."): v for k, v in state.items()}, source / SINGLE, {"format": "pt"})
    plan = make_plan(model_sha(source))
    apply_on_disk(source, plan, tmp_path / "out")
    torch.testing.assert_close(logits(load_model(tmp_path / "out")), logits(oracle(model, plan)), atol=1e-5, rtol=1e-5)


def test_tensors_of_several_types_in_one_file_keep_theirs(tmp_path: Path) -> None:
    """Norms in fp32, the embedding in fp16, the rest in bf16: cut as they lie, each the values that it had."""
    from safetensors.torch import save_file

    def kind(name: str) -> torch.dtype:
        return torch.float32 if "norm" in name else torch.float16 if "embed" in name else torch.bfloat16

    source = tiny_folder(tmp_path / "source", "llama")
    state = {k: v.to(kind(k)) for k, v in load_file(source / SINGLE).items()}
    save_file(state, source / SINGLE, {"format": "pt"})
    plan = make_plan(model_sha(source))
    apply_on_disk(source, plan, tmp_path / "out")
    cut = load_file(tmp_path / "out" / SINGLE)
    assert {k: v.dtype for k, v in cut.items()} == {k: kind(k) for k in cut}
    torch.testing.assert_close(cut["model.embed_tokens.weight"], state["model.embed_tokens.weight"], rtol=0, atol=0)
    for new, old in enumerate(plan.kept_layers):
        kept = list(plan.kept("neurons", old))
        for name, wanted in (
            ("mlp.down_proj.weight", state[f"model.layers.{old}.mlp.down_proj.weight"][:, kept]),
            ("input_layernorm.weight", state[f"model.layers.{old}.input_layernorm.weight"]),
        ):
            torch.testing.assert_close(cut[f"model.layers.{new}.{name}"], wanted, rtol=0, atol=0)
    torch.testing.assert_close(
        logits(load_model(tmp_path / "out", dtype=torch.float32)),
        logits(oracle(load_model(source, dtype=torch.float32), plan)),
        atol=1e-5,
        rtol=1e-5,
    )


# ---------------------------------------------------------------------------------------------------------- streaming


def test_shards_are_kept_and_empty_ones_go(tmp_path: Path) -> None:
    model = tiny_model("llama", num_hidden_layers=6)
    source = tmp_path / "source"
    model.save_pretrained(source, max_shard_size="8KB")
    plan = make_plan(model_sha(source), drop_layers=(1, 2, 3), depth=6)
    seen: list[tuple[int, int]] = []
    apply_on_disk(source, plan, tmp_path / "out", progress=lambda done, total: seen.append((done, total)))
    before, after = open_shards(source), open_shards(tmp_path / "out")
    assert 1 < len(after) < len(before)
    assert all(after.values())
    assert seen == [(i + 1, len(seen)) for i in range(len(seen))]
    assert len(seen) == sum(map(len, after.values()))
    assert {p.name for p in after} == {p.name for p in (tmp_path / "out").glob("*.safetensors")}


def test_one_tensor_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import weakref

    source = tiny_folder(tmp_path / "source", "llama")
    plan, alive, most = make_plan(model_sha(source)), weakref.WeakSet(), [0]
    read = ShardReader.read

    def counted(self: ShardReader, name: str) -> torch.Tensor:
        most[0] = max(most[0], len(alive))
        tensor = read(self, name)
        alive.add(tensor)
        return tensor

    monkeypatch.setattr(ShardReader, "read", counted)
    apply_on_disk(source, plan, tmp_path / "out")
    assert most[0] <= 1  # at most the one before is still held while the next is read


# -------------------------------------------------------------------------------------------------------------- patch


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_patch_replaces_cut_tensors(family: str, tmp_path: Path) -> None:
    source = tiny_folder(tmp_path / "source", family)
    plan = make_plan(model_sha(source))
    name, new = "model.layers.2.mlp.down_proj.weight", torch.randn(32, 28, dtype=torch.float64)
    pruned = apply_in_memory(load_model(source), plan, {name: new})
    assert torch.equal(pruned.model.layers[1].mlp.down_proj.weight, new.float())
    apply_on_disk(source, plan, tmp_path / "out", {name: new})
    assert_same(dict(pruned.state_dict()), dict(load_model(tmp_path / "out").state_dict()))


def test_patch_that_does_not_fit(tmp_path: Path) -> None:
    source = tiny_folder(tmp_path / "source", "llama")
    plan, model = make_plan(model_sha(source)), load_model(source)
    with pytest.raises(PlanError, match="does not fit"):
        apply_in_memory(model, plan, {"model.layers.2.mlp.down_proj.weight": torch.randn(32, 48)})
    for apply in (lambda p: apply_in_memory(model, plan, p), lambda p: apply_on_disk(source, plan, tmp_path / "o", p)):
        with pytest.raises(PlanError, match="does not have"):
            apply({"model.layers.9.mlp.down_proj.weight": torch.randn(32, 28)})


# ------------------------------------------------------------------------------------------------------------ refusals


def test_a_plan_for_another_model_is_refused(tmp_path: Path) -> None:
    source = tiny_folder(tmp_path / "source", "llama")
    sha = model_sha(source)
    for plan, what in (
        (make_plan("0" * 16), "hashes"),
        (make_plan(sha, depth=5), "depth"),
        (make_plan(sha, width=64), "width"),
    ):
        with pytest.raises(PlanError, match=what):
            apply_on_disk(source, plan, tmp_path / "out")
        assert not (tmp_path / "out").exists()
    for plan in (make_plan(depth=5), make_plan(width=64)):
        with pytest.raises(PlanError, match="another"):
            apply_in_memory(load_model(source), plan)


def test_truncated_shard_is_named(tmp_path: Path) -> None:
    source = tiny_folder(tmp_path / "source", "llama")
    plan = make_plan(model_sha(source))
    (source / SINGLE).write_bytes((source / SINGLE).read_bytes()[:-100])
    with pytest.raises(BadCheckpoint, match=r"model\.safetensors"):
        apply_on_disk(source, plan, tmp_path / "out")


def test_a_layout_without_the_cut_tensors_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    source = tiny_folder(tmp_path / "source", "llama")
    state = load_file(source / SINGLE)
    save_file({k.replace("mlp.up_proj", "mlp.w3"): v for k, v in state.items()}, source / SINGLE, {"format": "pt"})
    with pytest.raises(BadCheckpoint, match=r"mlp\.up_proj\.weight"):
        apply_on_disk(source, make_plan(model_sha(source)), tmp_path / "out")


def test_a_full_output_folder_is_refused(tmp_path: Path) -> None:
    source = tiny_folder(tmp_path / "source", "llama")
    before = file_sha(source / SINGLE)
    with pytest.raises(NotWritable, match="not empty"):
        apply_on_disk(source, make_plan(model_sha(source)), source)
    assert file_sha(source / SINGLE) == before


def test_weights_of_another_width_than_the_config(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="another FFN width"):
        cut_tensor(make_plan(), {}, FAMILIES["phi3"], "model.layers.0.mlp.gate_up_proj.weight", torch.zeros(94, 32))
    with pytest.raises(PlanError, match="does not know"):
        cut_name(make_plan(), FAMILIES["llama"], "model.layers.4.input_layernorm.weight")


def test_names() -> None:
    plan, family = make_plan(drop_layers=(0, 2)), FAMILIES["llama"]
    assert cut_name(plan, family, "model.layers.0.mlp.up_proj.weight") is None
    assert cut_name(plan, family, "model.layers.1.mlp.up_proj.weight") == "model.layers.0.mlp.up_proj.weight"
    assert cut_name(plan, family, "model.layers.3.input_layernorm.weight") == "model.layers.1.input_layernorm.weight"
    assert cut_name(plan, family, "model.norm.weight") == "model.norm.weight"
    assert cut_name(plan, family, "vision.model.layers.0.x") == "vision.model.layers.0.x"


def test_untouched_tensors_are_not_copied() -> None:
    plan, norm = make_plan(), torch.randn(32)
    assert cut_tensor(plan, {}, FAMILIES["llama"], "model.layers.0.input_layernorm.weight", norm) is norm
    only_layers = PrunePlan(model_sha="", depth=4, width=48, drop_layers=(1,))
    up = torch.randn(48, 32)
    assert cut_tensor(only_layers, {}, FAMILIES["llama"], "model.layers.0.mlp.up_proj.weight", up) is up


def test_json_of_the_config_keeps_other_scripts(tmp_path: Path) -> None:
    source = tiny_folder(tmp_path / "source", "llama")
    raw = {**read_json(source / "config.json"), "note": "日本語"}
    (source / "config.json").write_text(json.dumps(raw, ensure_ascii=False), encoding="utf-8")
    apply_on_disk(source, make_plan(model_sha(source)), tmp_path / "out")
    assert "日本語" in (tmp_path / "out" / "config.json").read_text(encoding="utf-8")


def test_every_family_is_covered() -> None:
    assert set(FAMILIES) == set(EXTRA) and set(DENSE) <= set(CASES)
    assert all(family_of(tiny_model(f).config) is FAMILIES[f] for f in FAMILIES)
