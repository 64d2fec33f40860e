"""RUN/summary.json as a value: original against final, and what it took (contract: the README).

summary = Summary.read(run / "summary.json")
summary.final.cost.params, summary.accuracy["gsm8k"].final, summary["final"]["cost"]["params"]
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, JsonValue, model_validator

from prunetune.runs.records import EvalRecord, Record, StageRecord


class Timing(Record):
    """Median times of one model, in milliseconds, with interquartile ranges; see `evaluation.latency`."""

    prefill_ms: float
    prefill_iqr_ms: float | None = None
    decode_ms_per_token: float
    decode_iqr_ms: float | None = None
    prompt_tokens: int | None = None
    new_tokens: int | None = None
    repeats: int | None = None
    batch: int | None = None
    question_ms: float | None = None
    ms_per_new_token: float | None = None
    tokens_per_s: float | None = None
    prefill_each_ms: tuple[float, ...] = ()
    decode_each_ms: tuple[float, ...] = ()
    load: tuple[float, ...] = ()


class Timings(Record):
    """Original and final model timed in turns: at batch 1, and `batched` at a larger one."""

    original: Timing | None = None
    final: Timing | None = None
    batched: Timings | None = None


class Accuracy(Record):
    """A task's figure before and after, with standard errors; n is the smaller where they differ."""

    original: float | None = None
    final: float | None = None
    original_stderr: float | None = None
    final_stderr: float | None = None
    n: int | None = None

    @model_validator(mode="before")
    @classmethod
    def _alone(cls, value: Any) -> Any:
        """A bare number is the final figure."""
        return {"final": value} if isinstance(value, int | float) else value


class TaskSpeedup(Record):
    """How many times as fast: a question (a model may answer shorter), and a generated token."""

    question: float | None = None
    token: float | None = None


class ControlRecord(Record):
    """The same size with the same budget, in one round; of a run of one round by a bare cut."""

    name: str = "pruned once"
    """`pruned once`, or `bare cut`: no compensation, ranked by `contribution`."""
    params_ratio: float | None = None
    accuracy: dict[str, Accuracy] = Field(default_factory=dict)
    recovery_tokens: int | None = None
    seconds: dict[str, float] = Field(default_factory=dict)


class Promise(Record):
    """What `stop_at` asked for, whether the final model keeps it, and on what evidence."""

    wanted: float
    kept: bool
    why: str


class Against(Record):
    """How far one model is ahead of another on the same `n` questions, as a share of 1, with its 95 % interval."""

    difference: float
    low: float
    high: float
    n: int


class KeptRecord(Record):
    """The share of the original's accuracy that a model keeps, with its 95 % interval; None: no bound."""

    value: float | None = None
    low: float = 0.0
    high: float | None = None


class RungRecord(Record):
    """A rung of a ladder: a finished model in RUN/`folder`; `against` is it minus the original, by task.

    `share` is what the recipe asks for, `recovery_tokens` all that were spent up to it.
    """

    share: float
    folder: str
    stage: str
    params: int | None = None
    params_ratio: float | None = None
    weight_bytes: int | None = None
    recovery_tokens: int | None = None
    accuracy: dict[str, Accuracy] = Field(default_factory=dict)
    against: dict[str, Against] = Field(default_factory=dict)
    kept: dict[str, KeptRecord] = Field(default_factory=dict)
    speedup: dict[str, float | TaskSpeedup] = Field(default_factory=dict)
    latency: Timings | None = None


class Recommended(Record):
    """The rung that keeps `wanted` of the accuracy; `folder` None: none does."""

    wanted: float
    folder: str | None = None
    why: str = ""


class RivalRecord(Record):
    """RUN/rivals/`folder`/rival.json: what could be taken instead, on the same questions; bytes as `how` says.

    In summary.json `against` is our final model minus it, by task.
    """

    name: str
    folder: str
    how: str = ""
    model_sha: str | None = None
    params: int | None = None
    weight_bytes: int | None = None
    evals: tuple[EvalRecord, ...] = ()
    against: dict[str, Against] = Field(default_factory=dict)


def rung_folder(share: float) -> str:
    """The folder of a rung's model below the run: `final-0.8`."""
    return f"final-{share}"


class Leak(Record):
    """A task's questions that also occur in the recovery data; see `data.stream.Overlap`."""

    exact: int | None = None
    normalised: int | None = None
    digits: int | None = None
    examples: tuple[str, ...] = ()
    questions: int | None = None


class Summary(Record):
    """RUN/summary.json. `asked` is the recipe's target, `reached` the same of the final model, in the same unit.

    `planned_tokens` of a run within a time: what recovery was to have when the time was planned.

    Also read by key, as the file is: `summary["final"]["cost"]`.
    """

    original: StageRecord | None = None
    stages: tuple[StageRecord, ...] = ()
    final: StageRecord | None = None
    params_ratio: float | None = None
    flops_ratio: dict[str, float] = Field(default_factory=dict)
    accuracy: dict[str, Accuracy] = Field(default_factory=dict)
    speedup: dict[str, float | TaskSpeedup] = Field(default_factory=dict)
    latency: Timings | None = None
    recovery_tokens: int | None = None
    planned_tokens: int | None = None
    seconds: dict[str, float] = Field(default_factory=dict)
    control: ControlRecord | None = None
    promise: Promise | None = None
    ladder: tuple[RungRecord, ...] = ()
    recommended: Recommended | None = None
    rivals: tuple[RivalRecord, ...] = ()
    leaks: dict[str, Leak] | None = None
    truncated: int | None = None
    environment: dict[str, JsonValue] = Field(default_factory=dict)
    recipe: dict[str, JsonValue] = Field(default_factory=dict)
    shape: dict[str, int] | None = None
    asked: float | int | str | dict[str, int | None] | None = None
    reached: float | int | str | dict[str, int | None] | None = None

    def __getitem__(self, key: str) -> Any:
        return self.to_json()[key]
