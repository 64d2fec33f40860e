"""`prunetune inspect`: a model's sizes, parts and cost from its config alone, and what a target would take of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunetune.common.reading import read_json
from prunetune.common.table import aligned
from prunetune.common.units import count, flops, size
from prunetune.errors import UnsupportedModel
from prunetune.schedule.reach import VOCABULARY, alone, smallest

if TYPE_CHECKING:
    from prunetune.models.cost import Cost
    from prunetune.models.families.draft import Draft
    from prunetune.schedule.reach import Holding
    from prunetune.schedule.sizes import Sizes
    from prunetune.schedule.steps import Ahead


SHAPES = Path(__file__).with_name("shapes.json")
"""Configs of public models by their hub names, and what is published of their size, with where both are from."""


def number(target: float) -> float | int:
    """A target from the command line: above 1 and whole, it is a count of parameters."""
    return int(target) if target > 1 and target == int(target) else target


def model_config(model: str) -> dict[str, Any]:
    """The config of a model by any of its names; weights need not be there, and none are read.

    A folder with weights is checked as every command does it. A hub model's config alone is fetched; the shapes of the
    paper's models and others are shipped (`shapes.json`), so that planning them needs no hub. Of a GGUF file the header
    is read.

    Raises:
        MissingPath, BadCheckpoint, UnsupportedModel: see `models.folders`.
    """
    from prunetune.models.families import family_of
    from prunetune.models.families.wrappers import language_of
    from prunetune.models.folders import (
        DEMO_MODEL,
        check_model_folder,
        config_values,
        gguf_config,
        gguf_of,
        read_config,
    )

    path = Path(model).expanduser()
    if path.is_file() and path.name.endswith(".json"):
        return language_of(read_config(path))
    if model == "demo":
        return config_values(DEMO_MODEL)
    if (gguf := gguf_of(model, whole=False)) is not None:
        return gguf_config(gguf)
    if path.is_dir():
        if (path / "config.json").is_file():
            family_of(config_values(path))  # before the weights of a family that is not cut anyway
        if any(p.suffix in (".safetensors", ".bin", ".pt", ".pth") or "adapter" in p.name for p in path.iterdir()):
            check_model_folder(path)
        return config_values(path)
    if model.count("/") == 1 and not model.startswith((".", "/", "~")):
        shipped = read_json(SHAPES)
        if model in shipped:
            return language_of(shipped[model]["config"])
        from prunetune.models.folders import hub_config

        return config_values(hub_config(model))
    from prunetune.models.folders import resolve_model

    return config_values(resolve_model(model))


def family_draft(model: str) -> Draft:
    """A first entry for a model's family, from its config and the names of its tensors.

    Those are its weights' (headers alone are read); without weights they are what transformers' class of that name has.

    Raises:
        MissingPath: there is no such model. BadCheckpoint: its config is none, or a file is damaged.
    """
    from prunetune.models.families.draft import draft
    from prunetune.models.families.wrappers import language_of, own_name, wrapper_of
    from prunetune.models.folders import DEMO_MODEL, config_values, hub_config, read_config
    from prunetune.models.folders.config import file_values
    from prunetune.models.headers import read_headers

    path = DEMO_MODEL if model == "demo" else Path(model).expanduser()
    if path.is_file():
        config, sizes = language_of(read_config(path)), {}
    else:
        folder = path if path.is_dir() else hub_config(model)
        config = config_values(folder)
        headers = read_headers(folder) if any(folder.glob("*.safetensors")) else {}
        found, wrapper = (
            {n: s.shape for tensors in headers.values() for n, s in tensors.items()},
            wrapper_of(file_values(folder)),
        )
        sizes = {own_name(n): shape for n, shape in found.items() if not (wrapper and wrapper.is_other(n))}
    full, of_class = _by_class(config)
    return draft(full, sizes or of_class)


def _by_class(config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """(the config with its class's defaults, the tensors of that class), as far as transformers knows the name."""
    import torch
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

    if config.get("model_type") not in CONFIG_MAPPING:
        return config, {}
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    auto: Any = AutoModelForCausalLM
    try:
        made = CONFIG_MAPPING[config["model_type"]](**config)
        full = {key: getattr(made, key, None) for key in sizes} | made.to_dict()  # some classes have names of their own
        if type(made) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            return full, {}
        with torch.device("meta"):
            whole = auto.from_config(made)
    except Exception as e:  # config classes compute with whatever a file says
        raise UnsupportedModel(
            f"transformers cannot build this model ({(str(e).strip().splitlines() or [type(e).__name__])[0][:200]})",
            value=config["model_type"],
            fix="mend config.json",
        ) from e
    return full, {name: tuple(p.shape) for name, p in whole.named_parameters()}


def parts_of(config: Mapping[str, Any]) -> dict[str, int]:
    """Parameters of each part of a model: embeddings (with a head of their own), attention, FFN, norms."""
    import math

    from prunetune.models.families import family_of
    from prunetune.models.tensors import expected_tensors, part_of

    family, found = family_of(dict(config)), dict.fromkeys(("embeddings", "attention", "FFN", "norms"), 0)
    for name, shape in expected_tensors(config).items():
        found[part_of(family, name)] += math.prod(shape)
    return found


def description(
    config: dict[str, Any], *, target: float | None, step: float, gpu: str, tokens: int
) -> tuple[dict[str, Any], str]:
    """Shape and cost of a model from its config alone, and what a target would take."""
    from prunetune.models.cost import active_params, cost_of
    from prunetune.models.families import family_of
    from prunetune.models.gpus import gpu_of
    from prunetune.schedule.damage import target_params
    from prunetune.schedule.reach import holdings
    from prunetune.schedule.sizes import Sizes
    from prunetune.schedule.steps import plan_ahead
    from prunetune.schedule.target import PruneConfig, align_of

    family, cost, sizes, parts = family_of(config), cost_of(config), Sizes.of(config), parts_of(config)
    memory_gib, _ = gpu_of(gpu)
    experts = cost.shape.experts
    active = f", {count(active_params(cost.shape))} of them a token," if experts else ""
    value: dict[str, Any] = {
        "family": family.model_type,
        "depth": sizes.depth,
        "width": sizes.width,
        "hidden": sizes.hidden,
        **({"experts": experts, "experts_per_token": cost.shape.active} if experts else {}),
        **cost.to_json(),
        "parts": parts,
        "flops": vars(cost.flops(512, 256)),
        "gpu": gpu,
        "gpu_bytes": memory_gib * 2**30,
        "gpus_to_train": -(-cost.train_bytes // (memory_gib * 2**30)),
        "train_hours": cost.train_hours(tokens, gpu),
        "train_tokens": tokens,
    }
    lines = [
        f"{family.model_type}: {sizes.depth} layers, FFN width {sizes.width}, hidden size {sizes.hidden}"
        f"{_inside(config)}" + (f", {experts} experts, {cost.shape.active} of them a token" if experts else ""),
        f"parameters        {count(cost.params)}{active}  ({size(cost.weight_bytes)} in bf16, "
        f"{size(cost.kv_bytes_per_token)} of KV cache a token)",
        aligned([(f"  {name:<14}", count(held), f"{held / sizes.original:.1%}") for name, held in parts.items()]),
        f"FLOPs             {flops(cost.flops(512, 256).total)} a question of 512 + 256 tokens",
        f"full fine-tuning  {size(cost.train_bytes)} before activations: at least {value['gpus_to_train']} x {gpu}; "
        f"{value['train_hours']:.1f} GPU hours for {count(tokens)} tokens",
    ]
    if target is not None:
        prune = PruneConfig.model_validate({"target": number(target), "step": step})
        wanted = target_params(prune, sizes)
        held = holdings(cost, family, {**config, **cost.shape.values()}, align_of(prune, sizes))
        value |= {"wanted": wanted, "axes": [_axis(cost, h, wanted) for h in held]}
        lines.append(_axes_text(target, wanted, value["axes"], sizes.original))
        value["reach"] = reach = _reach(cost, held)
        if next(iter(reach.values())) > wanted:
            value["steps"] = []
            lines.append(_out_of_reach(target, reach, sizes.original, parts["embeddings"]))
            return value, "\n".join(lines)
        ahead = plan_ahead(prune, sizes)
        value["steps"] = [{"step": a.step.name, "depth": a.depth, "width": a.width, "params": a.params} for a in ahead]
        lines += [f"\ntarget {target:g} in {len(ahead)} rounds:", aligned([_row(a, sizes.original) for a in ahead])]
        if ahead:
            value["takes"] = taken(sizes, ahead[-1])
            lines.append(taken_text(sizes, ahead[-1], parts["embeddings"]))
    return value, "\n".join(lines)


def _row(step: Ahead, whole: int) -> tuple[str, ...]:
    """A round in the table."""
    return (
        f"  {step.step.name}",
        f"{step.depth} layers",
        f"{step.width} wide",
        count(step.params),
        f"{step.params / whole:.1%}",
    )


def _axis(cost: Cost, held: Holding, wanted: int) -> dict[str, Any]:
    """An axis: its units, what they hold, how many may stay where it alone makes the size (None: it cannot)."""
    stays = None if held.stays else alone(cost, held, wanted)
    return {**vars(held), "alone": stays, "reach": smallest(cost, [held])}


def _axes_text(target: float, wanted: int, rows: list[dict[str, Any]], whole: int) -> str:
    found = []
    for row in rows:
        if row["stays"]:
            said = f"none can go: {row['stays']}"
        elif row["alone"] is None:
            said = f"out of reach: at least {row['reach'] / whole:.1%} stays"
        else:
            said = f"{row['alone']:,} of {row['units']:,} stay"
        share = f"{row['params'] / whole:.1%}"
        found.append((f"  {row['axis']}", f"{row['units']:,}", count(row["params"]), share, said))
    header = ("what can go", "units", "hold", "", f"target {target:g} ({count(wanted)}) by it alone")
    return "\n" + aligned(found, header)


def _reach(cost: Cost, held: list[Holding]) -> dict[str, int]:
    """Parameters that stay at least: with neurons and layers, and with every other axis in the layers, too."""
    able = [h for h in held if not h.stays and h.axis != VOCABULARY]
    sets = [[h for h in able if h.axis in ("neurons", "layers")], able]
    return {", ".join(h.axis for h in some): smallest(cost, some) for some in sets}


def _out_of_reach(target: float, reach: Mapping[str, int], whole: int, vocabulary: int) -> str:
    lines = [f"\ntarget {target:g} is out of reach of neurons and layers: so much stays at least"]
    lines += [f"  {least / whole:.1%} ({count(least)}) with {names}" for names, least in reach.items()]
    lines.append(f"the vocabulary ({vocabulary / whole:.1%}) can go as far as the task's text does without it")
    return "\n".join(lines)


def _inside(config: Mapping[str, Any]) -> str:
    """That a model is one part of a wrapper, whose class its config still names."""
    wrapped = [name for name in config.get("architectures") or () if name.endswith("ForConditionalGeneration")]
    return f"\n  inside a {wrapped[0]}: what it sees with is carried over, and not counted here" if wrapped else ""


def taken(sizes: Sizes, last: Ahead) -> dict[str, float]:
    """Shares that a target takes: of the FFN's neurons (in all layers), of the layers, of all that layers hold."""
    left, whole = last.depth * last.width, sizes.depth * sizes.width
    layers = sizes.original - sizes.base
    return {
        "ffn": 1 - left / whole,
        "layers": 1 - last.depth / sizes.depth,
        "of_what_can_go": (sizes.original - last.params) / layers,
    }


def taken_text(sizes: Sizes, last: Ahead, embeddings: int) -> str:
    """The same in a sentence, since a target counts parameters that are never cut."""
    shares = taken(sizes, last)
    gone = sizes.depth - last.depth
    layers = f" and {gone} of {sizes.depth} layers" if gone else ""
    return (
        f"\nthis takes {shares['ffn']:.0%} of the FFN{layers}: {shares['of_what_can_go']:.0%} of what the layers hold; "
        f"embeddings ({embeddings / sizes.original:.0%} of the model) stay"
    )
