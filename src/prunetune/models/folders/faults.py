"""The kinds of checkpoints that do not hold the model that their config describes, and the way out of each."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunetune.errors import BadCheckpoint, PrunetuneError, UnsupportedModel
from prunetune.models.families import Family, layer_of
from prunetune.models.folders.raw import same_bytes
from prunetune.models.headers import Headers

Sizes = Mapping[str, tuple[int, ...]]

HEAD = "lm_head.weight"
"""Of the models of transformers, of a family that is cut here or not."""


@dataclass(frozen=True)
class Faults:
    """What a checkpoint lacks, holds besides, and holds in another shape (name, in the file, by the config)."""

    path: Path
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.mismatched)


# ------------------------------------------------------------------------------------------- adapters, heads, types

_ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "adapter_model.pt")


def adapter_in(path: Path) -> Path | None:
    """A PEFT adapter's file in the folder, if there is one."""
    return next((path / name for name in _ADAPTERS if (path / name).is_file() or (path / name).is_symlink()), None)


MERGE = (
    "merge it first: PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE), ADAPTER)"
    ".merge_and_unload().save_pretrained(NEW), then give NEW"
)


def merge_first(adapter: Path, *, alone: bool) -> BadCheckpoint:
    """What is said of a folder with an adapter: some tools would load it over the base, others would not see it."""
    what = "this folder holds a LoRA adapter (PEFT)"
    return BadCheckpoint(
        f"{what} and no model" if alone else f"{what} beside a model: which of the two is meant cannot be known",
        value=str(adapter),
        fix=MERGE + ("" if alone else "; or move the adapter's files away, if the base alone is meant"),
    )


_ARCHITECTURE = re.compile(r"For(?!CausalLM|ConditionalGeneration)[A-Z]\w*$")


def check_architecture(config: Mapping[str, Any], path: Path) -> None:
    """Raise if config.json names a class with another head than a language model's."""
    for name in config.get("architectures") or ():
        if _ARCHITECTURE.search(name):
            raise BadCheckpoint(
                f"this is a {name}, not a causal language model: its head does not give next tokens",
                value=str(path),
                valid="a model whose architectures in config.json is ...ForCausalLM",
                fix="give the language model that it was made from",
            )


_FLOATS = {"F64", "F32", "F16", "BF16"}
_BUFFERS = re.compile(r"(^|\.)(bias|masked_bias|mask|causal_mask|position_ids|token_type_ids|inv_freq)$")


def check_types(headers: Headers) -> None:
    """Raise if weights are stored as anything but plain floating-point numbers: packed, quantised, eight-bit."""
    for path, tensors in headers.items():
        for name, stored in tensors.items():
            if stored.dtype not in _FLOATS and not _BUFFERS.search(name):
                raise BadCheckpoint(
                    f"{name} is stored as {stored.dtype}: these weights are quantised or packed",
                    value=str(path),
                    valid="weights in " + ", ".join(sorted(_FLOATS)),
                    fix="take the model in bf16; or dequantise it once with transformers and save_pretrained",
                )


_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")
_DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


def check_depth(config: Mapping[str, Any], headers: Headers, path: Path) -> None:
    """Raise if config.json asks for many more layers than the weights hold, before they are built."""
    have = {int(at[1]) for tensors in headers.values() for n in tensors if (at := _LAYER.search(n))}
    depth = next((config[key] for key in _DEPTHS if isinstance(config.get(key), int)), 0)
    if have and depth > 64 and depth > 4 * len(have):
        raise _bad(
            path,
            f"config and weights disagree: config.json says {depth} layers, and the weights hold {len(have)}",
            "copy config.json and the weights from the same model",
        )


def check_own_head(headers: Headers, path: Path, source: str, target: str) -> None:
    """Raise if config.json says that head and embedding are one table, and the file holds two different ones."""
    if not same_bytes(headers, source, target):
        raise BadCheckpoint(
            f"config and weights disagree: by config.json {target} is {source} (tie_word_embeddings), "
            "but the file holds another tensor under each name",
            value=str(path),
            fix="if the head is its own, set tie_word_embeddings: false in config.json (transformers computes with it, "
            f"other engines drop it); else remove {target} from the file",
        )


