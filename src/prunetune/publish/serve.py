"""The commands that serve a model in the engines that people use, for this model's folder and GGUF file."""

from __future__ import annotations

import shlex
from pathlib import Path

from prunetune.models.folders import load_config
from prunetune.publish.inputs import final_of


def commands(source: Path, exported: Path, to: str = "gguf") -> list[tuple[str, str]]:
    """(engine, command) of a finished run or a model folder.

    Args:
        source: A run folder or a model folder; checked.
        exported: Its GGUF file, or its folder with fewer bits, which need not be there.
        to: The format of `exported`.

    Raises:
        MissingPath, BadCheckpoint, UnsupportedModel: see `inputs.final_of`.
    """
    final, _ = final_of(source)
    context = int(getattr(load_config(final), "max_position_embeddings", 0) or 4096)
    folder, file = (shlex.quote(str(p)) for p in (final if to == "gguf" else exported, exported))
    served = [
        ("vLLM", f"vllm serve {folder} --max-model-len {context}"),
        ("SGLang", f"python -m sglang.launch_server --model-path {folder} --context-length {context}"),
    ]
    if to != "gguf":
        return served
    name, modelfile = shlex.quote(exported.stem.lower()), shlex.quote(f"FROM {exported.absolute()}")
    return [
        *served,
        ("llama.cpp", f"llama-server -m {file} -c {context}"),
        ("Ollama", f"echo {modelfile} > Modelfile && ollama create {name} -f Modelfile && ollama run {name}"),
    ]
