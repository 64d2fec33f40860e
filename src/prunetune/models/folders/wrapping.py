"""A wrapper's language model as a folder of its own, and back into the wrapper: shard by shard, all else byte for byte.

unwrap(folder, alone)                # a stock language model
rewrap(folder, alone, out)           # the wrapper again, with the weights of `alone`
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from prunetune.common.files import check_space, fresh
from prunetune.common.strict_json import to_json_text
from prunetune.errors import BadCheckpoint
from prunetune.models.families.wrappers import Wrapper, own_name, wrapper_of
from prunetune.models.folders.config import CONFIG, file_values, load_config
from prunetune.models.folders.load import TOKENIZER_FILES, copy_files
from prunetune.models.shards import ShardReader, TensorInfo, open_shards, rewrite

IMAGE_FILES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
"""What a processor of images reads beside the tokenizer's files."""

Kept = dict[Path, dict[str, tuple[str, TensorInfo]]]


def class_of(config: Any) -> str:
    """The name of transformers' causal language model of a config."""
    from transformers import AutoModelForCausalLM

    auto: Any = AutoModelForCausalLM
    with torch.device("meta"):
        return type(auto.from_config(config)).__name__


def unwrap(source: Path, out: Path) -> None:
    """Write the language model of a wrapper as a stock model of its own.

    Args:
        source: A wrapper's folder.
        out: A folder that does not exist yet, or is empty.
    """
    wrapper, config = _wrapper(source), load_config(source)
    kept: Kept = {
        path: {n: (own_name(n), info) for n, info in infos.items() if not wrapper.is_other(n)}
        for path, infos in open_shards(source).items()
    }
    with fresh(out) as tmp:
        check_space(out, _size(kept), "the language model alone")
        tmp.mkdir()
        rewrite(kept, lambda name, tensor: tensor, tmp)
        values = config.to_dict() | {"architectures": [class_of(config)]}
        (tmp / CONFIG).write_text(to_json_text(values, ensure_ascii=False) + "\n", encoding="utf-8")
        copy_files(source, tmp)


def rewrap(source: Path, alone: Path, out: Path) -> None:
    """Write a wrapper anew, with other weights for its language model, of the same shapes.

    Args:
        source: The wrapper's folder; its other parts and its config.json are copied byte for byte.
        alone: A folder of its language model alone.
        out: A folder that does not exist yet, or is empty.

    Raises:
        BadCheckpoint: `alone` lacks a tensor.
    """
    wrapper = _wrapper(source)
    found = {name: (path, info) for path, infos in open_shards(alone).items() for name, info in infos.items()}

    def stored(name: str, info: TensorInfo) -> TensorInfo:
        if wrapper.is_other(name):
            return info
        if own_name(name) not in found:
            raise BadCheckpoint("the language model lacks a tensor of the wrapper", value=f"{alone}: {own_name(name)}")
        return found[own_name(name)][1]

    def change(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if wrapper.is_other(name):
            return tensor
        with ShardReader(found[own_name(name)][0]) as reader:
            return reader.read(own_name(name))

    kept: Kept = {
        path: {name: (name, stored(name, info)) for name, info in infos.items()}
        for path, infos in open_shards(source).items()
    }
    with fresh(out) as tmp:
        check_space(out, _size(kept), "the wrapper")
        tmp.mkdir()
        rewrite(kept, change, tmp)
        shutil.copyfile(source / CONFIG, tmp / CONFIG)
        copy_files(source, tmp, IMAGE_FILES)
        copy_files(alone, tmp, TOKENIZER_FILES)


def _wrapper(folder: Path) -> Wrapper:
    wrapper = wrapper_of(file_values(folder))
    if wrapper is None:
        raise BadCheckpoint("this model wraps no language model: it is one", value=str(folder))
    return wrapper


def _size(kept: Kept) -> int:
    return sum(info.nbytes for names in kept.values() for _, info in names.values()) + (1 << 20)
