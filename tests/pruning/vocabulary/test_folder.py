"""A model folder with fewer tokens: the same logits for what stays, every id the new one, and plain transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.cli.test_app import call
from tests.pruning.vocabulary.toy import OTHERS, file_of, task, toy
from tests.tiny import tiny_folder, tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from prunetune.data.example import Example
from prunetune.errors import UnsupportedModel
from prunetune.models.cost import params
from prunetune.models.folders import check_model_folder
from prunetune.pruning.vocabulary.folder import Fitted, cut_vocabulary, fit, left_out
from prunetune.pruning.vocabulary.ids import ids_in, renumbered

CHAT = "{% for m in messages %}<think>{{ m.role }}: {{ m.content }}<eos>{% endfor %}{% if add_generation_prompt %}<think>assistant:{% endif %}"
TASK = [Example(*text.split("\n", 1), "task") for text in task() if "\n" in text]
MODELS = {
    "byte-level": ("qwen2", False),
    "whole-words": ("llama", True),
    "byte-fallback": ("gemma3_text", True),
    "metaspace": ("mistral", False),
}
"""Kind of tokenizer -> (family, tied)."""


def folder_of(kind: str, at: Path) -> Path:
    """A model whose embedding has 40 rows more than there are tokens, in several shards, with ids in many places."""
    tokenizer, (family, tied) = toy(kind), MODELS[kind]
    ids = {name: tokenizer.convert_tokens_to_ids(f"<{name}>") for name in ("pad", "bos", "eos")}
    rows = len(file_of(tokenizer).tokens) + 40
    model = tiny_model(
        family, vocab_size=rows, tie_word_embeddings=tied, **{f"{k}_token_id": v for k, v in ids.items()}
    )
    model.generation_config.eos_token_id = [ids["eos"], tokenizer.convert_tokens_to_ids("<think>")]
    model.generation_config.suppress_tokens = [rows - 1]
    model.save_pretrained(at, max_shard_size="60KB")
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(at)
    (at / "vocab.json").write_text(json.dumps(tokenizer.get_vocab()))
    (at / "LICENSE").write_text("free")
    config = json.loads((at / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"] = {str(ids["eos"]): {"content": "<eos>", "special": True}}
    (at / "tokenizer_config.json").write_text(json.dumps(config))
    return at


@pytest.fixture(scope="module", params=MODELS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Fitted]:
    at = tmp_path_factory.mktemp(request.param)
    source = folder_of(request.param, at / "model")
    fitted = fit(source, TASK, [Example("", OTHERS[1], "guard")], align=8)
    cut_vocabulary(source, fitted, at / "small")
    return source, at / "small", fitted


def test_logits_of_kept_tokens_are_the_originals(made: tuple[Path, Path, Fitted]) -> None:
    """The same text, tokenised by each folder's own tokenizer, in plain transformers."""
    source, small, fitted = made
    old, new = (AutoModelForCausalLM.from_pretrained(f, dtype=torch.float32).eval() for f in (source, small))
    a, b = AutoTokenizer.from_pretrained(source), AutoTokenizer.from_pretrained(small)
    rows = torch.tensor(fitted.kept.rows)
    assert new.config.vocab_size == len(rows) < 0.9 * old.config.vocab_size and len(rows) % 8 == 0
    for example in TASK[:4]:
        before, after = (t(example.question, return_tensors="pt")["input_ids"][:, :200] for t in (a, b))
        assert torch.equal(rows[after], before)
        with torch.inference_mode():
            wanted, found = old(before).logits[..., rows], new(after).logits
        assert torch.allclose(found, wanted, atol=1e-5)


def test_every_id_is_the_new_one(made: tuple[Path, Path, Fitted]) -> None:
    source, small, fitted = made
    new = {o: n for n, o in enumerate(fitted.kept.rows)}
    for name in ("config.json", "generation_config.json"):
        old_values, values = (json.loads((f / name).read_text()) for f in (source, small))
        for key in ("pad_token_id", "bos_token_id"):
            assert values[key] == new[old_values[key]]
    before = json.loads((source / "generation_config.json").read_text())
    assert values["eos_token_id"] == [new[i] for i in before["eos_token_id"]]
    assert (
        values["suppress_tokens"] == [new[before["suppress_tokens"][0]]]
        and values["suppress_tokens"][0] >= fitted.kept.tokens
    )
    a, b = AutoTokenizer.from_pretrained(source), AutoTokenizer.from_pretrained(small)
    for special in ("pad_token_id", "bos_token_id", "eos_token_id", "unk_token_id"):
        assert getattr(b, special) == new[getattr(a, special)]
    assert b("")["input_ids"] == [new[i] for i in a("")["input_ids"]]  # the template's BOS
    assert {t: new[i] for t, i in a.get_added_vocab().items()} == b.get_added_vocab()
    record = json.loads((small / "kept_tokens.json").read_text())
    assert record == {
        "original_rows": json.loads((source / "config.json").read_text())["vocab_size"],
        "rows": list(fitted.kept.rows),
    }


