"""Remove neurons and layers for good (the step "prune" of Algorithm 1): one pure function, two drivers.

`cut_tensor` says what becomes of one tensor; `cut_config` what becomes of the config. The drivers feed them all tensors
of a model, from memory or shard by shard from disk, and so agree bit for bit. A layer is never deleted from the
ModuleList, whose modules remember their index: the config is cut, the model is built from it, the cut tensors are
loaded (method, section 8).
"""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Shaped
from transformers import PreTrainedModel

from prunetune.errors import BadCheckpoint, PlanError, UnsupportedModel
from prunetune.family import Cut, Family, family_of
from prunetune.plan import PrunePlan
from prunetune.shards import ShardReader, ShardWriter, TensorInfo, open_shards, shard_name, write_index
from prunetune.store import check_model_folder, copy_files, disk_errors, load_config, model_sha, read_json

Patch = Mapping[str, Shaped[torch.Tensor, "..."]]
Tensor = Shaped[torch.Tensor, "..."]

EXTRA_FILES = ("chat_template.json", "tekken.json", "LICENSE", "LICENSE.txt", "NOTICE")
EXTRA_FOLDERS = ("additional_chat_templates",)


# ------------------------------------------------------------------------------------------------------ pure decisions


def layer_of(family: Family, name: str) -> tuple[int, str] | None:
    """(layer, suffix) of a tensor inside a decoder layer, else None. `model.` may be missing (a base model's file)."""
    prefix, _, last = family.layers.rpartition(".")
    found = re.match(rf"(?:{re.escape(prefix)}\.)?{re.escape(last)}\.(\d+)\.(.+)", name)
    return (int(found[1]), found[2]) if found else None


def cut_name(plan: PrunePlan, family: Family, name: str) -> str | None:
    """The name that a source tensor has in the result, its layer renumbered; None if its layer is dropped."""
    at = layer_of(family, name)
    if at is None:
        return name
    layer, suffix = at
    _check_layer(plan, layer, name)
    if layer in plan.drop_layers:
        return None
    new = layer - sum(dropped < layer for dropped in plan.drop_layers)
    return f"{name[: -len(f'{layer}.{suffix}')]}{new}.{suffix}"


def cut_tensor(plan: PrunePlan, patch: Patch, family: Family, name: str, tensor: Tensor) -> Tensor | None:
    """What becomes of one tensor of the source.

    Args:
        plan: What goes.
        patch: Tensors, by their name in the source, that replace the cut ones (compensated weights); of the cut shape.
        family: Where the neurons are.
        name: The tensor's name in the source.
        tensor: The tensor.

    Returns:
        None if its layer is dropped; the tensor itself, not a copy, if nothing of it goes; else a new tensor.

    Raises:
        PlanError: the tensor or its patch does not have the shape that the plan says.
    """
    at = layer_of(family, name)
    if at is None:
        return _patched(patch, name, tensor)
    layer, suffix = at
    _check_layer(plan, layer, name)
    if layer in plan.drop_layers:
        return None
    cut = next((c for c in family.cuts if c.suffix == suffix), None)
    if cut is None:
        return _patched(patch, name, tensor)
    if tensor.shape[cut.dim] != plan.width * cut.copies:
        raise PlanError(
            f"{name} has another FFN width than the plan",
            value=tensor.shape[cut.dim] // cut.copies,
            valid=f"{plan.width}",
            fix="make the plan for this model",
        )
    if not plan.drop_neurons:
        return _patched(patch, name, tensor)
    return _patched(patch, name, tensor.index_select(cut.dim, _kept_rows(plan, cut, layer).to(tensor.device)))


def _kept_rows(plan: PrunePlan, cut: Cut, layer: int) -> torch.Tensor:
    kept = torch.tensor(plan.kept_neurons(layer))
    return torch.cat([kept + half * plan.width for half in range(cut.copies)])


def _check_layer(plan: PrunePlan, layer: int, name: str) -> None:
    if layer >= plan.depth:
        raise PlanError(
            f"this model has a layer that the plan does not know ({name})", value=layer, valid=f"0..{plan.depth - 1}"
        )


