"""What a run would take, before anything runs: sizes beside the paper's, memory of a device, hours of recovery.

    tokens   a method's budget in tokens; one in samples counts TOKENS_A_SAMPLE each, at most `max_length` (`grpo`:
             PROMPT and ANSWER tokens for each of the group's answers)
    memory   `cost.state_bytes` x parameters, and the activations of one sequence of `max_length` with checkpointing
             (`Cost.activation_bytes`)
    hours    FLOPs (`Cost.train_flops`) / (devices x peak x utilisation): forward, and twice that backward (LoRA: once);
             distill runs the teacher forward, grpo the reference, and samples at SAMPLING of the peak (decoding is
             bound by memory)

Scoring holds its own memory (`Cost.scoring_bytes`); its time, and that of pruning and evaluation, comes on top. These
are estimates to choose a machine with, not measurements.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import compress
from typing import TYPE_CHECKING, Any

from prunetune.common.table import aligned

if TYPE_CHECKING:
    from prunetune.models.cost import Cost
    from prunetune.recipe.schema import Recipe

UTILISATION, SAMPLING = 0.35, 0.05
TOKENS_A_SAMPLE, PROMPT, ANSWER = 400, 120, 600
OF_HOURS = (f"{UTILISATION:.0%} of the GPUs' dense bf16 peak", "training alone: scoring and evaluation come on top")
"""What is assumed for hours alone."""


@dataclass(frozen=True)
class Paper:
    """What the paper says of a recipe of its own.

    Attributes:
        sizes: Rounds done -> the size as the paper prints it; -1: of the final model.
        gpu: What it ran on, a name in `gpus.GPUS`; how many is in the recipe's launcher.
        hours: Recovery time that it reports.
    """

    sizes: Mapping[int, str] = field(default_factory=dict)
    gpu: str = "A100-80G"
    hours: float | None = None


_TABLE_6 = ("9.2B", "8.8B", "8.4B", "7.9B", "7.5B", "7.0B", "6.6B", "6.2B", "5.8B")
PAPER: dict[str, Paper] = {
    "paper/llama3-8b": Paper({0: "8B", -1: "5B"}, hours=12),
    "paper/llama3-8b-code": Paper({0: "8B", -1: "5B"}, hours=12),
    "paper/gemma2-9b": Paper(dict(enumerate(_TABLE_6)), hours=20),
    "paper/qwen2.5-7b-ct-rl": Paper({0: "7B", -1: "5B"}),
    "paper/qwen2.5-7b-rl": Paper({0: "7B", -1: "5B"}, "H200", hours=64),
    "baselines/shortgpt-llama3-8b": Paper({0: "8B", -1: "5B"}, hours=16),
}


def forecast(recipe: Recipe, name: str | None = None, *, measured: bool = False) -> tuple[dict[str, Any], str]:
    """The steps of `describe.preview`, and what recovery in each would take: values for machines, text for people.

    Args:
        recipe: What to run.
        name: Its name, if it is a shipped one: the paper's recipes have the paper's figures and hardware beside them.
        measured: Whether minutes of this machine are told besides: then none of another machine are.
    """
    from prunetune.cli.about_model import model_config
    from prunetune.cli.preview import preview
    from prunetune.models.cost import cost_of
    from prunetune.tune.launch import devices_of

    value, text = preview(recipe)
    if len(value["steps"]) < 2 or (not recipe.foreseen and value["steps"][-1]["step"] != "target"):
        return value, text  # not even the final shape is known
    paper, devices = PAPER.get(name or "", Paper()), devices_of(recipe.launcher)
    config, rounds = model_config(recipe.model), len(value["steps"]) - 1  # one, if damage decides
    original = cost_of(config)
    for done, step in enumerate(value["steps"]):
        step["paper_size"] = paper.sizes.get(done, paper.sizes.get(-1) if done == rounds else None)
        if not done:
            continue
        cost = cost_of(config, shape=step["shape"])
        where = (recipe.launcher, devices, paper.gpu)
        step["recover"] = [
            recovery(m, cost, original, where, 1 if m.when == "last" else rounds)
            for m in recipe.recover
            if m.when == "every" or done == rounds
        ]
    if recipe.within is not None:  # the time decides, as it is measured
        for m in (m for s in value["steps"][1:] for m in s["recover"]):
            m.update(tokens=None, hours=None)
    value["within"] = recipe.within
    value["hardware"] = {"gpu": paper.gpu, "gpus": devices}
    hours = [m["hours"] for s in value["steps"][1:] for m in s["recover"]]
    value["hours"] = None if None in hours else sum(hours)
    value["paper_hours"] = paper.hours
    value["device_bytes"] = max((m["device_bytes"] for s in value["steps"][1:] for m in s["recover"]), default=0)
    value["score_bytes"] = original.scoring_bytes(
        recipe.score.batch_tokens, gradients=recipe.score.criterion == "taylor"
    )
    if recipe.compensate != "none":
        value["calibration"], line = _calibration(recipe, config, paper.gpu, measured)
        text = f"{text}\n{line}" if line else text
    value["assumptions"] = assumptions(recipe)
    if not recipe.foreseen:
        value["assumptions"].append("one round: more would share the same budget, at larger sizes")
    return value, text + "\n\n" + _text(value, measured)


def _calibration(recipe: Recipe, config: Any, gpu: str, measured: bool) -> tuple[dict[str, Any], str]:
    """Tokens and bytes of what is scored and compensated with, and where they lie on a GPU with as much host memory."""
    from prunetune.models.calibration import place_of
    from prunetune.models.gpus import gpu_of
    from prunetune.models.shape import Shape
    from prunetune.recipe.calibration import calibration_of
    from prunetune.schedule.sizes import Sizes

    mean, memory = min(TOKENS_A_SAMPLE, recipe.score.max_length), gpu_of(gpu)[0] << 30
    hidden = Shape.of(config).hidden
    found = calibration_of(recipe, Sizes.of(config, recipe.prune.cut), hidden, item=2, mean=mean, most=sys.maxsize)
    place = place_of(found.bytes, "cuda", memory, memory)
    return {**asdict(found), "place": place}, "" if measured else found.text(place)


def recovery(
    method: Any, cost: Cost, original: Cost, where: tuple[str | None, int, str], rounds: int
) -> dict[str, Any]:
    """Tokens, bytes on a device and hours of one method in one round; None where the budget is all that the data hold.

    Args:
        method: The recipe's method.
        cost: Of the model in this round.
        original: Of the untouched model (the teacher).
        where: Launcher as in the recipe, number of devices, name of the GPU.
        rounds: Over which a budget of the run is shared out.
    """
    from prunetune.models.cost import block_bytes, state_bytes
    from prunetune.models.gpus import gpu_of

    launcher, devices, gpu = where
    tokens, lora, grpo = tokens_of(method, rounds), method.lora is not None, method.type == "grpo"
    kind = (launcher or "").split(" ")[0]
    held = state_bytes(kind, devices, lora=lora, reference=grpo and method.beta > 0, average=bool(method.average))
    length = method.max_length + (method.max_new_tokens or ANSWER if grpo else 0)
    peak = gpu_of(gpu)[1] * 1e12 * (devices if method.spreads else 1)
    memory = round(held * cost.params) + cost.activation_bytes((method.micro_batch_size or 1) * length)
    if method.type == "local":
        memory = block_bytes(cost, method.block, method.batch_size * length)
    return {
        "method": method.type,
        "tokens": tokens,
        "device_bytes": memory,
        "hours": None if tokens is None else _work(method, cost, original, tokens) / peak / 3600,
    }


def _work(method: Any, cost: Cost, original: Cost, tokens: int) -> float:
    """FLOPs of a method at the whole peak: what runs at a share of it counts as so much more."""
    length, grpo = _sequence(method), method.type == "grpo"
    trained = cost.train_flops(tokens, length, passes=2 if method.lora is not None else 3)
    if method.type == "local":  # layers alone, no head
        trained -= 6 * tokens * cost.shape.hidden * cost.shape.vocab
    beside = {"distill": original, "grpo": cost}.get(method.type)  # the teacher, the reference
    seen = beside.train_flops(tokens, length, passes=1) if beside is not None else 0
    sampled = cost.train_flops(tokens, length, passes=1) if grpo else 0
    return (trained + seen) / UTILISATION + sampled / SAMPLING


def _sequence(method: Any) -> int:
    """Tokens of a sequence, as assumed."""
    if method.type == "grpo":
        return int(min(PROMPT, method.max_length) + min(ANSWER, method.max_new_tokens or ANSWER))
    return int(min(TOKENS_A_SAMPLE, method.max_length))


def tokens_of(method: Any, rounds: int) -> int | None:
    """Tokens that a method trains in one round, all epochs; None if it takes all that the data hold."""
    shared = 1 if method.per == "round" else rounds
    each = _sequence(method) * (method.group if method.type == "grpo" else 1)
    found = [b for b in (method.tokens, method.samples and method.samples * each) if b is not None]
    return round(method.trained(min(found) // max(shared, 1), each)) if found else None


def assumptions(recipe: Recipe) -> list[str]:
    """What the estimate takes for granted, in words."""
    said = list(OF_HOURS)
    if any(m.samples and m.type != "grpo" for m in recipe.recover):
        said.append(f"{TOKENS_A_SAMPLE} tokens a sample (at most max_length)")
    if any(m.type == "grpo" for m in recipe.recover):
        longest = max(m.max_new_tokens or ANSWER for m in recipe.recover if m.type == "grpo")
        more = (
            f" (the recipe allows {longest:,}: up to {longest / ANSWER:.0f} times as long)" if longest > ANSWER else ""
        )
        said.append(
            f"grpo: {PROMPT} + {ANSWER} tokens an answer{more}, sampled at {SAMPLING:.0%} of the peak, one pass"
        )
        said.append("grpo: the sampler's own memory comes on top")
    if any(m.lora for m in recipe.recover):
        said.append("LoRA: adapters are small beside the weights")
    where = f"{recipe.launcher.split()[0]}, " if recipe.launcher else ""
    said.append(f"memory: {where}one sequence at a time, activations recomputed")
    return said


def _text(value: dict[str, Any], measured: bool) -> str:
    from prunetune.common.units import count, duration, size

    steps, hardware = value["steps"], value["hardware"]
    paper = any(s["paper_size"] for s in steps)
    hours = paper or not measured  # else minutes of this machine are told
    unknown = "all data" if value["within"] is None else "what fits"
    rows = []
    for s in steps:
        start = [s["step"], count(s["params"]), s["paper_size"] or ""]
        for m in s.get("recover", []):
            took = "" if m["hours"] is None else _hours(m["hours"])
            tokens = unknown if m["tokens"] is None else count(m["tokens"])
            rows.append([*start, m["method"], tokens, size(m["device_bytes"]), took])
            start = ["", "", ""]
        if not s.get("recover"):
            rows.append([*start, "", "", "", ""])
    header = ("step", "parameters", "paper", "recovery", "tokens", "a device", "hours")
    shown = (True, True, paper, True, True, True, hours)
    lines = [aligned([[*compress(row, shown)] for row in rows], [*compress(header, shown)])]
    where = f"{hardware['gpus']} x {hardware['gpu']}"
    if value["hours"] is not None and hours:
        said = f" (the paper reports {value['paper_hours']:g} h)" if value["paper_hours"] else ""
        said = said or (" (the paper states no hours)" if paper else "")
        about = f"about {duration(3600 * value['hours'])}" if 60 * value["hours"] >= 1 else "less than a minute"
        lines.append(f"\nrecovery on {where}: {about}{said}")
    lines.append(
        f"memory of a device for training: about {size(value['device_bytes'])}; "
        f"for scoring: about {size(value['score_bytes'])}"
    )
    assumed = [a for a in value["assumptions"] if hours or a not in OF_HOURS]
    lines.append("assumed: " + "; ".join(assumed))
    return "\n".join(lines)


def _hours(hours: float) -> str:
    return f"{hours:.2f}" if hours >= 0.01 else "< 0.01"
