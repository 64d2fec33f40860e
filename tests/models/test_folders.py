"""Whole or absent: `once` under kills and changed inputs, and model folders that are refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from tests.tiny import tiny_folder, tiny_model

from prunetune.common.files import file_sha, is_made, json_sha, once, read_json, replacing, write_json
from prunetune.errors import BadCheckpoint, MissingExtra, MissingPath, NotWritable, UnsupportedModel
from prunetune.models.cost import cost_of
from prunetune.models.folders import (
    copy_files,
    from_gguf,
    gguf_config,
    load_config,
    load_model,
    load_tokenizer,
    model_sha,
    resolve_model,
)


def test_once_makes_a_thing_one_time_and_again_when_its_inputs_change(tmp_path):
    made = []

    def make(tmp):
        made.append(1)
        tmp.write_text(f"version {len(made)}")

    path = tmp_path / "a" / "thing.txt"
    for key in ("x", "x", "y", "y"):
        once(path, key, make)
    assert len(made) == 2
    assert path.read_text() == "version 2"
    assert is_made(path, "y")
    assert not is_made(path, "x")


def test_once_leaves_nothing_visible_when_making_fails(tmp_path):
    def fail(tmp):
        tmp.mkdir()
        (tmp / "half").write_text("half")
        raise ValueError("stopped")

    with pytest.raises(ValueError, match="stopped"):
        once(tmp_path / "thing", 1, fail)
    assert not (tmp_path / "thing").exists()
    once(tmp_path / "thing", 1, lambda tmp: tmp.mkdir())  # the leftover is cleared
    assert list((tmp_path / "thing").iterdir()) == []


def test_a_failed_remake_keeps_the_old_thing_and_its_key(tmp_path):
    path = once(tmp_path / "thing", "old", lambda tmp: tmp.write_text("old"))

    def fail(tmp):
        raise ValueError

    with pytest.raises(ValueError):  # the type alone matters
        once(path, "new", fail)
    assert path.read_text() == "old"
    assert is_made(path, "old")


def test_a_kill_at_any_moment_leaves_whole_or_absent(tmp_path):
    """A child that keeps remaking a folder with changing keys is killed: what is visible is whole and has its own key."""
    child = (
        "import sys, itertools, pathlib\nfrom prunetune.models.folders import once\n"
        "def make(n):\n    def f(tmp):\n        tmp.mkdir()\n        [(tmp / str(i)).write_text(str(n)) for i in range(20)]\n    return f\n"
        "print('go', flush=True)\n"
        "for n in itertools.count(): once(pathlib.Path(sys.argv[1]), n % 7, make(n % 7))\n"
    )
    for trial in range(4):
        process = subprocess.Popen([sys.executable, "-c", child, str(tmp_path / "t")], stdout=subprocess.PIPE)
        process.stdout.readline()
        try:
            process.wait(0.05 + 0.03 * trial)
        except subprocess.TimeoutExpired:
            process.kill()
        process.wait()
        process.stdout.close()
        if (tmp_path / "t").exists():
            contents = {p.read_text() for p in (tmp_path / "t").iterdir()}
            assert len(list((tmp_path / "t").iterdir())) == 20
            assert len(contents) == 1
            assert is_made(tmp_path / "t", int(contents.pop()))


def test_replacing_keeps_the_old_file_on_an_error(tmp_path):
    path = tmp_path / "f.json"
    write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), replacing(path) as tmp:
        tmp.write_text("half")
        raise RuntimeError
    assert read_json(path) == {"a": 1}


def test_unwritable_place(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotWritable, match="cannot be written"):
        once(tmp_path / "file" / "below", 1, lambda tmp: tmp.write_text(""))


def test_full_disk(tmp_path):
    def full(tmp):
        raise OSError(28, os.strerror(28))

    with pytest.raises(NotWritable, match="no space left"):
        once(tmp_path / "x", 1, full)


def test_hashes(tmp_path):
    assert json_sha({"a": 1, "b": 2}) == json_sha({"b": 2, "a": 1}) != json_sha({"a": 1, "b": 3})
    folder = tiny_folder(tmp_path / "m")
    before = model_sha(folder)
    (folder / "README.md").write_text("text")
    assert model_sha(folder) == before
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    assert model_sha(folder) != before
    assert len(file_sha(folder / "config.json")) == 16


def test_load_what_was_saved(tmp_path):
    folder = tiny_folder(tmp_path / "m", "qwen3")
    ids = torch.arange(3, 20)[None]
    torch.testing.assert_close(load_model(folder)(ids).logits, tiny_model("qwen3")(ids).logits)
    tokenizer = load_tokenizer(folder)
    assert tokenizer.padding_side == "left"
    assert tokenizer.decode(tokenizer("1+2=3").input_ids) == "1+2=3"


def test_truncated_shard(tmp_path):
    folder = tiny_folder(tmp_path / "m")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(BadCheckpoint, match="truncated or damaged"):
        load_model(folder)


def test_pickles_are_refused(tmp_path):
    folder = tiny_folder(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(BadCheckpoint, match="pickles"):
        resolve_model(str(folder))


@pytest.mark.parametrize(
    "ref", ["./nowhere", "/nowhere/at/all", "nowhere.gguf", "package:no_such_package_here", "package:json"]
)
def test_missing_models(ref):
    with pytest.raises(MissingPath):
        resolve_model(ref)


def test_a_name_that_neither_disk_nor_hub_knows():
    with pytest.raises(MissingPath, match="hub"):
        resolve_model("no-such-owner/no-such-model")


def test_a_folder_without_config_or_weights(tmp_path):
    with pytest.raises(MissingPath, match=r"config\.json"):
        resolve_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(MissingPath, match="safetensors"):
        resolve_model(str(tmp_path))


def test_a_config_that_needs_its_own_code(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mystery", "auto_map": {"AutoConfig": "x.Y"}}))
    with pytest.raises(UnsupportedModel):
        load_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(BadCheckpoint, match="not valid JSON"):
        load_config(tmp_path)


def test_gguf_loads_dequantised_and_once(tmp_path):
    """A GGUF file written from a tiny Llama gives the same logits, as a plain folder that needs no gguf package."""
    gguf = pytest.importorskip("gguf")
    model = tiny_model("llama", hidden_size=32, vocab_size=104)
    path = tmp_path / "tiny.gguf"
    _write_gguf(gguf, model, path)
    said = gguf_config(path)
    assert cost_of(said).params == model.num_parameters()
    folder = from_gguf(path, tmp_path / "cache")
    config = load_config(folder)
    assert {k: said[k] for k in said if hasattr(config, k)} == {
        k: getattr(config, k) for k in said if hasattr(config, k)
    }
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    assert from_gguf(path, tmp_path / "cache") == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp
    ids = torch.arange(3, 30)[None]
    loaded = load_model(folder)
    assert loaded.dtype == torch.bfloat16
    torch.testing.assert_close(
        loaded.float()(ids).logits, model.to(torch.bfloat16).float()(ids).logits, rtol=1e-3, atol=1e-3
    )


def _write_gguf(gguf, model, path):
    c = model.config
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(256)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_key_length(c.head_dim)
    writer.add_value_length(c.head_dim)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(c.head_dim)
    writer.add_vocab_size(c.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    tokens = ["<pad>", "<bos>", "<eos>", "<unk>", *(chr(i) for i in range(33, 132)), "!!"]
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 4 + [1] * 100)
    writer.add_token_merges(["! !"])
    for key, value in (("bos", 1), ("eos", 2), ("pad", 0)):
        getattr(writer, f"add_{key}_token_id")(value)
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
             "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
             "post_attention_layernorm": "ffn_norm"}  # fmt: skip
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        value = tensor.float().numpy()
        if name == "model.embed_tokens.weight":
            writer.add_tensor("token_embd.weight", value)
        elif name == "model.norm.weight":
            writer.add_tensor("output_norm.weight", value)
        else:
            layer, rest = name.removeprefix("model.layers.").split(".", 1)
            rest = rest.removesuffix(".weight")
            if rest.endswith(("q_proj", "k_proj")):  # llama.cpp's order of rotary halves
                heads = c.num_attention_heads if "q_proj" in rest else c.num_key_value_heads
                value = value.reshape(heads, 2, c.head_dim // 2, -1).swapaxes(1, 2).reshape(value.shape)
            writer.add_tensor(f"blk.{layer}.{names[rest]}.weight", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_gguf_without_the_extra(tmp_path, monkeypatch):
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="pip install gguf"):
        from_gguf(tmp_path / "x.gguf")


def test_copy(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    a.mkdir(), b.mkdir()
    (a / "tokenizer.json").write_text("{}")
    (a / "other.txt").write_text("")
    copy_files(a, b)
    assert [p.name for p in b.iterdir()] == ["tokenizer.json"]
