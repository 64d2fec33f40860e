"""A checkpoint that does not hold the model of its config is told, by its kind, before any work: by every command."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tiny import tiny_config, tiny_folder, tiny_tokenizer
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from prunetune.cli import app as cli
from prunetune.common.files import read_json, write_json
from prunetune.errors import NotFinite, PrunetuneError
from prunetune.models.folders import check_model_folder, load_model, resolve_model

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def weights(folder: Path, change) -> None:
    """The weights anew, changed by a function of {name: tensor}."""
    tensors = {k: v.contiguous().clone() for k, v in change(load_file(folder / WEIGHTS)).items()}
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def config(folder: Path, **changes) -> None:
    values = read_json(folder / "config.json") | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in values.items() if v is not ...}))


def names(change):
    return lambda folder: weights(folder, lambda x: {change(k): v for k, v in x.items()})


def inside(word):
    """The word after the second part of each layer's names, as nested wrappers put it."""
    return names(lambda k: k.replace("model.layers.", f"model.{word}.layers.") if ".layers." in k else k)


def untied(folder: Path) -> None:
    shutil.rmtree(folder)
    tiny_folder(folder, tie_word_embeddings=False)


def without_head(folder: Path) -> None:
    untied(folder)
    weights(folder, lambda x: {k: v for k, v in x.items() if k != "lm_head.weight"})


def base_without_head(folder: Path) -> None:
    without_head(folder)
    names(lambda k: k.removeprefix("model."))(folder)


def reward_model(folder: Path) -> None:
    shutil.rmtree(folder)
    AutoModelForSequenceClassification.from_config(tiny_config(num_labels=1)).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


def renamed_reward_model(folder: Path) -> None:
    reward_model(folder)
    config(folder, architectures=["LlamaForCausalLM"])


def value_head(folder: Path) -> None:
    weights(folder, lambda x: {**x, "v_head.summary.weight": torch.zeros(1, 32)})


def adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    save_file({"a": torch.zeros(1)}, folder / "adapter_model.safetensors")


def adapter_alone(folder: Path) -> None:
    adapter(folder)
    for name in ("config.json", WEIGHTS):
        (folder / name).unlink()


def unmerged(folder: Path) -> None:
    a = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(2, 32)}
    weights(folder, lambda x: {f"base_model.model.{k}": v for k, v in x.items()} | a)


def uneven(folder: Path) -> None:
    def change(x):
        for part, cut in (("gate_proj", slice(40)), ("up_proj", slice(40)), ("down_proj", (slice(None), slice(40)))):
            x[f"model.layers.1.mlp.{part}.weight"] = x[f"model.layers.1.mlp.{part}.weight"][cut]
        return x

    weights(folder, change)


def sharded(folder: Path, weight_map=None) -> None:
    (folder / WEIGHTS).rename(folder / "model-00001-of-00001.safetensors")
    listed = dict.fromkeys(load_file(folder / "model-00001-of-00001.safetensors"), "model-00001-of-00001.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": listed if weight_map is None else weight_map(listed)}))


def index_with(name: str):
    def make(folder: Path) -> None:
        sharded(folder, lambda listed: {**listed, "model.norm.weight": name})
        torch.save({"model.norm.weight": torch.zeros(32)}, folder / "pytorch_model.bin")

    return make


def index_text(text: str):
    def make(folder: Path) -> None:
        sharded(folder)
        (folder / INDEX).write_text(text)

    return make


