"""A target as people say it: `0.6`, `60%`, `3B` parameters, `4GB` of weights, `2x` as fast. Text only, no model.

read_target("60%")      # 0.6         read_target("4GB")    # "4GB", which `bytes_of` reads as 4,000,000,000
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

LADDER = "[0.8, 0.7, 0.6, 0.5]"
_COUNT = re.compile(r"(\d+(?:\.\d+)?(?:e\d+)?)\s*([kmbKMBgG]?)")
_THOUSANDS = re.compile(r"\d{1,3}(,\d{3})+(?![\d,])")
_SCALE = {"": 1, "k": 1_000, "m": 1_000_000, "b": 1_000_000_000, "g": 1_000_000_000}
_BYTES = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt])(i?)b", re.IGNORECASE)
_POWERS = {"k": 1, "m": 2, "g": 3, "t": 4}
_TIMES = re.compile(r"(\d+(?:\.\d+)?)\s*[x×]", re.IGNORECASE)

SMALLEST = "smallest"
"""The end of a search that goes on while the accuracy is kept."""
VALID = "a share (0.6, 60%), parameters (3B), bytes of the weights (4GB, 500MB), or a speed-up (2x)"


def count_of(text: str) -> int | None:
    """A count as people write it: `20M`, `1.5k`, `300000`, `300_000`; None: it is none, or not above 0.

    A comma stands between thousands and nowhere else: `0,6` is not 6.
    """
    said = text.strip().replace("_", "")
    found = _COUNT.fullmatch(said.replace(",", "") if _THOUSANDS.match(said) else said)
    value = float(found[1]) * _SCALE[found[2].lower()] if found else 0.0
    return round(value) if 1 <= value < 1e18 else None


def bytes_of(text: str) -> int | None:
    """Bytes of `4GB` (10^9) or `4GiB` (2^30); None: the text says no bytes."""
    found = _BYTES.fullmatch(text.strip())
    value = float(found[1]) * (1024 if found[3] else 1000) ** _POWERS[found[2].lower()] if found else 0
    return int(value) if value >= 1 else None


def times_of(text: str) -> float | None:
    """How many times as fast: 2.0 of `2x`; None: the text says no speed-up."""
    found = _TIMES.fullmatch(text.strip())
    return float(found[1]) if found else None


def read_target(text: str) -> float | int | str:
    """A share as a float, parameters as an int, bytes and speed-ups as they are said. ValueError: it means nothing."""
    text = text.strip()
    if text == SMALLEST or bytes_of(text) is not None or times_of(text) is not None:
        if (times := times_of(text)) is not None and times <= 1:
            raise ValueError(f"{text} is no faster: a speed-up is above 1x")
        return text
    percent = text.removesuffix("%").strip()
    try:
        share = float(percent) / 100 if percent != text else float(text)
    except ValueError:
        if (parameters := count_of(text)) is None:
            point = f" (a decimal point, not a comma: {text.replace(',', '.')})" if "," in text else ""
            raise ValueError(f"{text!r} means nothing{point}: give {VALID}") from None
        return parameters
    if not math.isfinite(share) or share <= 0 or (share > 1 and percent != text):
        raise ValueError("a target must be above 0, and at most 100 %")
    return int(share) if share > 1 and share == int(share) else share


def read_ladder(value: Any) -> list[float]:
    """The rungs of a ladder: falling shares of the original's parameters, as numbers or as text (`80%`).

    Raises:
        ValueError: They are no such shares.
    """
    said = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
    if not isinstance(said, list | tuple) or not said:
        raise ValueError(f"a ladder is a list of shares: {LADDER}")
    rungs: list[float] = []
    for text in said:
        share = read_target(text) if isinstance(text, str) else text
        if not isinstance(share, float) or not 0 < share < 1:
            raise ValueError(f"a rung is a share of the parameters, above 0 and below 1, not {text!r}: {LADDER}")
        if rungs and share >= rungs[-1]:
            raise ValueError(f"a ladder falls from rung to rung, and {share:g} comes after {rungs[-1]:g}: {LADDER}")
        rungs.append(share)
    return rungs


def check_ladder(ladder: list[float], target: object, rounds: Mapping[str, object]) -> None:
    """ValueError if the target is not the last rung, or a number of rounds is less than one for each."""
    if target != ladder[-1]:
        said = target if isinstance(target, float | int | str) else "a shape"
        raise ValueError(f"the ladder ends at {ladder[-1]:g}, but the target is {said}: leave out the target")
    for name, most in rounds.items():
        if isinstance(most, int) and most < len(ladder):
            raise ValueError(f"each rung of a ladder ends a round: {name} must be {len(ladder)} at least")
