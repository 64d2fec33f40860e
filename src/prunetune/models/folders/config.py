"""config.json of a model folder, validated: types and sizes that a model can have, before anything is built from them.

A file of a few bytes can ask for a billion layers; a limit far above every published model keeps that a message.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prunetune.common.memory import is_memory
from prunetune.common.reading import read_json
from prunetune.errors import BadCheckpoint, MissingPath, TooLittleMemory, UnsupportedModel, shown
from prunetune.models.families.wrappers import language_of, wrapper_of
from prunetune.models.headers import there

CONFIG = "config.json"


# Ten times and more what any published model has.
Layers = Annotated[int, Field(gt=0, le=2_000)]
Size = Annotated[int, Field(gt=0, le=2**18)]
Width = Annotated[int, Field(gt=0, le=2**20)]
Vocab = Annotated[int, Field(gt=0, le=2**23)]
Heads = Annotated[int, Field(gt=0, le=2**13)]
TokenId = Annotated[int, Field(ge=-1, lt=2**31)]
Number = Annotated[float, Field(allow_inf_nan=False)]


class ConfigFile(BaseModel):
    """The keys of config.json that decide sizes, in every spelling of the families that transformers knows."""

    model_config = ConfigDict(extra="ignore", strict=True)

    model_type: str | None = None
    architectures: list[str] | None = None
    tie_word_embeddings: bool | None = None
    num_hidden_layers: Layers | None = None
    n_layer: Layers | None = None
    n_layers: Layers | None = None
    num_layers: Layers | None = None
    hidden_size: Size | None = None
    n_embd: Size | None = None
    d_model: Size | None = None
    head_dim: Size | None = None
    intermediate_size: Width | list[Any] | None = None
    n_inner: Width | None = None
    vocab_size: Vocab | None = None
    num_attention_heads: Heads | None = None
    num_key_value_heads: Heads | None = None
    n_head: Heads | None = None
    max_position_embeddings: Annotated[int, Field(gt=0, le=2**31)] | None = None
    n_positions: Annotated[int, Field(gt=0, le=2**24)] | None = None
    sliding_window: Annotated[int, Field(ge=0, le=2**31)] | None = None
    layer_types: list[str] | None = None
    rms_norm_eps: Number | None = None
    rope_theta: Number | None = None
    pad_token_id: TokenId | None = None
    bos_token_id: TokenId | list[TokenId] | None = None
    eos_token_id: TokenId | list[TokenId] | None = None
    transformers_weights: None = None
    """A weight file of any name: it could be a pickle."""
    text_config: dict[str, Any] | None = None


def config_values(folder: Path) -> dict[str, Any]:
    """What config.json of a model folder says of the language model: all of it, or of a wrapper that part.

    Without transformers, whose import takes seconds. Raises as `file_values`.
    """
    return language_of(file_values(folder))


def file_values(folder: Path) -> dict[str, Any]:
    """config.json of a model folder as it stands.

    Raises:
        MissingPath: there is none. BadCheckpoint: see `read_config`.
    """
    path = folder / CONFIG
    if not there(path):
        raise MissingPath("this folder has no config.json, so it is no model", value=str(folder), fix="check the path")
    return read_config(path)


def is_wrapper(folder: Path) -> bool:
    """Whether a model folder holds more than a language model."""
    return wrapper_of(file_values(folder)) is not None


def read_config(path: Path) -> dict[str, Any]:
    """A config file. BadCheckpoint if it is no JSON, no mapping, or a key has a type or size that no model has."""
    values = read_json(path, "config")
    if not isinstance(values, dict):
        raise BadCheckpoint("this config.json is no mapping", value=str(path), fix="copy the model again")
    check_config(values, path)
    return values


def check_config(values: Mapping[str, Any], path: Path) -> None:
    """Raise BadCheckpoint if a key of a config has a type or size that no model has; `path` is for the message."""
    inner = values.get("text_config")
    for part in (values, inner if isinstance(inner, dict) else {}):
        try:
            ConfigFile.model_validate(part)
        except ValidationError as e:
            raise _told(e, path) from None


def embedding_rows(config: Mapping[str, Any]) -> int | None:
    """Tokens of the vocabulary, or None where config.json does not say."""
    inner = config.get("text_config")
    rows = config.get("vocab_size", inner.get("vocab_size") if isinstance(inner, dict) else None)
    return None if rows is None else int(rows)


SPECIAL = ("pad_token_id", "bos_token_id", "eos_token_id")


def check_ids(folder: Path) -> None:
    """Raise if a special token of config.json or generation_config.json is no token of the embedding."""
    config = config_values(folder)
    rows = embedding_rows(config)
    for name in SPECIAL:
        for one in _each(config.get(name)):
            check_id(f"{name} of config.json", one, rows, folder)
    generation_values(folder)


def generation_values(folder: Path) -> dict[str, Any]:
    """generation_config.json, or nothing. BadCheckpoint if it is no mapping, or names ids that are no tokens."""
    path = folder / "generation_config.json"
    if not there(path):
        return {}
    values = read_json(path, "generation config")
    if not isinstance(values, dict):
        raise BadCheckpoint("this generation_config.json is no mapping", value=str(path), fix="copy it again")
    rows = embedding_rows(config_values(folder))
    for name in SPECIAL:
        for one in _each(values.get(name)):
            check_id(f"{name} of generation_config.json", one, rows, folder)
    return values


def check_id(name: str, value: object, rows: int | None, folder: Path) -> None:
    """Raise BadCheckpoint unless a value is the id of a token (or none: None, and -1 as old configs have it)."""
    if value is None or (type(value) is int and value >= -1 and (rows is None or value < rows)):
        return
    raise BadCheckpoint(
        f"{name} is no token of the embedding, which has {rows:,} rows" if rows else f"{name} is no token id",
        value=value,
        valid=f"0 to {rows - 1}" if rows else "a whole number",
        fix=f"name a token that the model has, or resize_token_embeddings before saving ({folder})",
    )


def _each(value: object) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _told(e: ValidationError, path: Path) -> BadCheckpoint:
    first = e.errors(include_url=False)[0]
    name = str(first["loc"][0]) if first["loc"] else "?"
    if name == "transformers_weights":
        return BadCheckpoint(
            "this config.json names a weight file of its own (transformers_weights), which is not read",
            value=str(path),
            valid="model.safetensors, or model.safetensors.index.json and its shards",
            fix="load the model once with transformers, and save_pretrained",
        )
    return BadCheckpoint(
        f"{name} of this config cannot be: {shown(first['input'])[:80]} ({first['msg']})",
        value=str(path),
        fix="copy the original model's file again",
    )


def load_config(folder: Path) -> Any:
    """The `PretrainedConfig` of a folder's language model, without weights and without running its code."""
    from transformers import AutoConfig

    whole = file_values(folder)
    try:
        config: Any = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        if wrapper_of(whole) is None:
            return config
        own = language_of(config.to_dict())  # with what the wrapper's class fills in, where its file is brief
        return AutoConfig.for_model(own.pop("model_type"), **{k: v for k, v in own.items() if k != "architectures"})
    except Exception as e:
        # Config classes compute with whatever a file says: any error of theirs is one of the file.
        if is_memory(e):
            raise TooLittleMemory("there is too little memory to read this config", value=str(folder / CONFIG)) from e
        said = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise UnsupportedModel(
            f"transformers cannot read this config ({said[:300]})",
            value=str(folder / CONFIG),
            fix="mend the key that it names; models that need their own code (trust_remote_code) are not supported",
        ) from e