# ------------------------------------------------------------------------------------------------------------ shapes


def check_uneven(found: Sizes, family: Family, path: Path) -> None:
    """Raise if layers have FFNs of different widths: other pruners make them, and their config names one."""
    at = {name: layer_of(family, name) for name in found}
    widths = {a[0]: found[n][-1] for n, a in at.items() if a and a[1] == f"{family.down}.weight" and found[n]}
    if len(set(widths.values())) > 1:
        shown = ", ".join(f"layer {i}: {w}" for i, w in sorted(widths.items())[:6])
        raise UnsupportedModel(
            "this model has another FFN width in each layer",
            value=f"{path}: {shown}{', ...' if len(widths) > 6 else ''}",
            valid="one FFN width (intermediate_size) in all layers",
            fix="give the model before it was pruned unevenly",
        )


# ------------------------------------------------------------------------------------------------- names and the rest

# What wrappers put into names, and how the wrapped model is saved.
_WRAPPERS = {
    "_orig_mod": "torch.compile wraps the model: save model._orig_mod.save_pretrained(...)",
    "base_model": MERGE,
    "base_layer": MERGE,
    "module": "a parallel wrapper holds the model: save model.module.save_pretrained(...)",
    "_fsdp_wrapped_module": "FSDP wraps the model: save the full state dict (accelerator.get_state_dict(model))",
    "_checkpoint_wrapped_module": "activation checkpointing wraps the layers: save the unwrapped model",
    "_forward_module": "a strategy wraps the model: save the unwrapped model",
    "pretrained_model": "a value head wraps the model: save model.pretrained_model.save_pretrained(...)",
}
_HEADS = re.compile(
    r"(^|\.)(score|classifier|classification_head|v_head|value_head|reward_head|rm_head|qa_outputs|regression_head)\."
)
_LORA = re.compile(r"lora_[AB]|lora_embedding|\.modules_to_save\.|lora_magnitude|ia3_")


def told(
    faults: Faults, found: Sizes, config: Mapping[str, Any], path: Path, *, whole: int | None = None
) -> PrunetuneError:
    """The error that says what is wrong with a checkpoint, and the way out of its kind."""
    if lora := [n for n in found if _LORA.search(n)]:
        return _bad(path, f"these weights are those of an adapter ({_names(lora)})", MERGE)
    if wrapped := _wrapped(faults):
        return wrapped
    if heads := [n for n in faults.unexpected if _HEADS.search(n)]:
        return _bad(
            path,
            f"these weights have another head ({_names(heads)}) than a causal language model",
            "give the language model that it was made from; a value head beside a whole model: remove its tensors",
        )
    if layers := _other_depth(faults, found, config):
        return _bad(path, layers, "copy config.json and the weights from the same model")
    if faults.mismatched:
        shown = [f"{n} is {list(a)} in the file and {list(b)} by config.json" for n, a, b in faults.mismatched[:4]]
        more = len(faults.mismatched) - len(shown)
        return _bad(
            path,
            "config and weights disagree: " + "; ".join(shown) + (f"; and {more} more" if more else ""),
            "copy config.json and the weights from the same model, or mend the size in config.json",
        )
    if [n for n in faults.missing if not n.endswith(".bias")] == [HEAD]:
        return _bad(
            path,
            f"these weights have no head: {HEAD} is missing, and by config.json it is not tied to the embedding",
            "save the whole model (AutoModelForCausalLM, not AutoModel); or, if the head is the embedding, set "
            "tie_word_embeddings: true in config.json",
        )
    if faults.missing:
        total = f" of {whole or len(found) + len(faults.missing) - len(faults.unexpected):,}"
        besides = f"; they hold besides: {_names(faults.unexpected)}" if faults.unexpected else ""
        return _bad(
            path,
            f"these weights lack {len(faults.missing):,}{total} tensors of the model "
            f"({_names(faults.missing)}){besides}",
            "they would be random numbers: copy or save the whole model again",
        )
    return _bad(
        path,
        f"these weights hold {len(faults.unexpected):,} tensors that the model of config.json does not have "
        f"({_names(faults.unexpected)})",
        "they would be dropped without a word: give the config.json that belongs to them, or remove these tensors",
    )


