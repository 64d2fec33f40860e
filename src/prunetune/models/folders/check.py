"""What is wrong with a checkpoint, told before any work: every command checks the same things in the same place.

    check_model_folder(folder)     # config, index, headers: no torch, no weights read; whole for the supported families
    check_weights(folder)          # the same, and for other families what transformers would make of the headers

transformers fills what a file lacks with random numbers and drops what it does not know, without an error. So the
tensors that the headers name are held against those that the config asks for, by name and shape, both ways.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from prunetune.common.memory import is_memory
from prunetune.errors import BadCheckpoint, MissingPath, TooLittleMemory, UnsupportedModel
from prunetune.models.families import Family, families, family_of, layer_of, named
from prunetune.models.families.wrappers import own_name, wrapper_of
from prunetune.models.folders.config import CONFIG, check_ids, config_values, file_values
from prunetune.models.folders.faults import (
    Faults,
    adapter_in,
    check_architecture,
    check_depth,
    check_own_head,
    check_types,
    check_uneven,
    merge_first,
    told,
)
from prunetune.models.headers import Headers, read_headers, there
from prunetune.models.shape import Shape
from prunetune.models.tensors import expected_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Old checkpoints hold these tables, which are computed, not learned; transformers drops them too.
_COMPUTED = "rotary_emb.inv_freq"

_good: dict[tuple[Path, bool], tuple[object, ...]] = {}
"""Folders that passed -> what their files were then, so that a run does not check a model again at each load."""


def check_model_folder(path: Path) -> None:
    """Raise unless the folder holds a config and safetensors weights that fit each other.

    Raises:
        MissingPath: a file is missing. BadCheckpoint, UnsupportedModel: the weights are not those of the config, not
            those of a causal language model, not plain numbers, or unsafe to read.
    """
    _once(path, False, _check_files)


def check_weights(path: Path) -> None:
    """As `check_model_folder`, and for families that are not cut here what transformers makes of the headers."""
    _once(path, True, _check_fully)


def _once(path: Path, fully: bool, check: Any) -> None:
    key, state = (path.resolve(), fully), _state(path)
    if _good.get(key) != state:
        check(path)
        _good[key] = state


def _state(path: Path) -> tuple[object, ...]:
    """Names, sizes and times of what is checked."""
    if not path.is_dir():
        return ()
    files = [p for p in sorted(path.iterdir()) if p.suffix in (".json", ".safetensors", ".bin") and p.is_file()]
    return tuple((p.name, s.st_size, s.st_mtime_ns) for p in files for s in [p.stat()])


def _check_fully(path: Path) -> None:
    _check_files(path)
    if config_values(path).get("model_type") not in families():
        _check_by_transformers(path)


def _check_files(path: Path) -> None:
    if not path.is_dir():
        raise MissingPath("no such model folder", value=str(path), fix="check the path")
    if adapter := adapter_in(path):
        raise merge_first(adapter, alone=not (path / CONFIG).exists())
    config = config_values(path)
    _check_files_there(path)
    check_architecture(config, path)
    if config.get("quantization_config"):
        raise UnsupportedModel(
            "this model is already quantised (quantization_config)",
            value=str(path / CONFIG),
            fix="take the model in bf16; or dequantise it once with transformers and save_pretrained",
        )
    headers = read_headers(path)
    check_types(headers)
    check_ids(path)
    if config.get("model_type") in families():
        _check_family(config, headers, path)


def _check_files_there(path: Path) -> None:
    if any(there(p) for p in sorted(path.glob("*.safetensors"))):
        return
    if any(path.glob("*.bin")) or any(path.glob("*.pt")) or any(path.glob("*.pth")):
        raise BadCheckpoint(
            "these weights are pickles, which can run code when loaded; only safetensors are read",
            value=str(path),
            fix="convert them once: AutoModelForCausalLM.from_pretrained(...).save_pretrained(...)",
        )
    raise MissingPath("this model folder has no *.safetensors weights", value=str(path), fix="check the path")


def _check_family(config: Mapping[str, Any], headers: Headers, path: Path) -> None:
    """Names and shapes of a supported family, without transformers."""
    family = family_of(dict(config))
    embedding, head = f"{family.embedding}.weight", f"{family.head}.weight"
    found = {name: stored.shape for tensors in headers.values() for name, stored in tensors.items()}
    wanted, tied = expected_tensors(config), Shape.of(dict(config)).tied
    if tied and head in found:  # the file may hold the shared table under both names
        wanted[head] = wanted[embedding]
    if wrapper := wrapper_of(file_values(path)):
        found = {own_name(name): size for name, size in found.items() if not wrapper.is_other(name)}
    found = _with_base({n: size for n, size in found.items() if not n.startswith(family.unread)}, family)
    if family.experts:
        found = _merged(found, family, Shape.of(dict(config)).experts)
    check_uneven(found, family, path)
    faults = compare({n: s for n, s in found.items() if not n.endswith(family.buffers)}, wanted, path)
    if faults:
        raise told(faults, found, config, path)
    if tied and head in wanted:
        stored = {own_name(name): name for tensors in headers.values() for name in tensors}
        check_own_head(headers, path, stored.get(embedding, embedding), stored.get(head, head))


def _with_base(found: Mapping[str, tuple[int, ...]], family: Family) -> dict[str, tuple[int, ...]]:
    """Names as a causal language model has them: a base model's file lacks the `model.` in front."""
    base, found = f"{family.base}.", {family.stored.get(n, n): size for n, size in found.items()}
    if any(name.startswith("layers.0.") for name in found) and not any(n.startswith(base) for n in found):
        return {n if n.startswith(f"{family.head}.") else f"{base}{n}": size for n, size in found.items()}
    return dict(found)