def test_what_would_contradict_it_is_left_out_and_the_rest_is_there(made: tuple[Path, Path, Fitted]) -> None:
    source, small, _ = made
    assert left_out(source) == ["vocab.json"] and not (small / "vocab.json").exists()
    assert (small / "LICENSE").read_text() == "free"
    check_model_folder(small)


def test_a_chat_is_cut_alike(made: tuple[Path, Path, Fitted]) -> None:
    source, small, fitted = made
    a, b = AutoTokenizer.from_pretrained(source), AutoTokenizer.from_pretrained(small)
    for example in TASK[:4]:
        chat = [{"role": "user", "content": example.question}, {"role": "assistant", "content": example.answer}]
        for turns, opened in ((chat, False), (chat[:1], True)):
            before, after = (
                t.apply_chat_template(turns, add_generation_prompt=opened, return_dict=True)["input_ids"]
                for t in (a, b)
            )
            assert [fitted.kept.rows[i] for i in after] == before


def test_it_saves_and_loads_again(made: tuple[Path, Path, Fitted], tmp_path: Path) -> None:
    _, small, _ = made
    model, tokenizer = AutoModelForCausalLM.from_pretrained(small), AutoTokenizer.from_pretrained(small)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again, read = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    ids = torch.tensor([tokenizer(OTHERS[2])["input_ids"]])
    assert read(OTHERS[2])["input_ids"] == ids[0].tolist()
    with torch.inference_mode():
        assert torch.equal(again(ids).logits, model(ids).logits)
    assert read.decode(ids[0], skip_special_tokens=True) == OTHERS[2]
    assert again.generate(ids, max_new_tokens=3, do_sample=False).shape[1] > ids.shape[1]


def test_ids_are_found_wherever_they_stand() -> None:
    values = {
        "eos_token_id": [1, 2], "pad_token_id": -1, "bos_token_id": None, "vocab_size": 9,
        "vision_config": {"image_token_index": 3}, "image_token_id": 4, "bad_words_ids": [[5], [6, 7]],
        "forced_decoder_ids": [[8, 5]], "sequence_bias": [[[1, 8], -2.0]], "layers": [{"boi_token_index": 0}],
        "num_tokens": 3, "max_length": 4,
    }  # fmt: skip
    assert ids_in(values) == {0, 1, 2, 3, 4, 5, 6, 7, 8}
    new = renumbered(values, {i: 10 + i for i in range(9)})
    assert new["eos_token_id"] == [11, 12] and new["pad_token_id"] == -1 and new["bos_token_id"] is None
    assert new["vision_config"] == {"image_token_index": 13} and new["layers"] == [{"boi_token_index": 10}]
    assert new["bad_words_ids"] == [[15], [16, 17]] and new["forced_decoder_ids"] == [[8, 15]]
    assert new["sequence_bias"] == [[[11, 18], -2.0]]
    assert (new["vocab_size"], new["num_tokens"], new["max_length"]) == (9, 3, 4)


def test_a_tokenizer_that_is_no_bpe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="it has a WordLevel tokenizer"):
        fit(tiny_folder(tmp_path / "model"), TASK)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = folder_of("byte-level", tmp_path / "model")
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"question": e.question, "answer": e.answer}) + "\n" for e in TASK))
    other = tmp_path / "other.txt"
    other.write_text(OTHERS[2])
    words = ["vocabulary", source, tmp_path / "small", "--data", data, "--measure", other, "--align", "8"]
    code, said, _ = call(capsys, *words, "--json")
    assert code == 0
    told = json.loads(said)
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    assert told["params"] == params(config) < told["original_params"] and told["rows"] == config["vocab_size"]
    assert told["lengths"]["data"]["ratio"] == 1.0 and told["lengths"]["data"]["alike"] == len(TASK)
    assert told["lengths"][str(other)]["ratio"] > 1.1 and told["left_out"] == ["vocab.json"]
    code, said, err = call(capsys, *words)
    assert code == 0 and "made already" in err and "left out" in said
    code, said, _ = call(capsys, *words[:2], tmp_path / "less", "--data", data, "--keep", 296, "--align", "8", "--json")
    assert code == 0 and json.loads(said)["rows"] == 296 and json.loads(said)["lost"] > 0
    code, _, err = call(capsys, *words[:2], tmp_path / "no", "--data", data, "--keep", 60)
    assert code == 2 and "need more room" in err and not (tmp_path / "no").exists()
    code, _, err = call(capsys, *words[:2], tmp_path / "small", "--data", other)
    assert code == 2 and "made with other arguments" in err
