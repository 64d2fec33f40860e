"""GGUF checkpoints: their header read without the weights, and the whole written once as a plain Hugging Face folder.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The header is read here, since the gguf package makes
a Python object of each of its hundreds of thousands of vocabulary entries (11 s for Gemma 3 270M; this takes 0.2 s).
"""

from __future__ import annotations

import importlib.util
import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunetune.common.files import file_sha, once
from prunetune.common.memory import filling, is_memory
from prunetune.common.progress import bar
from prunetune.errors import BadCheckpoint, MissingExtra, PrunetuneError, TooLittleMemory, UnsupportedModel
from prunetune.models.families import FAMILIES, named
from prunetune.models.folders.config import check_config

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_KEPT = 4096
"""Longer arrays (vocabularies) are stepped over."""


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says before its weights: metadata, and each tensor's shape (outermost dimension first)."""

    values: Mapping[str, Any]
    tensors: Mapping[str, tuple[int, ...]]


class _Bytes:
    """A position in a file's bytes; running past its end is a struct.error."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0

    def take(self, form: str) -> Any:
        form = "<" + form
        found = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return found[0] if len(found) == 1 else found

    def skip(self, size: int) -> None:
        if size > len(self.data) - self.at:
            raise struct.error("a value runs past the end of the file")
        self.at += size

    def text(self) -> str:
        start, size = self.at + 8, self.take("Q")
        self.skip(size)
        return self.data[start : start + size].decode("utf-8", errors="replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind in _SCALARS:
            return self.take(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY or depth > 2:
            raise struct.error(f"unknown type {kind} of a value")
        return self._array(depth)

    def _array(self, depth: int) -> Any:
        kind, count = self.take("I"), self.take("Q")
        if count <= _KEPT:
            return [self.value(kind, depth + 1) for _ in range(count)]
        if kind in _SCALARS:
            self.skip(count * struct.calcsize(_SCALARS[kind]))
        elif kind == _STRING:
            data, at, read = self.data, self.at, struct.Struct("<Q").unpack_from
            for _ in range(count):
                at += 8 + read(data, at)[0]
            self.at = at
        else:
            raise struct.error("an array of arrays")
        return None


def read_gguf(path: Path) -> GgufHeader:
    """The header of a GGUF file. BadCheckpoint if it is none, truncated or of another version."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _header(_Bytes(data))
    except (struct.error, ValueError, OverflowError) as e:
        raise BadCheckpoint(
            f"this is no GGUF file that can be read ({e})", value=str(path), fix="copy or download it again"
        ) from None


def _header(read: _Bytes) -> GgufHeader:
    if read.data[:4] != b"GGUF":
        raise ValueError("it does not begin with GGUF")
    read.skip(4)
    if (version := read.take("I")) not in (2, 3):
        raise ValueError(f"version {version}; 2 and 3 are known")
    tensors, pairs = read.take("QQ")
    values = {}
    for _ in range(pairs):
        key = read.text()
        values[key] = read.value(read.take("I"))
    shapes: dict[str, tuple[int, ...]] = {}
    for _ in range(tensors):
        name, dims = read.text(), read.take("I")
        if dims > 4:
            raise ValueError(f"{name} has {dims} dimensions")
        shapes[name] = tuple(read.take("Q") for _ in range(dims))[::-1]
        read.skip(12)  # type, offset
    return GgufHeader(values, shapes)


# GGUF's name of an architecture -> `model_type`, where they differ.
_TYPES = {"gemma3": "gemma3_text"}

# config.json -> key under the architecture's name.
_KEYS = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "max_position_embeddings": "context_length",
    "sliding_window": "attention.sliding_window",
}