def _patched(patch: Patch, name: str, tensor: Tensor) -> Tensor:
    if name not in patch:
        return tensor
    new = patch[name]
    if new.shape != tensor.shape:
        raise PlanError(
            f"the patch of {name} does not fit the plan", value=tuple(new.shape), valid=f"{tuple(tensor.shape)}"
        )
    return new.to(tensor)


def cut_config(plan: PrunePlan, family: Family, raw: dict[str, Any], resolved: dict[str, Any]) -> dict[str, Any]:
    """The raw config.json with only the cut fields changed.

    Args:
        plan: What goes.
        family: Which fields have one entry a layer, or count layers.
        raw: The source's config.json as it is written.
        resolved: The same after transformers filled in its defaults (`config.to_dict()`).

    Old files lack lists such as `layer_types`, which transformers then derives from a layer's index. Where layers go
    and that list is not constant, it is written, sliced, so that each kept layer stays what it was.
    """
    check_shape(plan, resolved)
    out = dict(raw)
    if plan.new_width != plan.width:
        out["intermediate_size"] = plan.new_width
    if not plan.drop_layers:
        return out
    out["num_hidden_layers"] = plan.new_depth
    for key in family.per_layer_keys:
        full = resolved.get(key) if raw.get(key) is None else raw[key]
        if not full or (raw.get(key) is None and len(set(full)) == 1):
            continue
        if len(full) < plan.depth:
            raise UnsupportedModel(
                f"`{key}` of this config is shorter than the model", value=len(full), valid=f"{plan.depth}"
            )
        out[key] = [full[layer] for layer in plan.kept_layers]
    for key in family.layer_count_keys:
        count = resolved.get(key)
        if count is not None and (raw.get(key) is not None or count < plan.depth):
            out[key] = sum(layer < count for layer in plan.kept_layers)
    return out


def check_shape(plan: PrunePlan, config: Mapping[str, Any]) -> None:
    """PlanError unless the plan was made for a model of this depth and width."""
    for field, key, planned in (("depth", "num_hidden_layers", plan.depth), ("width", "intermediate_size", plan.width)):
        if config.get(key) != planned:
            raise PlanError(
                f"this plan is for a model of another {field}",
                value=f"plan: {planned}, model: {config.get(key)}",
                fix="make the plan for this model with `prunetune plan`",
            )


def _check_complete(plan: PrunePlan, family: Family, names: Iterable[str]) -> None:
    """BadCheckpoint unless every kept layer holds its cut weights: a foreign layout would be left uncut in silence."""
    found = {at for name in names if (at := layer_of(family, name))}
    for layer in plan.kept_layers:
        for cut in family.cuts:
            if cut.suffix.endswith(".weight") and (layer, cut.suffix) not in found:
                raise BadCheckpoint(
                    f"this checkpoint has no `{cut.suffix}` in layer {layer}",
                    value=family.model_type,
                    fix="save it anew with transformers, unquantised",
                )


def _check_patch(patch: Patch, names: Iterable[str]) -> None:
    if unknown := set(patch) - set(names):
        raise PlanError("the patch names tensors that this model does not have", value=sorted(unknown)[:3])


# ------------------------------------------------------------------------------------------------------------- drivers


def apply_in_memory(model: PreTrainedModel, plan: PrunePlan, patch: Patch | None = None) -> PreTrainedModel:
    """A new, smaller model; the given one is left as it is and shares no memory with the result.

    Args:
        model: The source, on any device.
        plan: What goes. Depth and width are checked; the hash is not, since a model in memory has none.
        patch: Replacement tensors, see `cut_tensor`.

    Returns:
        A stock model of the same class, dtype, device and generation config, in eval mode.
    """
    patch = patch or {}
    family = family_of(model.config)
    resolved = model.config.to_dict()
    config = copy.deepcopy(model.config)
    for key, value in cut_config(plan, family, resolved, resolved).items():
        if value != resolved.get(key):
            setattr(config, key, value)
    state = {}
    source = model.state_dict()
    _check_complete(plan, family, source)
    _check_patch(patch, source)
    for name, tensor in source.items():
        new, new_name = cut_tensor(plan, patch, family, name, tensor), cut_name(plan, family, name)
        if new is not None and new_name is not None:
            state[new_name] = new.clone() if new is tensor else new
    pruned = type(model).from_pretrained(None, config=config, state_dict=state, dtype=model.dtype)
    # Else it would name the unpruned parent, which TRL's GRPO loads as its KL reference (method, section 8).
    pruned.config._name_or_path = pruned.name_or_path = ""
    pruned.generation_config = copy.deepcopy(model.generation_config)
    module: torch.nn.Module = pruned  # whose `to` has a type
    module.to(model.device)
    return pruned.eval()


