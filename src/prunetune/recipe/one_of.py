"""A key whose value is a name of a registry: built in, or a plugin's. Told with the nearest names where it is none."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from prunetune.common.plugins import names


@dataclass(frozen=True)
class OneOf:
    """Marks a text: `criterion: Annotated[str, OneOf("criterion", tuple(CRITERIA))]`.

    Attributes:
        kind: The registry's name among plugins (`plugins.KINDS`).
        own: Its built-in names.
    """

    kind: str
    own: tuple[str, ...]

    @property
    def valid(self) -> tuple[str, ...]:
        """All names there are now."""
        return (*self.own, *(n for n in names(self.kind) if n not in self.own))

    def check(self, value: str) -> str:
        """The value, if it is one of the names."""
        if value not in self.valid:
            near = difflib.get_close_matches(value, self.valid, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"must be one of {', '.join(self.valid)}{hint}")
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Text, then one of the names."""
        return core_schema.no_info_after_validator_function(self.check, handler(source))
