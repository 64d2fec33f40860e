"""What a recipe may say in a word of its goals, written out: `keep: 0.95`, `budget: 2h`, before it is validated.

written_out({"keep": 0.95, …})     # {"stop_at": {"accuracy": 0.95}, "prune": {"target": "smallest"}, …}
"""

from __future__ import annotations

import re
from typing import Any

from prunetune.schedule.wanted import SMALLEST

_TIME = re.compile(
    r"(?=[\d.])(?:(\d+(?:\.\d+)?)\s*(?:h|hours?))?\s*(?:(\d+(?:\.\d+)?)\s*(?:m|min|minutes?))?\s*"
    r"(?:(\d+(?:\.\d+)?)\s*(?:s|sec|seconds?)?)?"
)


def written_out(value: dict[str, Any]) -> dict[str, Any]:
    """The mapping with its goals as the keys that they are short for.

    Raises:
        ValueError: What is said in a word contradicts what is said at length.
    """
    return _searched(_kept(_timed(_stepped(value))))


def _stepped(value: dict[str, Any]) -> dict[str, Any]:
    """`ladder: [0.8, 0.6]`: `prune: {ladder: [0.8, 0.6]}`."""
    said, prune = value.get("ladder"), value.get("prune") or {}
    if "ladder" not in value or not isinstance(prune, dict):
        return value
    if prune.get("ladder", said) != said:
        raise ValueError("give the ladder either by itself or as prune.ladder, not both")
    rest = {k: v for k, v in value.items() if k != "ladder"}
    return rest if said is None else {**rest, "prune": {**prune, "ladder": said}}


def _timed(value: dict[str, Any]) -> dict[str, Any]:
    """`budget: 2h`: `within: 2h`."""
    said = value.get("budget")
    if said is None or (isinstance(said, str) and not _TIME.fullmatch(said.strip())):
        return value
    if value.get("within", said) != said:
        raise ValueError("give the time either as budget or as within, not both")
    return {**{k: v for k, v in value.items() if k != "budget"}, "within": said}


def seconds(value: Any) -> Any:
    """A time as people write it, in seconds: `2h`, `1h30m`, `10min`, `90s`, `600`; what is none as it is."""
    if not isinstance(value, str) or not (found := _TIME.fullmatch(value.strip())):
        return value
    hours, minutes, rest = (float(part or 0) for part in found.groups())
    return 3600 * hours + 60 * minutes + rest


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
    if {"sigma_neuron", "sigma_layer"} & prune.keys() or prune.get("target") is not None or prune.get("ladder"):
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