def _merged(found: Mapping[str, tuple[int, ...]], family: Family, experts: int) -> dict[str, tuple[int, ...]]:
    """Sizes as the model has them: one tensor of all experts where the file has one an expert."""
    layers: dict[int, dict[str, tuple[int, ...]]] = {}
    merged = {}
    for name, size in found.items():
        if at := layer_of(family, name):
            layers.setdefault(at[0], {})[at[1]] = size
        else:
            merged[name] = size
    for i, tensors in layers.items():
        held = family.experts.merged(tensors, experts) if family.experts else tensors
        merged |= {f"{family.layers}.{i}.{suffix}": size for suffix, size in held.items()}
    return merged


def compare(found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]], path: Path) -> Faults:
    """What a checkpoint lacks, holds besides, and holds in another shape."""
    return Faults(
        path,
        missing=sorted(wanted.keys() - found.keys()),
        unexpected=sorted(n for n in found.keys() - wanted.keys() if not n.endswith(_COMPUTED)),
        mismatched=[(n, found[n], wanted[n]) for n in sorted(found.keys() & wanted.keys()) if found[n] != wanted[n]],
    )


def _check_by_transformers(path: Path) -> None:
    """A load without weights: transformers says what the headers would leave random, drop or not fit."""
    import transformers
    from transformers.utils import logging

    from prunetune.models.folders.config import load_config

    check_depth(config_values(path), read_headers(path), path)
    config, auto = load_config(path), cast(Any, transformers.AutoModelForCausalLM)
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error(), logging.disable_progress_bar()
    try:
        model, info = auto.from_pretrained(
            path, config=config, device_map="meta", use_safetensors=True, trust_remote_code=False,
            local_files_only=True, ignore_mismatched_sizes=True, output_loading_info=True,
        )  # fmt: skip
    except Exception as e:  # whatever a config class or a model class raises is a fault of what they were given
        if is_memory(e):
            raise TooLittleMemory("there is too little memory to build this model", value=str(path)) from e
        said = (str(e).strip().splitlines() or [""])[0]
        raise UnsupportedModel(
            f"transformers cannot build this model ({type(e).__name__}: {said[:200]})",
            value=str(path),
            valid=f"causal language models of transformers; for cutting: {named(str(config.model_type))}",
        ) from e
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
    check_loaded(path, model, info)
    headers = read_headers(path)
    names = {name for tensors in headers.values() for name in tensors}
    for target, source in getattr(model, "all_tied_weights_keys", {}).items():
        if {target, source} <= names:
            check_own_head(headers, path, source, target)


def check_loaded(path: Path, model: PreTrainedModel, info: Mapping[str, Iterable[Any]]) -> None:
    """Raise what transformers' `output_loading_info` tells of a load: what is random, dropped or misfits."""
    mismatched = [(str(n), tuple(a), tuple(b)) for n, a, b in info.get("mismatched_keys", ())]
    faults = Faults(path, sorted(info.get("missing_keys", ())), sorted(info.get("unexpected_keys", ())), mismatched)
    if faults:
        found = {name: s.shape for tensors in read_headers(path).values() for name, s in tensors.items()}
        raise told(faults, found, config_values(path), path, whole=len(model.state_dict()))
