"""A model folder written as a GGUF file, tensor by tensor: one tensor in memory, whatever the size of the model.

    write_gguf(folder, path, "q8_0")

Matrices get the type that is asked for. Norms and biases stay in fp32. At five bits and less the embedding and the
head, on which small models depend most, get eight; a matrix whose rows are no multiple of a block (32) gets fp16.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prunetune.common.disk import check_space
from prunetune.common.progress import bar
from prunetune.errors import NotFinite, UnsupportedModel
from prunetune.models.folders import load_config
from prunetune.models.shards import ShardReader, TensorInfo, open_shards
from prunetune.publish.gguf.architectures import Architecture, add_metadata, architecture_of, rope_factors, values_of
from prunetune.publish.gguf.tokenizer import add_tokenizer

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

TYPES = ("f32", "bf16", "f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
"""What the gguf package quantises to, largest first."""
_WHOLE = ("f32", "bf16", "f16", "q8_0")
"""Types that the embedding and the head may have."""


class _Planned:
    """A tensor of the file: where it comes from, its type there, its bytes."""

    def __init__(self, shard: Path, source: str, name: str, info: TensorInfo, kind: GGMLQuantizationType) -> None:
        from gguf import quant_shape_to_byte_shape

        self.shard, self.source, self.name, self.shape, self.kind = shard, source, name, info.shape, kind
        self.stored = info.shape
        plain: dict[str, np.dtype[Any]] = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16)}
        self.dtype = plain.get(kind.name, np.dtype(np.uint8))
        if kind.name not in plain:
            self.stored = tuple(quant_shape_to_byte_shape(info.shape, kind))
        self.nbytes = math.prod(self.stored) * self.dtype.itemsize


def write_gguf(folder: Path, path: Path, quantize: str) -> dict[str, int]:
    """Write a GGUF file.

    Args:
        folder: A checked model folder.
        path: Where; overwritten.
        quantize: One of `TYPES`.

    Returns:
        How many tensors have which type.

    Raises:
        UnsupportedModel: see `architecture_of` and `add_tokenizer`. NotFinite: A weight is too large for fp16.
    """
    from gguf import GGUFWriter, LlamaFileType

    config = load_config(folder)
    architecture = architecture_of(config)
    planned = _plan(folder, config, architecture, quantize)
    factors = rope_factors(config)
    check_space(path.parent, sum(p.nbytes for p in planned), f"the {quantize} GGUF file")
    writer = GGUFWriter(path, architecture.name)
    try:
        writer.add_type("model")
        writer.add_name(folder.resolve().parent.name if folder.name == "final" else folder.resolve().name)
        writer.add_file_type(LlamaFileType["ALL_F32" if quantize == "f32" else f"MOSTLY_{quantize.upper()}"])
        writer.add_quantization_version(2)
        add_metadata(writer, config)
        add_tokenizer(writer, folder, config.vocab_size)
        if factors is not None:
            writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
        for p in planned:
            writer.add_tensor_info(p.name, p.stored, p.dtype, p.nbytes, raw_dtype=p.kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if factors is not None:
            writer.write_tensor_data(factors)
        _write(writer, planned, config, architecture)
    finally:
        writer.close()
    return dict(Counter(p.kind.name.lower() for p in planned))


def _plan(folder: Path, config: Any, architecture: Architecture, quantize: str) -> list[_Planned]:
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

    arch = next(a for a in MODEL_ARCH if MODEL_ARCH_NAMES[a] == architecture.name)
    names = get_tensor_name_map(arch, config.num_hidden_layers)
    planned = []
    for shard, infos in open_shards(folder).items():
        for source, info in infos.items():
            if source.endswith("rotary_emb.inv_freq") or (source == "lm_head.weight" and config.tie_word_embeddings):
                continue
            name = names.get_name(source, try_suffixes=(".weight", ".bias"))
            if name is None:
                raise UnsupportedModel(
                    f"GGUF's {architecture.name} has no place for this tensor", value=source, fix="see --converter"
                )
            planned.append(_Planned(shard, source, name, info, _kind(name, info.shape, quantize)))
    return planned


def _kind(name: str, shape: tuple[int, ...], quantize: str) -> GGMLQuantizationType:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if len(shape) < 2:
        return GGMLQuantizationType.F32
    outer = name in ("token_embd.weight", "output.weight")
    kind = GGMLQuantizationType["Q8_0" if outer and quantize not in _WHOLE else quantize.upper()]
    block, _ = GGML_QUANT_SIZES[kind]
    return kind if shape[-1] % block == 0 else GGMLQuantizationType.F16


def _write(writer: Any, planned: list[_Planned], config: Any, architecture: Architecture) -> None:
    from gguf.quants import quantize

    reader: ShardReader | None = None
    with bar("write GGUF", len(planned)) as progress:
        for done, p in enumerate(planned, start=1):
            if reader is None or reader.path != p.shard:
                reader = ShardReader(p.shard)
            values = values_of(p.source, reader.read(p.source).float().numpy(), config, architecture)
            with np.errstate(over="ignore"):  # told below
                made = quantize(values, p.kind)
            if p.kind.name == "F16" and not np.isfinite(made).all():
                raise NotFinite("a weight is too large for fp16", value=p.source, fix="--quantize bf16 or f32")
            writer.write_tensor_data(made)
            progress(done, len(planned))