def dangling(name: str):
    def make(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(folder / "nowhere")

    return make


def stored(dtype: torch.dtype, end: str):
    def change(x):
        return {k: v.to(dtype) if k.endswith(end) else v for k, v in x.items()}

    return lambda folder: weights(folder, change)


def packed(folder: Path) -> None:
    gone = "model.layers.0.mlp.up_proj.weight"
    more = {"model.layers.0.mlp.up_proj.qweight": torch.zeros(4, 48, dtype=torch.int32)}
    weights(folder, lambda x: {k: v for k, v in x.items() if k != gone} | more)


def config_of(**changes):
    return lambda folder: config(folder, **changes)


def text_of_config(text: str):
    return lambda folder: (folder / "config.json").write_text(text)


# Kind -> (what is done to a good folder, words that the message must have).
KINDS = {
    # names
    "torch.compile": (names(lambda k: "_orig_mod." + k), ["`_orig_mod.`", "model._orig_mod.save_pretrained"]),
    "peft": (names(lambda k: "base_model.model." + k), ["`base_model.model.`", "merge_and_unload"]),
    "ddp": (names(lambda k: "module." + k), ["`module.`", "model.module.save_pretrained"]),
    "fsdp in front": (names(lambda k: "_fsdp_wrapped_module." + k), ["`_fsdp_wrapped_module.`", "full state dict"]),
    "fsdp inside": (inside("_fsdp_wrapped_module"), ["_fsdp_wrapped_module", "full state dict"]),
    "checkpointing inside": (inside("_checkpoint_wrapped_module"), ["_checkpoint_wrapped_module"]),
    "lightning": (names(lambda k: "policy.actor." + k), ["`policy.actor.`", "save the model itself"]),
    "trl value model": (names(lambda k: "pretrained_model." + k), ["pretrained_model.save_pretrained"]),
    "two wrappers": (names(lambda k: "module._orig_mod." + k), ["`module._orig_mod.`"]),
    # heads and tensors
    "no head": (without_head, ["no head", "lm_head.weight", "tie_word_embeddings: true"]),
    "base model, no head": (base_without_head, ["no head", "AutoModel)"]),
    "reward model": (reward_model, ["LlamaForSequenceClassification", "not a causal language model"]),
    "reward model, renamed": (renamed_reward_model, ["another head", "score.weight"]),
    "value head": (value_head, ["another head", "v_head.summary.weight"]),
    "one lost": (
        lambda f: weights(f, lambda x: {k: v for k, v in x.items() if k != "model.layers.2.mlp.up_proj.weight"}),
        ["lack 1 of 38", "model.layers.2.mlp.up_proj.weight", "random"],
    ),
    "unknown tensor": (
        lambda f: weights(f, lambda x: {**x, "model.layers.0.mlp.extra.weight": torch.zeros(3)}),
        ["hold 1 tensors", "model.layers.0.mlp.extra.weight", "dropped"],
    ),
    "own head, tied config": (
        lambda f: weights(f, lambda x: {**x, "lm_head.weight": torch.randn(104, 32)}),
        ["config and weights disagree", "lm_head.weight", "tie_word_embeddings: false"],
    ),
    # adapters
    "adapter beside": (adapter, ["LoRA adapter", "beside a model", "merge_and_unload().save_pretrained"]),
    "adapter alone": (adapter_alone, ["LoRA adapter", "no model", "merge_and_unload().save_pretrained"]),
    "adapter unmerged": (unmerged, ["adapter", "lora_A", "merge_and_unload"]),
    # shapes
    "vocabulary": (config_of(vocab_size=100), ["model.embed_tokens.weight is [104, 32] in the file and [100, 32]"]),
    "attention": (config_of(num_key_value_heads=4), ["k_proj.weight is [16, 32] in the file and [32, 32]"]),
    "hidden": (config_of(hidden_size=64), ["is [104, 32] in the file and [104, 64] by config.json"]),
    "width": (config_of(intermediate_size=40), ["is [32, 48] in the file and [32, 40]"]),
    "uneven widths": (uneven, ["another FFN width in each layer", "layer 1: 40"]),
    "uneven by config": (config_of(layer_inter_size=[48, 40, 48, 48]), ["in each layer", "layer_inter_size"]),
    "more layers by config": (config_of(num_hidden_layers=6), ["config.json says 6 layers", "lack layers 4 to 5"]),
    "fewer layers by config": (config_of(num_hidden_layers=3), ["config.json says 3 layers", "hold layer 3 besides"]),
    "a billion layers": (config_of(num_hidden_layers=10**9), ["num_hidden_layers", "1000000000"]),
    "a huge hidden size": (config_of(hidden_size=10**12), ["hidden_size"]),
    "a huge vocabulary": (config_of(vocab_size=10**11), ["vocab_size"]),
    # types
    "fp8": (stored(torch.float8_e4m3fn, "up_proj.weight"), ["F8_E4M3", "up_proj", "quantised", "bf16"]),
    "uint8": (stored(torch.uint8, "up_proj.weight"), ["U8", "quantised"]),
    "packed": (packed, ["I32", "qweight", "quantised"]),
    "quantised config": (config_of(quantization_config={"quant_method": "gptq"}), ["quantised", "bf16"]),
    # files
    "index names a pickle": (index_with("pytorch_model.bin"), ["pytorch_model.bin", "no plain *.safetensors"]),
    "index leaves the folder": (index_with("../../secret.safetensors"), ["inside its folder"]),
    "index, absolute": (index_with("/etc/x.safetensors"), ["inside its folder"]),
    "index names a missing file": (index_with("gone.safetensors"), ["missing", "gone.safetensors"]),
    "index lists a lost tensor": (
        lambda f: sharded(f, lambda x: {**x, "more": "model-00001-of-00001.safetensors"}), ["in no shard", "'more'"]
    ),
    "index is a list": (index_text("[]"), ["this index of shards is not valid"]),
    "index of numbers": (index_text('{"weight_map": {"a": 3}}'), ["this index of shards is not valid"]),
    "index of 5,000 digits": (index_text('{"weight_map": ' + "9" * 5000 + "}"), ["JSON"]),
    "index, nested deep": (index_text("[" * 100_000), ["JSON"]),
    "weights elsewhere": (config_of(transformers_weights="pytorch_model.bin"), ["transformers_weights"]),
    "dangling weights": (dangling(WEIGHTS), ["link that leads nowhere", WEIGHTS]),
    "dangling config": (dangling("config.json"), ["link that leads nowhere", "config.json"]),
    # config
    "config is a list": (text_of_config("[]"), ["no mapping"]),
    "config of 5,000 digits": (text_of_config('{"hidden_size": ' + "9" * 5000 + "}"), ["JSON"]),
    "config of 400 digits": (text_of_config('{"hidden_size": ' + "9" * 400 + "}"), ["400 digits"]),
    "layers as text": (config_of(num_hidden_layers="4"), ["num_hidden_layers", "'4'"]),
    "layers below zero": (config_of(num_hidden_layers=-4), ["num_hidden_layers", "-4"]),
    "a model type that is a list": (config_of(model_type=["llama"]), ["model_type"]),
    "layer types of numbers": (config_of(layer_types=[1, 2, 3, 4]), ["layer_types"]),
    "norm eps NaN": (config_of(rms_norm_eps=float("nan")), ["NaN"]),
    "pad id beyond": (config_of(pad_token_id=104), ["pad_token_id", "104", "embedding"]),
    "end id beyond": (config_of(eos_token_id=[2, 5000]), ["eos_token_id", "5000", "embedding"]),
}  # fmt: skip


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("good") / "m")


