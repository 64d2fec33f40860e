"""What the command line says of a recipe, put into its mapping before it is read: `--set KEY=VALUE`, `--tokens 20M`.

value = changed(value, "score.samples=512")
value = changed(value, "recover.0.learning_rate=1e-5")
"""

from __future__ import annotations

import copy
import math
import os
from pathlib import Path
from typing import Any

from prunetune.common.plugins import names
from prunetune.common.yaml import parse_yaml
from prunetune.data.formats import DATA_SUFFIXES, suffix_of
from prunetune.errors import RecipeError
from prunetune.schedule.wanted import VALID, count_of, read_ladder, read_target


def count(text: str, what: str) -> int:
    """A count as people write it: `20M`, `1.5k`, `300000`, `300_000`."""
    value = count_of(text)
    if value is None:
        raise RecipeError(f"{what} must be a count above 0", value=text, valid="300000, 300k, 20M, 1.5B")
    return value


def target(text: str) -> float | int | str:
    """How much is to stay, as people write it: a share (`0.6`, `60%`), parameters (`3B`), bytes (`4GB`) or `2x`."""
    try:
        return read_target(text)
    except ValueError as e:
        raise RecipeError(f"--target: {e}", value=text, valid=VALID) from None


def ladder(text: str) -> list[float]:
    """The rungs of a ladder: `0.8,0.7,0.6` or `80%,70%`."""
    try:
        return read_ladder(text)
    except ValueError as e:
        raise RecipeError(f"--ladder: {e}", value=text, valid="0.8,0.7,0.6,0.5") from None


def share(text: str, what: str) -> float:
    """A share as people write it: `0.95`, `95%`, `95 %`."""
    percent = text.strip().removesuffix("%").strip()
    try:
        found = float(percent) / (100 if percent != text.strip() else 1)
    except ValueError:
        found = math.nan
    if not 0 < found <= 1:
        raise RecipeError(f"{what} must be a share above 0 and at most 1", value=text, valid="0.95 or 95%")
    return found


def changed(value: dict[str, Any], said: str) -> dict[str, Any]:
    """The mapping with one value changed: `KEY.KEY=VALUE`, a number in the path is a place in a list, VALUE is YAML."""
    path, equals, text = said.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise RecipeError(
            "--set wants KEY=VALUE", value=said, valid="--set score.samples=512, --set recover.0.lora.rank=8"
        )
    value = copy.deepcopy(value)
    here: Any = value
    for done, key in enumerate(keys):
        at = _place(here, key, ".".join(keys[:done]) or "the recipe", said)
        if done == len(keys) - 1:
            here[at] = parse_yaml(text, f"--set {path}")
            return value
        if isinstance(here, dict) and not isinstance(here.get(at), (dict, list)):
            here[at] = {}
        here = here[at]
    return value


def _place(here: Any, key: str, where: str, said: str) -> Any:
    """A key of a mapping, or a place in a list."""
    if isinstance(here, dict):
        return key
    if not isinstance(here, list) or not key.isdecimal() or int(key) >= len(here):
        many = len(here) if isinstance(here, list) else 0
        valid = f"0 to {many - 1}" if many else f"{where} as a whole, such as --set {where}=[...]"
        raise RecipeError(f"--set: {where} has no entry {key!r}", value=said, valid=valid)
    return int(key)


def parse_data(text: str, seed: int = 0) -> dict[str, Any]:
    """`--data` as a data source of a recipe."""
    kind, _, name = text.partition(":")
    if text == "demo":
        return {"type": "demo", "size": 20000, "seed": seed}
    if kind == "generator" and name:
        return {"type": "generator", "name": name, "size": 5000, "seed": seed}
    if kind == "preset" and name:
        return {"type": "preset", "name": name}
    if kind in names("source"):
        return {"type": kind, **({"name": name} if name else {})}
    path = Path(os.path.expandvars(text)).expanduser()
    if path.exists() or suffix_of(path) in DATA_SUFFIXES or text.startswith(("/", ".", "~", "$")):
        return {"type": "file", "path": text}
    return {"type": "hub", "name": text}
