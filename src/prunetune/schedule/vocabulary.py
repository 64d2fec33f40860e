"""Fewer tokens, as a recipe says it: `vocabulary: task`, `vocabulary: 32768`, `vocabulary: {keep: task, guard: …}`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from prunetune.data.sources import DataSource


class VocabularyConfig(BaseModel):
    """Which tokens stay; the others go once, before the first round."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    keep: Annotated[int, Field(gt=0, le=10**9)] | Literal["task"] = "task"
    """task: all that the recipe's data (and the guard) use. A count: the most frequent of them, at most so many."""
    guard: list[DataSource] = Field(default_factory=list)
    """Texts that shall not become longer either."""


def written_out(value: Any) -> Any:
    """`vocabulary: task` and `vocabulary: 32768` as the mapping that they are short for; a choice by axes needs one."""
    if not isinstance(value, dict):
        return value
    said, names = value.get("vocabulary"), value.get("axes")
    if said is None and isinstance(names, list) and "vocabulary" in names:
        said = {}
    if isinstance(said, int | str) and not isinstance(said, bool):
        said = {"keep": int(said) if isinstance(said, str) and said.isdecimal() else said}
    return value if said is None else {**value, "vocabulary": said}
