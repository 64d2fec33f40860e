"""One task's figure as a value: what every way of measuring returns."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class EvalResult:
    """One task's figure.

    Attributes:
        value: Share of correct answers (or the perplexity, where `metric` says so).
        stderr: Standard error of that share (`common.stats.stderr`); zero where all or none are right: see `wilson`.
        n: Questions (tokens, of a perplexity).
        seed: Seed of the choice of questions.
        prompt_tokens: Mean prompt length.
        new_tokens: Mean answer length, end token included.
        seconds: Time spent generating and verifying.
        correct: Questions answered correctly.
        truncated: Answers cut by the length limit.
        scores: Means of further scores, such as `f1`, each with `…_stderr`.
        shots: Worked examples in each prompt (lm-eval's tasks).
        limit: Only the first so many questions of each of lm-eval's tasks were asked. None: all.
    """

    task: str
    version: str
    metric: str
    value: float
    stderr: float
    n: int
    seed: int
    prompt_tokens: float
    new_tokens: float
    seconds: float
    correct: int
    truncated: int = 0
    scores: dict[str, float] = field(default_factory=dict)
    shots: int = 0
    limit: int | None = None

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> EvalResult:
        """From `to_json`'s value."""
        return cls(**value)
