"""Tokenizers: no end token, no padding token, ids beyond the embedding, files that are none."""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from tests.tiny import tiny_folder

from prunetune.common.device import device_of
from prunetune.common.files import read_json
from prunetune.common.progress import Watch, watching
from prunetune.errors import BadCheckpoint, MissingPath, PrunetuneError, RecipeError, UnknownName
from prunetune.models.folders import load_model, load_tokenizer, pad_id, require_end
from prunetune.models.generation import generate
from prunetune.models.prompt import PromptFormat, encode_example


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("good") / "m")


@pytest.fixture
def folder(good, tmp_path):
    return Path(shutil.copytree(good, tmp_path / "m"))


def change(folder: Path, name: str, **changes) -> None:
    values = read_json(folder / name) if (folder / name).exists() else {}
    (folder / name).write_text(json.dumps({k: v for k, v in {**values, **changes}.items() if v is not ...}))


def without_end(folder: Path) -> Path:
    """Case 16: nothing names an end or a padding token."""
    change(folder, "tokenizer_config.json", eos_token=..., pad_token=...)
    change(folder, "config.json", eos_token_id=None, pad_token_id=None)
    change(folder, "generation_config.json", eos_token_id=..., pad_token_id=...)
    return folder


def test_without_an_end_token_answers_go_to_the_limit(folder, caplog):
    tokenizer = load_tokenizer(without_end(folder))
    assert tokenizer.eos_token_id is None
    assert pad_id(tokenizer) == 0
    assert "has no end token" in caplog.text
    model = load_model(folder)
    prompts = [tokenizer.encode(text) for text in ("1+1=", "what is 12+345?")]
    alone = [generate(model, tokenizer, [p], 9)[0] for p in prompts]
    assert [a.new_tokens for a in alone] == [9, 9]
    assert {a.ended for a in alone} == {"length"}
    assert generate(model, tokenizer, prompts, 9) == alone  # padding is under the mask
    row = encode_example(tokenizer, "1+1?", "2", PromptFormat(), 64)
    assert tokenizer.decode(row.input_ids).endswith("2")


def test_what_cannot_do_without_an_end_says_so(folder):
    tokenizer = load_tokenizer(without_end(folder))
    with pytest.raises(BadCheckpoint, match=r"no end token.*grpo"):
        require_end(tokenizer, "grpo")


@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
def test_the_end_token_may_be_named_by_a_config_alone(folder, name):
    change(without_end(folder), name, eos_token_id=[2, 3])
    tokenizer = load_tokenizer(folder)
    assert tokenizer.eos_token_id == 2
    assert pad_id(tokenizer) == 2
    require_end(tokenizer, "grpo")


def added_token(folder: Path) -> None:
    """A padding token added without resize_token_embeddings."""
    tokenizer = load_tokenizer(folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)


def text(name: str, content: str | bytes):
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def dangling(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").symlink_to(folder / "nowhere")


BROKEN = {
    "pad beyond": (added_token, ["pad_token_id", "no token of the embedding", "104"]),
    "end beyond": (lambda f: change(f, "generation_config.json", eos_token_id=[2, 70_000]), ["eos_token_id", "70000"]),
    "end is text": (lambda f: change(f, "generation_config.json", eos_token_id="2"), ["eos_token_id", "'2'"]),
    "generation config is a list": (text("generation_config.json", "[]"), ["no mapping"]),
    "generation config of 5,000 digits": (
        text("generation_config.json", '{"eos_token_id": ' + "9" * 5000 + "}"), ["generation_config.json", "digits"]
    ),
    "tokenizer is a list": (text("tokenizer.json", "[]"), ["tokenizer cannot be read"]),
    "tokenizer is cut": (text("tokenizer.json", '{"version": "1.0", "model": {'), ["tokenizer cannot be read"]),
    "tokenizer is no text": (text("tokenizer.json", b"\xff\xfe\x00\x01"), ["tokenizer cannot be read"]),
    "its config is a list": (text("tokenizer_config.json", "[]"), ["tokenizer cannot be read"]),
    "its config is nested deep": (text("tokenizer_config.json", "[" * 100_000), ["tokenizer cannot be read"]),
    "its config has a wrong type": (text("tokenizer_config.json", '{"eos_token": 5}'), ["tokenizer cannot be read"]),
    "no tokenizer": (
        lambda f: [(f / n).unlink() for n in ("tokenizer.json", "tokenizer_config.json")], ["tokenizer cannot be read"]
    ),
    "dangling": (dangling, ["link that leads nowhere", "tokenizer.json"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_each_broken_tokenizer_is_one_message(kind, folder):
    make, words = BROKEN[kind]
    make(folder)
    with pytest.raises(PrunetuneError) as e:
        load_tokenizer(folder)
    for word in words:
        assert word in str(e.value)


def test_devices():
    assert device_of("cpu") == "cpu"
    assert device_of() in ("cpu", "cuda")
    with pytest.raises(UnknownName, match="unknown device"):
        device_of("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(RecipeError, match="no GPU"):
            device_of("cuda")


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(MissingPath, match="no such model folder"):
        load_model(tmp_path / "nowhere")


def test_a_token_that_was_added_without_a_row_is_told_where_it_is_used(folder):
    """The tokenizer may know more tokens than the embedding (Gemma 3's image token); a row that uses one is told."""
    tokenizer = load_tokenizer(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.save_pretrained(folder)
    tokenizer = load_tokenizer(folder)
    assert encode_example(tokenizer, "1+1?", "2", PromptFormat(), 64).input_ids
    for question, answer in (("<|im_start|>1+1?", "2"), ("1+1?", "<|im_start|>2")):
        with pytest.raises(BadCheckpoint, match=r"(?s)writes token 104.*im_start.*resize_token_embeddings"):
            encode_example(tokenizer, question, answer, PromptFormat(), 64)


def test_loading_counts_its_tensors(tmp_path):
    calls = []

    class Told(Watch):
        @contextmanager
        def bar(self, name, total=None):
            yield lambda done, total: calls.append((name, done, total))

    folder = tiny_folder(tmp_path / "mine")
    with watching(Told()):
        model = load_model(folder)
    loads = [(done, total) for name, done, total in calls if name == "load mine"]
    assert loads and loads[-1][0] == loads[-1][1] == len(list(model.parameters()))
    assert [done for done, _ in loads] == sorted(done for done, _ in loads)