@pytest.fixture
def folder(good, tmp_path):
    return Path(shutil.copytree(good, tmp_path / "m"))


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_told_without_reading_weights(kind, folder, monkeypatch):
    change, words = KINDS[kind]
    change(folder)
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", None)  # nothing is built
    monkeypatch.setattr("torch.load", None)
    with pytest.raises(PrunetuneError) as e:
        resolve_model(str(folder))
    for word in words:
        assert word in str(e.value)
    with pytest.raises(PrunetuneError):
        check_model_folder(folder)
    with pytest.raises(PrunetuneError):
        load_model(folder)


def call(*args):
    argv, sys.argv = sys.argv, ["prunetune", *map(str, args)]
    try:
        cli.main()
    except SystemExit as e:
        return int(e.code or 0)
    finally:
        sys.argv = argv
    return 0


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    at = tmp_path_factory.mktemp("files")
    rows = "".join(json.dumps({"question": f"{i} + 1?", "answer": f"{i + 1}"}) + "\n" for i in range(400))
    (at / "rows.jsonl").write_text(rows)
    write_json(at / "plan.json", {"model_sha": "0" * 16, "depth": 4, "width": 48, "drop_layers": [1]})
    return at


COMMANDS = {
    "inspect": lambda m, f, out: ["inspect", m],
    "score": lambda m, f, out: ["score", m, "--data", f / "rows.jsonl", "--out", out],
    "apply": lambda m, f, out: ["apply", f / "plan.json", m, out],
    "tune": lambda m, f, out: ["tune", "sft", m, out, "--data", f / "rows.jsonl"],
    "generate": lambda m, f, out: ["generate", m, out, "--data", f / "rows.jsonl", "--verifier", "exact"],
    "eval": lambda m, f, out: ["eval", m, "--task", "demo", "--n", "2"],
    "run": lambda m, f, out: ["run", "--model", m, "--data", f / "rows.jsonl", "--target", "0.9", "--out", out],
    "run --dry-run": lambda m, f, out: ["run", "--model", m, "--data", f / "rows.jsonl", "--target", "0.9", "--dry-run"],
    "check": lambda m, f, out: ["check", m],
    "push": lambda m, f, out: ["push", m, "me/small"],
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", ["torch.compile", "adapter beside", "vocabulary", "own head, tied config"])
def test_every_command_says_it_and_ends_with_2(command, kind, folder, files, tmp_path, capsys, monkeypatch):
    change, words = KINDS[kind]
    change(folder)

    def never(*_a, **_k):
        raise AssertionError("a forward pass before the message")

    monkeypatch.setattr(PreTrainedModel, "__call__", never)
    code = call(*COMMANDS[command](folder, files, tmp_path / "out"))
    said = capsys.readouterr().err
    assert code == 2
    assert words[0] in said
    assert "Traceback" not in said


def test_what_is_right_passes(folder, tmp_path):
    """A head that is the embedding's copy, computed tables of old files, a base model's names, other families."""
    weights(folder, lambda x: {**x, "lm_head.weight": x["model.embed_tokens.weight"]})
    weights(folder, lambda x: {**x, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    check_model_folder(folder)
    names(lambda k: k.removeprefix("model."))(folder)
    assert resolve_model(str(folder)) == folder
    config(folder, pad_token_id=-1)  # as old Llamas have it
    assert load_model(folder).lm_head.weight.shape == (104, 32)
    sharded(folder)
    check_model_folder(folder)


def test_a_family_that_is_not_cut_is_checked_by_transformers(tmp_path):
    """GPT-2 is only evaluated: its names are not ours to know, so transformers is asked about the headers."""
    from transformers import GPT2Config, GPT2LMHeadModel

    small = GPT2Config(vocab_size=104, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2)
    GPT2LMHeadModel(small).save_pretrained(tmp_path)
    assert resolve_model(str(tmp_path)) == tmp_path
    names(lambda k: "_orig_mod." + k)(tmp_path)
    with pytest.raises(PrunetuneError, match=r"`_orig_mod\.`"):
        resolve_model(str(tmp_path))
    GPT2LMHeadModel(small).save_pretrained(tmp_path)
    config(tmp_path, n_embd=64)
    with pytest.raises(PrunetuneError, match=r"in the file and \[.* by config.json"):
        resolve_model(str(tmp_path))
    config(tmp_path, n_embd=32, n_layer=1500)
    with pytest.raises(PrunetuneError, match="says 1500 layers, and the weights hold 2"):
        resolve_model(str(tmp_path))
    config(tmp_path, n_layer=10**9)
    with pytest.raises(PrunetuneError, match="n_layer"):
        resolve_model(str(tmp_path))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(value, folder):
    weights(
        folder,
        lambda x: {k: torch.full_like(v, value) if k.endswith("2.mlp.up_proj.weight") else v for k, v in x.items()},
    )
    with pytest.raises(NotFinite, match=r"(?s)NaN or infinite.*model\.layers\.2\.mlp\.up_proj\.weight"):
        load_model(folder)


def test_large_numbers_whose_sum_overflows_are_numbers(folder):
    weights(
        folder, lambda x: {k: torch.full_like(v, 3e38) if k.endswith("up_proj.weight") else v for k, v in x.items()}
    )
    load_model(folder)


def test_too_little_memory_is_told_as_memory(folder, monkeypatch):
    for error in (
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory"),
        OSError(12, "Cannot allocate memory"),
        torch.OutOfMemoryError("CUDA out of memory"),
    ):

        def fail(*_a, error=error, **_k):
            raise error

        monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", fail)
        with pytest.raises(PrunetuneError, match="too little memory") as e:
            load_model(folder)
        assert "truncated" not in str(e.value)
