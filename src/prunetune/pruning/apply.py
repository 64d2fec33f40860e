"""Remove units of any axis for good (the step "prune" of Algorithm 1): one pure function, two drivers.

`cut_tensor` and `cut_config` (cuts.py) say what becomes of one tensor and of the config. The drivers feed them all
tensors of a model, from memory or shard by shard from disk, and so agree bit for bit.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from prunetune.common.files import check_space, fresh, read_json
from prunetune.common.strict_json import to_json_text
from prunetune.errors import BadCheckpoint, PlanError, UnsupportedModel
from prunetune.models.axes import axis_of
from prunetune.models.families import Family, family_of, layer_of
from prunetune.models.families.wrappers import inner_of, own_name, with_inner, wrapper_of
from prunetune.models.folders import check_weights, copy_files, load_config, model_sha
from prunetune.models.folders.wrapping import IMAGE_FILES, class_of
from prunetune.models.shards import TensorInfo, open_shards, rewrite
from prunetune.pruning.cut import PatchTensors, check_last, check_shape, cut_config, cut_name, cut_tensor, patch_name
from prunetune.pruning.plan import PrunePlan

__all__ = ["PatchTensors", "apply_in_memory", "apply_on_disk", "check_shape", "cut_config", "cut_name", "cut_tensor"]

EXTRA_FILES = ("chat_template.json", "tekken.json", "LICENSE", "LICENSE.txt", "NOTICE")
EXTRA_FOLDERS = ("additional_chat_templates",)


def _check_complete(plan: PrunePlan, family: Family, names: Iterable[str]) -> None:
    """BadCheckpoint unless every kept layer holds its cut weights: a foreign layout would be left uncut in silence."""
    found = {at for name in names if (at := layer_of(family, name))}
    if family.experts:
        found = {(layer, family.experts.held(suffix)) for layer, suffix in found}
    cuts = [cut.suffix for name in ("neurons", *plan.sizes) for cut in axis_of(name).slices(family, plan.shape)]
    for layer in plan.kept_layers:
        for suffix in cuts:
            if not suffix.endswith("bias") and (layer, suffix) not in found:
                raise BadCheckpoint(
                    f"this checkpoint has no `{suffix}` in layer {layer}",
                    value=family.model_type,
                    fix="save it anew with transformers, unquantised",
                )


def _named(patch: PatchTensors | None, family: Family, names: Iterable[str]) -> PatchTensors:
    """The patch by its `patch_name`s, which those of older versions may not have. PlanError: it is of another model."""
    found = {patch_name(family, name): tensor for name, tensor in (patch or {}).items()}
    if unknown := set(found) - ({patch_name(family, name) for name in names} if found else set()):
        raise PlanError("the patch names tensors that this model does not have", value=sorted(unknown)[:3])
    return found


def apply_in_memory(model: PreTrainedModel, plan: PrunePlan, patch: PatchTensors | None = None) -> PreTrainedModel:
    """A new, smaller model; the given one is left as it is and shares no memory with the result.

    Args:
        model: The source, on any device.
        plan: What goes. Depth and width are checked; the hash is not, since a model in memory has none.
        patch: Replacement tensors, see `cut_tensor`.

    Returns:
        A stock model of the same class, dtype, device and generation config, in eval mode.
    """
    family = family_of(model.config)
    resolved = model.config.to_dict()
    check_last(plan, family, resolved)
    config = copy.deepcopy(model.config)
    for key, value in cut_config(plan, family, resolved, resolved).items():
        if value != resolved.get(key):
            setattr(config, key, value)
    state, in_files = {}, {ours: theirs for theirs, ours in family.stored.items()}
    source = model.state_dict()
    _check_complete(plan, family, source)
    patch = _named(patch, family, source)
    for name, tensor in source.items():
        new, new_name = cut_tensor(plan, patch, family, name, tensor), cut_name(plan, family, name)
        if new is not None and new_name is not None:
            state[in_files.get(new_name, new_name)] = new.clone() if new is tensor else new
    pruned = type(model).from_pretrained(None, config=config, state_dict=state, dtype=model.dtype)
    # Else it would name the unpruned parent, which TRL's GRPO loads as its KL reference (method, section 8).
    pruned.config._name_or_path = pruned.name_or_path = ""
    pruned.generation_config = copy.deepcopy(model.generation_config)
    module: torch.nn.Module = pruned  # whose `to` has a type
    module.to(model.device).eval()
    return pruned


def apply_on_disk(
    source: Path,
    plan: PrunePlan,
    out: Path,
    patch: PatchTensors | None = None,
    progress: Callable[[int, int], None] | None = None,
    *,
    text_only: bool = False,
) -> None:
    """Write the smaller model into the folder `out`, tensor by tensor: one tensor in memory at a time.

    The shards are the source's, cut; tokenizer, chat template and generation config are copied byte for byte, and
    config.json differs from the source's in the cut fields alone. Where the source wraps its language model, that
    part is cut, and all others are copied byte for byte.

    Args:
        source: A model folder.
        plan: What goes.
        out: A folder that does not exist yet, or is empty.
        patch: Replacement tensors, see `cut_tensor`.
        progress: Called with (tensors done, tensors in all).
        text_only: Of a wrapper its language model alone is written, as its own stock class.

    Raises:
        PlanError: the plan was made for another model. BadCheckpoint: a shard is damaged. UnsupportedModel: see
            `family_of`. NotWritable: the folder is not empty, or the disk is full: then nothing is left of it.
    """
    check_weights(source)
    raw, own = read_json(source / "config.json"), load_config(source)
    resolved = own.to_dict()
    family, wrapper = family_of(resolved), wrapper_of(raw)
    config, shards = _cut_file(plan, family, raw, own, text_only=text_only), open_shards(source)
    rename = own_name if wrapper and text_only else str
    if wrapper and text_only:
        shards = {p: {n: i for n, i in infos.items() if not wrapper.is_other(n)} for p, infos in shards.items()}
    names = [name for infos in shards.values() for name in infos]
    _check_complete(plan, family, names)
    patch = _named(patch, family, names)
    plan.check_model(model_sha(source), source)
    cut = {path: _cut_infos(plan, family, infos, rename) for path, infos in shards.items()}
    text = to_json_text(config, ensure_ascii=False) + "\n"
    with fresh(out) as tmp:
        size = sum(info.nbytes for kept in cut.values() for _, info in kept.values())
        check_space(out, size + (1 << 20), "the cut model")
        tmp.mkdir()
        rewrite(cut, lambda name, tensor: cut_tensor(plan, patch, family, name, tensor), tmp, progress)
        (tmp / "config.json").write_text(text, encoding="utf-8")
        copy_files(source, tmp)
        copy_files(source, tmp, EXTRA_FILES if text_only else (*EXTRA_FILES, *IMAGE_FILES))
        for name in EXTRA_FOLDERS:
            if (source / name).is_dir():
                shutil.copytree(source / name, tmp / name)


def _cut_file(
    plan: PrunePlan, family: Family, raw: dict[str, Any], own: PretrainedConfig, *, text_only: bool
) -> dict[str, Any]:
    """config.json of the result. UnsupportedModel: the wrapper's class cannot do without what goes."""
    wrapper, resolved = wrapper_of(raw), own.to_dict()
    check_last(plan, family, resolved)
    if wrapper is None:
        return cut_config(plan, family, raw, resolved)
    if text_only:
        spelled = family.mixer.spelled(resolved) if family.mixer else {}
        return cut_config(plan, family, resolved, resolved) | spelled | {"architectures": [class_of(own)]}
    gone = [n for n in plan.drop if "num_attention_heads" in axis_of(n).resized(resolved, plan.new_shape[n])]
    if not wrapper.own_head_dim and gone:
        raise UnsupportedModel(
            f"no {wrapper.model_type} has so many {min(gone)}: its class takes a head's width from hidden size / heads",
            fix="write the language model alone (--text-only), whose class does not",
        )
    stay = wrapper.early_layers(raw)
    if plan.drop_layers and (first := min(plan.drop_layers)) < stay:
        raise UnsupportedModel(
            f"what {wrapper.model_type} sees of an image is added behind its first {stay} layers, so these stay",
            value=f"layer {first}",
            valid=f"layers {stay} to {plan.depth - 1}",
            fix="name other layers (prune.layers), or write the language model alone (--text-only)",
        )
    return with_inner(raw, cut_config(plan, family, inner_of(raw), resolved))


def _cut_infos(
    plan: PrunePlan, family: Family, infos: Mapping[str, TensorInfo], named: Callable[[str], str]
) -> dict[str, tuple[str, TensorInfo]]:
    """{source name: (new name, dtype and shape)} of what one shard keeps, found on the meta device."""
    kept = {}
    for name, info in infos.items():
        tensor = cut_tensor(plan, {}, family, name, torch.empty(info.shape, dtype=info.dtype, device="meta"))
        new_name = cut_name(plan, family, name)
        if tensor is not None and new_name is not None:
            kept[name] = (named(new_name), TensorInfo.of(tensor))
    return kept
