"""Export: what the GGUF file holds is what the model computes, by transformers' loader and, where it is, by llama.cpp."""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tests.fake_run import fake_run
from tests.tiny import tiny_folder, tiny_model
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from prunetune.data.demo.tokenizer import byte_tokenizer
from prunetune.errors import MissingPath, NotFinite, NotWritable, PrunetuneError, UnknownName, UnsupportedModel
from prunetune.models.folders import DEMO_MODEL, load_config, load_gguf, model_sha
from prunetune.pruning.apply import apply_on_disk
from prunetune.pruning.plan import PrunePlan
from prunetune.publish import engines
from prunetune.publish import export as module
from prunetune.publish.export import export
from prunetune.publish.gguf.architectures import rope_factors
from prunetune.publish.gguf.tokenizer import SPLITS, split_name
from prunetune.publish.gguf.write import TYPES, write_gguf
from prunetune.publish.greedy import parting, reference
from prunetune.publish.serve import commands

LLAMA_3 = {
    "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
NO_WINDOW = {"use_sliding_window": False, "sliding_window": None, "layer_types": None}
MODELS = {
    "llama": ("llama", {}),
    "llama, own head": ("llama", {"tie_word_embeddings": False, "head_dim": 16}),
    "mistral": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", NO_WINDOW),
    "qwen3": ("qwen3", {"tie_word_embeddings": False, "head_dim": 128}),  # 128 and 256: the loader knows no others
    "gemma2": ("gemma2", {"head_dim": 256, "query_pre_attn_scalar": 256}),
    "gemma3": (
        "gemma3_text",
        {"head_dim": 256, "query_pre_attn_scalar": 256, "layer_types": None, "num_hidden_layers": 6},
    ),
}


def byte_folder(path: Path, family: str, **changes: object) -> Path:
    """A tiny model with the demo's tokenizer, whose vocabulary has spare rows."""
    tiny_model(family, vocab_size=264, **changes).save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


def logits(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(ids).logits


@pytest.mark.parametrize("name", MODELS)
def test_the_file_is_the_model(name, tmp_path) -> None:
    """Written in fp32 and read by transformers' loader, which undoes the rotation and the norms by code of its own."""
    family, changes = MODELS[name]
    folder = byte_folder(tmp_path / "model", family, **changes)
    write_gguf(folder, tmp_path / "m.gguf", "f32")
    again = load_gguf(tmp_path / "m.gguf", torch.float32)
    ids = torch.randint(3, 259, (2, 30), generator=torch.Generator().manual_seed(0))
    wanted = logits(tiny_model(family, vocab_size=264, **changes), ids)
    torch.testing.assert_close(logits(again, ids), wanted, rtol=1e-4, atol=1e-4)


def test_rows_of_q_and_k_change_places_for_llama_alone(tmp_path) -> None:
    """Row 2i+j of a head in the file is row j * half + i of the model's (llama.cpp rotates pairs, transformers halves)."""
    for family, changes, permuted in (("llama", {}, True), ("qwen2", NO_WINDOW, False)):
        folder = byte_folder(tmp_path / family, family, **changes)
        write_gguf(folder, tmp_path / f"{family}.gguf", "f32")
        tensors = {t.name: t.data for t in gguf.GGUFReader(tmp_path / f"{family}.gguf").tensors}
        k = tiny_model(family, vocab_size=264, **changes).model.layers[1].self_attn.k_proj.weight.detach().numpy()
        heads = k.reshape(2, 8, 32)  # two key/value heads of eight
        order = [j * 4 + i for i in range(4) for j in range(2)] if permuted else list(range(8))
        np.testing.assert_array_equal(tensors["blk.1.attn_k.weight"].reshape(2, 8, 32), heads[:, order])


def test_llama_3_s_frequencies_are_those_of_transformers(tmp_path) -> None:
    folder = byte_folder(tmp_path / "m", "llama", rope_parameters=LLAMA_3, head_dim=32)
    config = load_config(folder)
    wanted = tiny_model("llama", rope_parameters=LLAMA_3, head_dim=32).model.rotary_emb.inv_freq.numpy()
    plain = 1e4 ** -(np.arange(0, 32, 2) / 32)
    np.testing.assert_allclose(plain / rope_factors(config), wanted, rtol=1e-5)
    assert len(set(rope_factors(config).round(3))) > 2, "some between the two wavelengths"
    write_gguf(folder, tmp_path / "m.gguf", "f32")
    stored = {t.name: t.data for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    np.testing.assert_array_equal(stored["rope_freqs.weight"], rope_factors(config))
    assert rope_factors(load_config(DEMO_MODEL)) is None


def test_types_are_smaller_and_further_off(tmp_path) -> None:
    """Each type quantises the matrices; what it does to them comes from the model by the bits that it has."""
    sizes, errors = [], []
    ids = torch.randint(3, 259, (2, 60), generator=torch.Generator().manual_seed(0))
    wanted = logits(load_gguf(_written(tmp_path, "f32"), torch.float32), ids)
    for kind in ("f16", "q8_0", "q5_1", "q4_0"):
        path = _written(tmp_path, kind)
        sizes.append(path.stat().st_size)
        errors.append((logits(load_gguf(path, torch.float32), ids) - wanted).norm().item() / wanted.norm().item())
        named = {t.name: t.tensor_type.name for t in gguf.GGUFReader(path).tensors}
        assert named["blk.0.ffn_down.weight"] == kind.upper()
        assert named["token_embd.weight"] == (kind.upper() if kind in ("f16", "q8_0") else "Q8_0")
        assert {t for n, t in named.items() if "norm" in n} == {"F32"}
    assert sizes == sorted(sizes, reverse=True)
    assert errors == sorted(errors)
    assert errors[0] < 1e-3 < errors[-1] < 0.5


def _written(folder: Path, kind: str) -> Path:
    write_gguf(DEMO_MODEL, folder / f"{kind}.gguf", kind)
    return folder / f"{kind}.gguf"


def test_rows_that_fill_no_block_stay_in_16_bits_and_are_told(tmp_path) -> None:
    folder = byte_folder(tmp_path / "model", "llama")  # FFN width 48
    done = export(folder, tmp_path / "m.gguf", quantize="q8_0")
    assert any("4 f16 and the rest q8_0" in note for note in done.notes)
    named = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert (named["blk.0.ffn_down.weight"], named["blk.0.ffn_up.weight"]) == ("F16", "Q8_0")


def test_a_weight_too_large_for_16_bits(tmp_path) -> None:
    model = tiny_model("llama", vocab_size=264)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[3, 5] = 7e4
    model.save_pretrained(tmp_path / "m")
    byte_tokenizer().save_pretrained(tmp_path / "m")
    with pytest.raises(NotFinite, match="too large for fp16") as e:
        export(tmp_path / "m", tmp_path / "m.gguf")
    assert "up_proj" in str(e.value)
    assert not (tmp_path / "m.gguf").exists()


@pytest.mark.parametrize(
    ("family", "changes", "why"),
    [
        ("phi3", {}, "not among those that are written"),
        ("qwen2", {}, "without windows"),
        ("gemma3_text", {"query_pre_attn_scalar": 16, "layer_types": None}, "scales its attention"),
        ("gemma3_text", {}, "hard-code that every 6th layer"),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}, "rotary embeddings"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(family, changes, why, tmp_path) -> None:
    folder = byte_folder(tmp_path / "model", family, **changes)
    with pytest.raises(UnsupportedModel, match=why):
        export(folder, tmp_path / "m.gguf")


# ------------------------------------------------------------------------------------------------------------ tokenizer


def test_a_text_s_tokens_are_the_tokenizer_s(tmp_path) -> None:
    """By the tokenizer that transformers builds from the file."""
    path = _written(tmp_path, "q4_0")
    again, ours = AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name), byte_tokenizer()
    for text in ("Question: 7*8-9\nAnswer: 7*8=56", "Zoë ≤ 日本 🙂", "a<eos>"):
        assert again(text)["input_ids"] == ours(text)["input_ids"]
    assert (again.bos_token_id, again.eos_token_id, again.pad_token_id) == (1, 2, 0)


def sentencepiece() -> PreTrainedTokenizerFast:
    """Gemma's kind, tiny: blanks are ▁, bytes are the fallback, a token of its own has a blank in it."""
    letters = ["▁", *"abcdefgh"]
    merges = [("a", "b"), ("▁", "ab"), ("c", "d"), ("ab", "c"), ("b", "c")]
    texts = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{i:02X}>" for i in range(256)), *letters]
    texts += ["".join(m) for m in merges]
    core = Tokenizer(
        models.BPE({t: i for i, t in enumerate(texts)}, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    from tokenizers import normalizers

    core.normalizer = normalizers.Replace(" ", "▁")
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    core.add_tokens(["h h"])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )


def test_sentencepiece_s_scores_follow_the_merges_and_kinds_are_told(tmp_path) -> None:
    tiny_model("llama", vocab_size=288).save_pretrained(tmp_path / "m")
    ours = sentencepiece()
    ours.save_pretrained(tmp_path / "m")
    write_gguf(tmp_path / "m", tmp_path / "m.gguf", "f16")
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    texts, kinds, scores = (fields[f"tokenizer.ggml.{k}"].contents() for k in ("tokens", "token_type", "scores"))
    assert fields["tokenizer.ggml.model"].contents() == "llama"
    by_text = dict(zip(texts, zip(kinds, scores, strict=True), strict=True))
    kind = gguf.TokenType
    assert by_text["<0x41>"][0] == kind.BYTE
    assert by_text["<unk>"][0] == kind.UNKNOWN
    assert by_text["<bos>"][0] == kind.CONTROL
    assert by_text["h h"][0] == kind.USER_DEFINED
    assert texts[-1] == f"[PAD{287}]"
    assert [by_text[t][1] for t in ("ab", "▁ab", "cd", "abc", "bc")] == [0, -1, -2, -3, -4]
    assert by_text["ab"][1] > by_text["▁ab"][1]


def test_splits_have_llama_cpp_s_names() -> None:
    def named(part: object, merges: tuple[object, ...] = (("a", "b"),)) -> str:
        core = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, list(merges)))
        core.pre_tokenizer = part
        return split_name(json.loads(core.to_str()))

    whole, bare = pre_tokenizers.ByteLevel(False), pre_tokenizers.ByteLevel(False, use_regex=False)
    assert named(whole) == "gpt-2"
    assert named(bare, ()) == "gpt-2"
    assert named(pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), whole])) == "smollm"
    for pattern, name in SPLITS.items():
        assert named(pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), bare])) == name
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    assert SPLITS[PRETOKENIZE_REGEX] == "qwen2"
    for odd in (bare, pre_tokenizers.Sequence([pre_tokenizers.Split(Regex("x"), "isolated"), bare])):
        with pytest.raises(UnsupportedModel, match="splits text"):
            named(odd)


