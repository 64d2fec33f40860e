"""What a recipe measures: tasks of the original, every round and the result, rivals; and what a search asks for."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, field_validator

from prunetune.tasks.registry import TaskConfig, has_verifier

WEIGHT_ONLY = ("int8", "int4")
"""Rivals that are made of the original itself: its weights rounded to so many bits."""


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class EvaluateConfig(_Config):
    """What is measured: the original, every round and the final model, the same way."""

    tasks: list[TaskConfig] = Field(default_factory=list)
    """Tasks with verifiers, and controls that say what recovery cost elsewhere (perplexity, squad, lm-eval:NAME)."""
    round_n: int | None = Field(None, gt=0)
    """Problems a task after each round; the original and the final model answer all `n`. None: all."""
    batch_size: int | None = Field(None, gt=0)
    """Questions answered at once; None: chosen by memory."""
    latency_repeats: int = Field(5, ge=0)
    """Repetitions of the prefill and decode measurement of original and final model, 0: not measured. From five on
    there are at least eight, and up to four times as many until a speed-up is known to 3 % or half a minute is over."""

    rivals: list[str] = Field(default_factory=list)
    """What could be taken instead, asked the same questions: models by folder, hub name or .gguf file; `int8` and
    `int4`: the original with its weights rounded to 8 or 4 bits (in groups of 32, accuracy alone)."""

    @field_validator("rivals")
    @classmethod
    def _different(cls, value: list[str]) -> list[str]:
        if twice := [r for i, r in enumerate(value) if r in value[:i]]:
            raise ValueError(f"{twice[0]} is named twice among the rivals")
        if any(not r.strip() for r in value):
            raise ValueError("a rival has no name")
        return value

    @property
    def judged(self) -> TaskConfig | None:
        """The first task whose verifier can judge any answer, as a reward or a stop condition needs it."""
        return next((t for t in self.tasks if has_verifier(t)), None)


class StopConfig(_Config):
    """As small as possible without losing more than a share of the accuracy: a search (docs/method.md)."""

    accuracy: float = Field(gt=0, le=1)
    """Share of the original's accuracy that the model must keep."""
    n: int = Field(1000, gt=0)
    """Validation problems that decide, at most: fewer where the answer is plain. Not among those that are reported."""
    fresh: int = Field(2000, gt=0)
    """The promise is to hold, by the lower end of its 95 % interval, on so many problems never seen before."""
    task: TaskConfig | None = None
    """Where the validation problems come from; None: the first task of `evaluate`, drawn with another seed."""
