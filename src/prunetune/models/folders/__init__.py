"""A model on disk: found by name (`find`), checked before any work (`check`), loaded (`load`); GGUF files (`gguf`).

    folder = resolve_model("demo")           # what is wrong with a checkpoint is told here, before any work
    model, tokenizer = load_model(folder), load_tokenizer(folder)

Whatever a folder holds is untrusted: every file is validated, nothing of it runs, and only safetensors are read.

Others take the names below.
To add a kind of source: one function in `find`, called by `resolve_model`.
"""

from prunetune.models.folders.check import check_model_folder, check_weights
from prunetune.models.folders.config import config_values, is_wrapper, load_config, read_config
from prunetune.models.folders.find import (
    DEMO_MODEL,
    check_slip,
    gguf_of,
    hub_config,
    is_here,
    model_sha,
    resolve_model,
)
from prunetune.models.folders.gguf import from_gguf, gguf_config, load_gguf
from prunetune.models.folders.load import (
    TOKENIZER_FILES,
    check_tokens,
    copy_files,
    load_model,
    load_tokenizer,
    pad_id,
    require_end,
)

__all__ = [
    "DEMO_MODEL",
    "TOKENIZER_FILES",
    "check_model_folder",
    "check_slip",
    "check_tokens",
    "check_weights",
    "config_values",
    "copy_files",
    "from_gguf",
    "gguf_config",
    "gguf_of",
    "hub_config",
    "is_here",
    "is_wrapper",
    "load_config",
    "load_gguf",
    "load_model",
    "load_tokenizer",
    "model_sha",
    "pad_id",
    "read_config",
    "require_end",
    "resolve_model",
]