def test_a_tokenizer_of_another_kind_is_refused(tmp_path) -> None:
    folder = tiny_folder(tmp_path / "m")  # one token a character, by a word list
    with pytest.raises(UnsupportedModel, match="makes tokens"):
        export(folder, tmp_path / "m.gguf")
    (folder / "tokenizer.json").unlink()
    shutil.copy(DEMO_MODEL / "tokenizer_config.json", folder)
    with pytest.raises(PrunetuneError, match="tokenizer"):
        export(folder, tmp_path / "m.gguf")


# --------------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def no_tools(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("PATH", os.defpath)
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path / "llama"))
    monkeypatch.setattr(engines, "_BINDINGS", {})


def test_the_table_holds_model_and_file(tmp_path, no_tools) -> None:
    text = tmp_path / "text.txt"
    text.write_text("".join(f"Question: {i}+5\nAnswer: {i}+5={i + 5}\n#### {i + 5}\n" for i in range(10, 90)))
    done = export(DEMO_MODEL, tmp_path / "m.gguf", quantize="q4_0", text=text)
    model, file = done.rows
    assert (model.bytes, file.bytes) == (
        (DEMO_MODEL / "model.safetensors").stat().st_size,
        Path(done.path).stat().st_size,
    )
    assert 0 < abs(file.perplexity / model.perplexity - 1) < 0.5
    assert f"{100 * (file.perplexity / model.perplexity - 1):+.2f} %" in done.text()
    assert done.faults == ()
    assert any("pip install xllamacpp" in note for note in done.notes)
    assert json.loads(json.dumps(done.to_json()))["rows"][1]["name"] == "q4_0"
    again = export(DEMO_MODEL, tmp_path / "m.gguf", quantize="f16", text=text)  # a file of ours is replaced
    assert again.rows[1].perplexity == pytest.approx(model.perplexity, rel=1e-4)