def apply_on_disk(
    source: Path,
    plan: PrunePlan,
    out: Path,
    patch: Patch | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the smaller model into the folder `out`, tensor by tensor: one tensor in memory at a time.

    The shards are the source's, cut; tokenizer, chat template and generation config are copied byte for byte, and
    config.json differs from the source's in the cut fields alone.

    Args:
        source: A model folder.
        plan: What goes.
        out: A folder that does not exist yet, or is empty.
        patch: Replacement tensors, see `cut_tensor`.
        progress: Called with (tensors done, tensors in all).

    Raises:
        PlanError: the plan was made for another model. BadCheckpoint: a shard is damaged. UnsupportedModel: see
            `family_of`.
    """
    patch = patch or {}
    check_model_folder(source)
    raw, resolved = read_json(source / "config.json"), load_config(source).to_dict()
    family = family_of(raw)
    config = cut_config(plan, family, raw, resolved)
    shards = open_shards(source)
    names = [name for infos in shards.values() for name in infos]
    _check_complete(plan, family, names)
    _check_patch(patch, names)
    if (sha := model_sha(source)) != plan.model_sha:
        raise PlanError(
            "this plan is for another model (their hashes differ)",
            value=f"plan: {plan.model_sha}, {source}: {sha}",
            fix="make the plan for this model with `prunetune plan`",
        )
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise PlanError("the output folder is not empty", value=str(out), fix="choose another one")
        _write_shards(plan, patch, family, shards, out, progress=progress)
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        (out / "config.json").write_text(text, encoding="utf-8")
        copy_files(source, out)
        copy_files(source, out, EXTRA_FILES)
        for name in EXTRA_FOLDERS:
            if (source / name).is_dir():
                shutil.copytree(source / name, out / name)


def _write_shards(
    plan: PrunePlan,
    patch: Patch,
    family: Family,
    shards: Mapping[Path, Mapping[str, TensorInfo]],
    out: Path,
    *,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Each source shard becomes one shard; a shard whose layers all go becomes none."""
    cut = {path: _cut_infos(plan, family, infos) for path, infos in shards.items()}
    cut = {path: names for path, names in cut.items() if names}
    total, done = sum(map(len, cut.values())), 0
    written = []
    for i, (path, names) in enumerate(cut.items()):
        file = shard_name(i, len(cut))
        infos = {new_name: info for new_name, info in names.values()}
        with ShardReader(path) as reader, ShardWriter(out / file, infos) as writer:
            for name, (new_name, _) in names.items():
                tensor = cut_tensor(plan, patch, family, name, reader.read(name))
                if tensor is not None:
                    writer.write(new_name, tensor)
                done += 1
                if progress:
                    progress(done, total)
        written.append((file, infos))
    if len(written) > 1:
        write_index(out, written)


def _cut_infos(plan: PrunePlan, family: Family, infos: Mapping[str, TensorInfo]) -> dict[str, tuple[str, TensorInfo]]:
    """{source name: (new name, dtype and shape)} of what one shard keeps, found on the meta device."""
    kept = {}
    for name, info in infos.items():
        tensor = cut_tensor(plan, {}, family, name, torch.empty(info.shape, dtype=info.dtype, device="meta"))
        new_name = cut_name(plan, family, name)
        if tensor is not None and new_name is not None:
            kept[name] = (new_name, TensorInfo.of(tensor))
    return kept
