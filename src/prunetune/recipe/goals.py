"""What a recipe may say in a word of its goals, written out: `keep: 0.95`, before the recipe is validated.

written_out({"keep": 0.95, …})     # {"stop_at": {"accuracy": 0.95}, "prune": {"target": "smallest"}, …}
"""

from __future__ import annotations

from typing import Any

from prunetune.schedule.wanted import SMALLEST


def written_out(value: dict[str, Any]) -> dict[str, Any]:
    """The mapping with its goals as the keys that they are short for.

    Raises:
        ValueError: What is said in a word contradicts what is said at length.
    """
    return _searched(_kept(value))


def _kept(value: dict[str, Any]) -> dict[str, Any]:
    """`keep: 0.95`: `stop_at: {accuracy: 0.95}`."""
    wanted = value.get("keep")
    share = wanted if isinstance(wanted, int | float) and not isinstance(wanted, bool) else percent(wanted)
    if share is None:
        return value
    said = value.get("stop_at") or {}
    if not isinstance(said, dict) or said.get("accuracy", share) != share:
        raise ValueError("give the share to keep either as keep or as stop_at.accuracy, not both")
    return {**{k: v for k, v in value.items() if k != "keep"}, "stop_at": {**said, "accuracy": share}}


def _searched(value: dict[str, Any]) -> dict[str, Any]:
    """A search that names no target goes as far as it can."""
    prune = value.get("prune") or {}
    if not value.get("stop_at") or not isinstance(prune, dict):
        return value
    if {"sigma_neuron", "sigma_layer"} & prune.keys() or prune.get("target") is not None:
        return value
    return {**value, "prune": {**prune, "target": SMALLEST}}


def percent(text: Any) -> float | None:
    """`95%` as a share; None for what is none."""
    if not isinstance(text, str) or not text.strip().endswith("%"):
        return None
    try:
        return float(text.strip().removesuffix("%").strip()) / 100
    except ValueError:
        return None
