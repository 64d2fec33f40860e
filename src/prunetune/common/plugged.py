"""A union of settings, told apart by `type`, that plugins may add to."""

from __future__ import annotations

from typing import Any

from pydantic import ValidatorFunctionWrapHandler, WrapValidator

from prunetune.common.plugins import lookup, names


def plugged(kind: str) -> WrapValidator:
    """An annotation of such a union: a value whose `type` is a plugin's is read by the plugin's model.

    Args:
        kind: `source` or `method`, see `plugins.KINDS`.
    """

    def read(value: Any, ours: ValidatorFunctionWrapHandler) -> Any:
        name = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
        if not isinstance(name, str) or name not in names(kind):
            return ours(value)
        model: Any = lookup(kind, {}, name, kind)
        return value if isinstance(value, model) else model.model_validate(value)

    return WrapValidator(read)
