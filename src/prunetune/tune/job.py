"""A recovery step as a value: `TuneJob` in, a tuned plain model folder and a `TuneResult` out.

    job = TuneJob(model=at / "pruned", out=at / "tuned", work=at / ".tuned", method=Cpt(), sources=(...), end=3200)
    result = launch(job)                 # launch.py

The same job runs in this process (`stage.run_job`), or in several under `accelerate launch`. A job that was killed
goes on from the newest whole checkpoint in `work`, with the same order of data and random numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from prunetune.common.files import read_json, write_json
from prunetune.common.reading import invalid
from prunetune.data.stream import DataSource
from prunetune.errors import TuneError
from prunetune.models.prompt import PromptFormat
from prunetune.tasks.registry import TaskConfig
from prunetune.tune.methods import TuneConfig

Progress = Callable[[int, int], None]


class Telemetry(BaseModel):
    """Where a job tells what it does; nothing of the result depends on it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    events: Path
    """File of events, see `common/events.py`."""
    stage: str = ""
    """Folder of the round."""
    run: str = ""
    """Name of the run, for trackers."""
    log: tuple[str, ...] = ()
    """Trackers and plugins' callbacks, see `trackers.py`."""


class TuneJob(BaseModel):
    """All that decides what a recovery step does; JSON both ways."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Path
    """Folder of the model to recover."""
    out: Path
    """Folder to write; must not hold a model yet."""
    work: Path
    """Folder for checkpoints and evidence; may go once `out` is whole."""
    method: TuneConfig
    """What to do, with all its settings."""
    sources: tuple[DataSource, ...]
    """The recovery data: one shuffled stream (`data.load_stream`)."""
    data_seed: int = 0
    """Seed of that stream's shuffle."""
    start: int = Field(default=0, ge=0)
    """First example of the stream that is this step's."""
    end: int | None = Field(default=None, ge=0)
    """One past the last; None: to the end of the stream."""
    tokens: int | None = Field(default=None, gt=0)
    """Stop taking examples of [start, end) once they hold this many tokens."""
    seconds: float | None = Field(default=None, gt=0)
    """End training, with what is learnt so far, once it has taken so long; None: never."""
    seed: int = 0
    """Seed of everything random in this step."""
    fmt: PromptFormat = PromptFormat()
    """How questions become prompts."""
    teacher: Path | None = None
    """`distill`, `local`: folder of the teacher (the original model)."""
    origins: tuple[int, ...] | None = None
    """`local`: of each layer of `model`, its place in the teacher; None: they have equally many."""
    task: TaskConfig | None = None
    """`grpo`: the task whose verifier gives the reward."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to train; auto: a GPU if there is one."""
    telemetry: Telemetry | None = None
    """Who is told of each step."""

    @model_validator(mode="after")
    def _range(self) -> TuneJob:
        if self.end is not None and self.end < self.start:
            raise ValueError(f"end {self.end} lies before start {self.start}")
        if self.method.data is not None or self.method.when != "every":
            raise ValueError("data and when of a method are for recipes: a job has its sources, and is one step")
        return self

    def write(self, path: Path) -> None:
        """Write as JSON, atomically."""
        write_json(path, self.model_dump(mode="json"))

    @staticmethod
    def read(path: Path) -> TuneJob:
        """Read and validate; TuneError names what is wrong."""
        try:
            return TuneJob.model_validate(read_json(path))
        except ValidationError as e:
            first = e.errors()[0]
            where = ".".join(str(p) for p in first["loc"]) or "job"
            raise TuneError(f"this tuning job is not valid: {where}: {first['msg']}", value=str(path)) from None


Entry = dict[str, float | None]
"""What was measured at one optimiser step, by name."""


@dataclass(frozen=True)
class TuneResult:
    """What a recovery step did.

    Attributes:
        method: Its type.
        samples: Examples (prompts) taken from the stream; the next step starts at `start + samples`.
        tokens: Tokens trained, padding excluded, all epochs (`grpo`: prompt and completion tokens of all updates).
        seconds: Wall time of training, loading and saving excluded; a resumed step counts all its parts.
        steps: Optimiser steps.
        log: One entry a step: step, loss, lr, grad_norm (`grpo`: also reward, kl, completion_tokens, clipped).
            None: not a number at that step.
        truncated: Examples cut by `max_length`.
        data_tokens: Tokens of the examples taken, each once; 0: `tokens` over the method's epochs.
        tokens_per_s: tokens / seconds.
        peak_bytes: Highest memory: of the device where it has its own, else resident memory of the process.
        mfu: FLOPs of the model / seconds / what a plain matrix product reaches on this device in the compute type.
        notes: What a reader of the report should know.
        planned: Optimiser steps that it would have taken, had its time been enough; 0: not told.
    """

    method: str
    samples: int
    tokens: int
    seconds: float
    steps: int
    log: list[Entry] = field(default_factory=list)
    truncated: int = 0
    data_tokens: int = 0
    tokens_per_s: float = 0.0
    peak_bytes: int = 0
    mfu: float = 0.0
    notes: list[str] = field(default_factory=list)
    planned: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @staticmethod
    def from_json(value: dict[str, Any]) -> TuneResult:
        """The inverse of `to_json`."""
        return TuneResult(**value)


def result_path(job: TuneJob) -> Path:
    """Where a job run as a process leaves its TuneResult."""
    return job.work / "result.json"


def read_result(path: Path) -> TuneResult:
    """The TuneResult that a process left."""
    value = read_json(path, "recovery job's result", fix="run the stage again")
    try:
        return TypeAdapter(TuneResult).validate_python(value)
    except ValidationError as e:
        raise invalid(e, path, "recovery job's result", fix="run the stage again") from None