def test_a_run_s_own_questions_are_the_text(tmp_path, no_tools) -> None:
    run = fake_run(tmp_path / "run", tasks={"demo": 8}, control=False)
    shutil.rmtree(run / "final")
    shutil.copytree(DEMO_MODEL, run / "final")
    assert export(run, tmp_path / "m.gguf").rows[1].perplexity is not None
    done = export(DEMO_MODEL, tmp_path / "n.gguf")
    assert done.rows[1].perplexity is None
    assert any("--text FILE" in note for note in done.notes)


def test_a_file_that_is_another_model_is_a_fault(tmp_path, no_tools, monkeypatch) -> None:
    (tmp_path / "t.txt").write_text("12+3=15\n" * 200)
    other = tiny_model("llama", vocab_size=264)
    monkeypatch.setattr(module, "load_gguf", lambda *_: other)
    (fault,) = export(DEMO_MODEL, tmp_path / "m.gguf", text=tmp_path / "t.txt").faults
    assert "its perplexity is" in fault

    def fail(*_: object) -> None:
        raise RuntimeError("a mismatch")

    monkeypatch.setattr(module, "load_gguf", fail)
    done = export(DEMO_MODEL, tmp_path / "m.gguf", text=tmp_path / "t.txt")
    assert done.faults == ("transformers cannot read it again: a mismatch",)
    assert done.rows[1].perplexity is None