def _bad(path: Path, what: str, fix: str) -> BadCheckpoint:
    return BadCheckpoint(what, value=str(path), valid="all tensors that config.json asks for, and no others", fix=fix)


def _names(names: Iterable[str]) -> str:
    shown = list(names)
    return ", ".join(n[:120] for n in shown[:3]) + (f" and {len(shown) - 3:,} more" if len(shown) > 3 else "")


def _wrapped(faults: Faults) -> BadCheckpoint | None:
    """Names of a wrapped model: with words in front or within, half or more of what is missing is there."""
    wanted, words, example = set(faults.missing), Counter[str](), ("", "")
    hits = set[str]()
    for name in faults.unexpected:
        plain, extra = _unwrapped(name, wanted)
        if plain is not None:
            hits.add(plain)
            words[extra] += 1
            example = example if example[0] else (name, plain)
    if not hits or 2 * len(hits) < len(wanted - {HEAD}):
        return None
    extra = words.most_common(1)[0][0]
    if extra == "-model.":
        rename, how = "'model.' + k", "the tensors' names lack the `model.` in front"
        way = "save the whole model (AutoModelForCausalLM), not a part of it"
    else:
        rename, how = f"k.replace({extra!r}, '')", f"the tensors' names are those of a wrapped model (`{extra}`)"
        known = [text for word, text in _WRAPPERS.items() if word in extra.split(".")]
        way = known[0] if known else "save the model itself, not what it was wrapped in"
    return _bad(
        faults.path,
        f"{how}: {example[0]} stands for {example[1]}, and {len(wanted):,} of the model's tensors are missing",
        f"{way}; or rename them in each file: save_file({{{rename}: v for k, v in load_file(f).items()}}, f, "
        "{'format': 'pt'})",
    )


def _unwrapped(name: str, wanted: set[str]) -> tuple[str | None, str]:
    """(the model's own name of a tensor, what a wrapper put into it; `-model.`: what it left out)."""
    parts = name.split(".")
    for i in range(len(parts)):
        if (plain := ".".join(parts[i:])) in wanted:
            return plain, ".".join(parts[:i]) + "."
    inner = [p for p in parts if p not in _WRAPPERS]
    for i in range(len(inner)):
        if (plain := ".".join(inner[i:])) in wanted:
            return plain, next(p for p in parts if p in _WRAPPERS) + "."
    for i in range(len(parts)):
        if (plain := "model." + ".".join(parts[i:])) in wanted:
            return plain, ".".join(parts[:i]) + "." if i else "-model."
    return None, ""


def _other_depth(faults: Faults, found: Sizes, config: Mapping[str, Any]) -> str | None:
    """Whole layers too few or too many."""
    have = {int(at[1]) for n in found if (at := _LAYER.search(n))}
    lack = {int(at[1]) for n in faults.missing if (at := _LAYER.search(n))} - have
    more = {int(at[1]) for n in faults.unexpected if (at := _LAYER.search(n))}
    depth = next((config[key] for key in _DEPTHS if isinstance(config.get(key), int)), None)
    more = {i for i in more if isinstance(depth, int) and i >= depth}
    if not lack and not more:
        return None
    which = f"lack {_runs(lack)}" if lack else f"hold {_runs(more)} besides"
    return f"config and weights disagree: config.json says {depth} layers, and the weights {which}"


def _runs(numbers: set[int]) -> str:
    ordered = sorted(numbers)
    if len(ordered) == 1:
        return f"layer {ordered[0]}"
    if ordered[-1] - ordered[0] == len(ordered) - 1:
        return f"layers {ordered[0]} to {ordered[-1]}"
    return "layers " + ", ".join(map(str, ordered[:6])) + (", ..." if len(ordered) > 6 else "")
