"""Token ids in configs: found, and put in anew, wherever they stand.

config.json and generation_config.json name tokens by id under keys that end in `_token_id`, `_token_ids` or
`_token_index`, at any depth and also in lists, and under the few keys of generation below
(https://huggingface.co/docs/transformers/main_classes/text_generation).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

NAMED = re.compile(
    r"(^|_)token_(id|index)(s|es)?$|^(suppress_tokens|begin_suppress_tokens|bad_words_ids|force_words_ids)$"
)
PAIRS = {"forced_decoder_ids": 1, "sequence_bias": 0}
"""Lists of pairs of which one side is a token or a list of tokens: that side's place."""


def ids_in(values: Any) -> set[int]:
    """All token ids that a config names."""
    found: set[int] = set()

    def see(i: int) -> int:
        found.add(i)
        return i

    _mapped(values, see)
    return found


def renumbered(values: Any, new: Mapping[int, int]) -> Any:
    """A config with the new ids in the old ones' places; what is no token of the original (None, -1) stays."""
    return _mapped(values, lambda i: new.get(i, i))


def _mapped(values: Any, change: Callable[[int], int]) -> Any:
    if isinstance(values, list):
        return [_mapped(v, change) for v in values]
    if not isinstance(values, dict):
        return values
    out = {}
    for key, value in values.items():
        if NAMED.search(str(key)):
            out[key] = _numbers(value, change)
        elif key in PAIRS and isinstance(value, list):
            out[key] = [[_numbers(v, change) if i == PAIRS[key] else v for i, v in enumerate(pair)] for pair in value]
        else:
            out[key] = _mapped(value, change)
    return out


def _numbers(value: Any, change: Callable[[int], int]) -> Any:
    if isinstance(value, list):
        return [_numbers(v, change) for v in value]
    return change(value) if type(value) is int and value >= 0 else value