def _tool(folder: Path, name: str, body: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(body)
    (folder / name).chmod(stat.S_IRWXU)


def test_llama_cpp_s_tools_are_used_where_they_are(tmp_path, no_tools) -> None:
    """Doubles that copy a file of ours: what is tested is who is called, with what."""
    home, out = tmp_path / "llama", tmp_path / "m.gguf"
    with pytest.raises(PrunetuneError, match="llama-quantize alone") as e:
        export(DEMO_MODEL, out, quantize="q4_k_m")
    assert "q8_0" in str(e.value)
    made = _written(tmp_path, "q8_0")
    copy = f"import shutil, sys\nshutil.copy({str(made)!r}, sys.argv[sys.argv.index('--outfile') + 1])\n"
    _tool(home, "convert_hf_to_gguf.py", copy + "assert sys.argv[-1] == 'q8_0'\n")
    assert export(DEMO_MODEL, out, quantize="q8_0").by == "llama.cpp's converter"
    _tool(home, "convert_hf_to_gguf.py", "raise SystemExit('BPE pre-tokenizer was not recognized')\n")
    done = export(DEMO_MODEL, out, quantize="q8_0")
    assert done.by == "the gguf package"
    assert any("was not recognized" in note for note in done.notes)
    quantizer = f"#!{sys.executable}\nimport shutil, sys\nassert sys.argv[3] == 'Q4_K_M'\n"
    _tool(home / "build/bin", "llama-quantize", quantizer + f"shutil.copy({str(made)!r}, sys.argv[2])\n")
    assert export(DEMO_MODEL, out, quantize="q4_k_m").by == "the gguf package and llama-quantize"
    assert not list(tmp_path.glob(".whole-*"))


def test_bad_words_are_one_message(tmp_path) -> None:
    with pytest.raises(UnknownName, match="q4_0"):
        export(DEMO_MODEL, tmp_path / "m.gguf", quantize="q4")
    with pytest.raises(MissingPath, match="converter"):
        export(DEMO_MODEL, tmp_path / "m.gguf", converter=str(tmp_path / "none.py"))
    (tmp_path / "theirs.gguf").write_bytes(b"GGUF")
    with pytest.raises(NotWritable, match="none that this command made"):
        export(DEMO_MODEL, tmp_path / "theirs.gguf")
    assert set(TYPES) & set(module.BY_QUANTIZER) == set()


def test_serving_commands_name_this_model(tmp_path) -> None:
    found = dict(commands(DEMO_MODEL, tmp_path / "demo.gguf"))
    assert list(found) == ["vLLM", "SGLang", "llama.cpp", "Ollama"]
    assert found["vLLM"] == f"vllm serve {DEMO_MODEL} --max-model-len 512"
    assert f"-m {tmp_path / 'demo.gguf'}" in found["llama.cpp"]
    assert f"FROM {tmp_path / 'demo.gguf'}" in found["Ollama"]


# ------------------------------------------------------------------------------------------------------- llama.cpp itself

needs_llama_cpp = pytest.mark.skipif(
    engines.without_llama_cpp() is not None, reason=f"llama.cpp: {engines.without_llama_cpp()}"
)
QUESTIONS = [
    f"Question: {a}*{b}-{c}+7-2\nAnswer:" for a, b, c in zip(range(2, 7), range(5, 10), range(1, 6), strict=True)
]
QUESTIONS += [
    f"Question: {a}+{b}-3+8-1\nAnswer:" for a, b in zip(range(11, 86, 5), [*range(1, 9), *range(1, 8)], strict=True)
]


@needs_llama_cpp
def test_llama_cpp_answers_as_transformers_does(tmp_path) -> None:
    """The oracle: twenty prompts, fp16, greedy, and the prompts' tokens too."""
    assert len(QUESTIONS) == 20
    greedy = reference(DEMO_MODEL, QUESTIONS)
    parted, misread = engines.answered(_written(tmp_path, "f16"), DEMO_MODEL, greedy)
    assert (parted, misread) == ([None] * 20, "")


@needs_llama_cpp
@pytest.mark.parametrize("name", [n for n in MODELS if n != "gemma3"])
def test_llama_cpp_computes_each_family(name, tmp_path) -> None:
    family, changes = MODELS[name]
    folder = byte_folder(tmp_path / "model", family, **{"hidden_size": 64, **changes})
    write_gguf(folder, tmp_path / "m.gguf", "f32")
    greedy = reference(folder, QUESTIONS[:4])
    parted, misread = engines.answered(tmp_path / "m.gguf", folder, greedy)
    assert (parted, misread) == ([None] * 4, "")


@pytest.mark.slow
@needs_llama_cpp
@pytest.mark.skipif("PRUNETUNE_MODELS" not in os.environ, reason="PRUNETUNE_MODELS: a folder with smollm2/ in it")
def test_llama_cpp_answers_as_a_cut_smollm2_does(tmp_path) -> None:
    source = Path(os.environ["PRUNETUNE_MODELS"]) / "smollm2"
    gone = {layer: tuple(range(0, 1536, 24)) for layer in range(30) if layer != 20}
    plan = PrunePlan(model_sha=model_sha(source), depth=30, width=1536, drop_layers=(20,), drop_neurons=gone)
    apply_on_disk(source, plan, tmp_path / "cut")
    write_gguf(tmp_path / "cut", tmp_path / "cut.gguf", "f16")
    greedy = reference(
        tmp_path / "cut",
        [
            *QUESTIONS[:10],
            *(f"{w} is" for w in ["Rain", "Bread", "Iron", "Paris", "Love", "A1", "B2", "x=3", "日本", "Zoë"]),
        ],
    )
    parted, misread = engines.answered(tmp_path / "cut.gguf", tmp_path / "cut", greedy)
    assert (parted, misread) == ([None] * 20, "")
    assert parting(greedy, [()] * 20) != [None] * 20