def gguf_config(path: Path) -> dict[str, Any]:
    """What config.json would say of a GGUF file's sizes, from its header alone; nothing is written.

    Raises:
        BadCheckpoint: see `read_gguf`; or a size is missing. UnsupportedModel: an architecture that is not cut here.
    """
    header = read_gguf(path)
    arch = header.values.get("general.architecture")
    model_type = _TYPES.get(str(arch), str(arch))
    if model_type not in FAMILIES or FAMILIES[model_type].experts:
        raise UnsupportedModel("this model family is not supported as GGUF", value=arch, valid=named(model_type))
    config: dict[str, Any] = {k: header.values.get(f"{arch}.{v}") for k, v in _KEYS.items()}
    config = {k: v for k, v in config.items() if v is not None}
    config.setdefault("num_key_value_heads", config.get("num_attention_heads"))
    table = header.tensors.get("token_embd.weight")
    if table is None or len(table) != 2:
        raise BadCheckpoint("this GGUF file has no embedding", value=str(path), fix="convert the model again")
    uneven = next((k for k, v in config.items() if isinstance(v, list)), None)
    if uneven is not None and len(set(config[uneven])) > 1:
        raise UnsupportedModel(
            f"this model ({arch}) has another {uneven} in each layer", valid=f"dense models of {named(model_type)}"
        )
    config = {k: v[0] if isinstance(v, list) and v else v for k, v in config.items()}
    biases = {name.split(".", 2)[2] for name in header.tensors if name.startswith("blk.0.") and name.endswith(".bias")}
    config |= {
        "model_type": model_type,
        "vocab_size": table[0],
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "attention_bias": "attn_output.bias" in biases,
        "mlp_bias": "ffn_down.bias" in biases,
    }
    check_config(config, path)
    for key in ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads"):
        if config.get(key) is None:
            raise BadCheckpoint(
                f"this GGUF file does not say its {key}", value=str(path), fix="convert the model again"
            )
    if config.get("sliding_window"):
        config["layer_types"] = _layer_types(config, header.values.get(f"{arch}.attention.sliding_window_pattern"))
        config["use_sliding_window"] = True
    return config


def _layer_types(config: Mapping[str, Any], pattern: object) -> list[str]:
    """Which layers see a window. llama.cpp has a family's pattern in its code: gemma3 is 5:1."""
    depth = config["num_hidden_layers"]
    if isinstance(pattern, list) and len(pattern) == depth:
        return ["sliding_attention" if sliding else "full_attention" for sliding in pattern]
    every = pattern if isinstance(pattern, int) and pattern else FAMILIES[config["model_type"]].full_every
    every = 6 if every is None else every
    return ["full_attention" if every and (i + 1) % every == 0 else "sliding_attention" for i in range(depth)]


def from_gguf(path: Path, cache: Path | None = None) -> Path:
    """Write a GGUF checkpoint as a plain bf16 Hugging Face folder, once, and return that folder.

    Raises:
        MissingExtra: the gguf package is not installed. BadCheckpoint, UnsupportedModel: see `gguf_config`; or
            transformers cannot read the file, or it lacks tensors. TooLittleMemory.
    """
    if importlib.util.find_spec("gguf") is None:
        raise MissingExtra("gguf", "gguf", "reading a GGUF checkpoint")
    read_gguf(path)
    cache = cache or Path.home() / ".cache" / "prunetune"
    sha = file_sha(path)
    return once(cache / f"{path.stem}-{sha}", {"gguf": sha, "format": 1}, lambda tmp: _write(path, tmp))


def load_gguf(path: Path, dtype: Any) -> Any:
    """A GGUF checkpoint's model by transformers' own loader, dequantised to a torch dtype; in eval mode.

    Raises:
        BadCheckpoint: It lacks tensors; whatever else transformers finds amiss is raised as it is.
    """
    from transformers import AutoModelForCausalLM, GgufConfig

    auto: Any = AutoModelForCausalLM
    values = sum(math.prod(shape) for shape in read_gguf(path).tensors.values())
    # Read, then each tensor in fp32: transformers tells nobody how far it is, but the memory does.
    with bar(f"dequantise {path.name} (MB)") as progress, filling(progress, path.stat().st_size + 4 * values):
        model, info = auto.from_pretrained(
            path.parent, gguf_file=path.name, dtype=dtype, output_loading_info=True,
            quantization_config=GgufConfig(dequantize=True),
        )  # fmt: skip
    if lost := sorted(info["missing_keys"]):
        raise BadCheckpoint(
            f"this GGUF file lacks {len(lost)} tensors of the model ({', '.join(lost[:3])} ...)",
            value=str(path),
            fix="convert the model again",
        )
    return model.eval()


def _write(path: Path, tmp: Path) -> None:
    import torch
    from transformers import AutoTokenizer

    try:
        model = load_gguf(path, torch.bfloat16)
        with bar(f"write {path.name} as a folder", 2) as progress:
            model.save_pretrained(tmp)
            progress(1, 2)
            AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(tmp)
    except PrunetuneError:
        raise
    except Exception as e:  # readers of an untrusted file: whatever they raise is a fault of the file
        if is_memory(e):
            raise TooLittleMemory("there is too little memory to dequantise this file", value=str(path)) from e
        said = (str(e).strip().splitlines() or [""])[0]
        raise BadCheckpoint(
            f"transformers cannot read this GGUF file ({type(e).__name__}: {said[:200]})",
            value=str(path),
            fix="convert the model again, or pass its Hugging Face folder",
        ) from e
