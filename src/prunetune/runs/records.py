"""What is written of a round, as values: one schema, which the loop writes and everybody reads (contract: the README).

    stage = StageRecord.read(at / "stage.json")      # stage.verdict.accepted, stage.cost.params, stage.evals[0].value
    write_json(at / "stage.json", stage.to_json())   # only what was set is written

What a record does not say is None, never zero: a report of half a run then says what is missing. Keys that are not
known here (of a newer version) are kept. `known` names what a caller cannot do without.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationInfo, WrapSerializer, field_validator

from prunetune.common import units as human
from prunetune.common.reading import read_model
from prunetune.errors import BadCheckpoint
from prunetune.models.axes import axes
from prunetune.schedule.damage import Probe
from prunetune.schedule.steps import Step

WrittenStep = Annotated[
    Step, WrapSerializer(lambda step, handler: {k: v for k, v in handler(step).items() if v or k != "more"})
]
"""A step as it was written before other axes could go, where none does."""
ACTIONS = ("score", "probe", "plan", "compensate", "apply", "tune", "evaluate")

T = TypeVar("T")


def known(value: T | None, what: str) -> T:
    """The value, or BadCheckpoint where a record does not say it."""
    if value is None:
        raise BadCheckpoint(f"a record of this run does not say its {what}", fix="start again in a new --out")
    return value


class Record(BaseModel):
    """A frozen part of a run's records."""

    model_config = ConfigDict(frozen=True, extra="allow", ser_json_inf_nan="constants")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values of what was set, in the order of the fields."""
        return self.model_dump(mode="json", exclude_unset=True)

    @classmethod
    def read(cls, path: Path) -> Self:
        """A file's record; MissingPath if there is none, BadCheckpoint for one that is not valid."""
        return read_model(path, cls, "record", fix="run the stage again", finite=False)


class CostRecord(Record):
    """What a model of one stage costs; `flops` is the mean a question, by task. Of a mixture of experts also
    `active_params`, those that one token passes.
    """

    params: int | None = None
    active_params: int | None = None
    weight_bytes: int | None = None
    kv_bytes_per_token: int | None = None
    train_bytes: int | None = None
    flops: dict[str, float | None] = Field(default_factory=dict)

    @field_validator("flops", mode="before")
    @classmethod
    def _totals(cls, value: Any) -> Any:
        """A task's FLOPs may be split: their total counts."""
        if not isinstance(value, dict):
            return value
        return {task: flops.get("total") if isinstance(flops, dict) else flops for task, flops in value.items()}


class EvalRecord(Record):
    """One task's result; `seconds` is wall time for all `n` questions.

    `value` and `stderr` are shares of 1, unless `metric` is something else: then `n` counts tokens of text.
    """

    task: str
    version: str | int | float | None = None
    metric: str = "accuracy"
    value: float
    stderr: float | None = None
    n: int | None = None
    seed: int | None = None
    prompt_tokens: float | None = None
    new_tokens: float | None = None
    seconds: float | None = None
    correct: int | None = None
    truncated: int | None = None
    scores: dict[str, float] = Field(default_factory=dict)
    shots: int | None = None
    limit: int | None = None

    @property
    def is_share(self) -> bool:
        """Whether the figure is a share of right answers (not a perplexity)."""
        return human.is_share(self.metric)

    def text(self) -> str:
        """The figure with its standard error (Wilson's interval where all or none are right), in its own unit."""
        return human.measured(self.value, self.stderr, self.metric, self.n)

    def label(self) -> str:
        """What was measured on what: `accuracy, gsm8k`; a task that is its own metric is named once."""
        metric = human.metric(self.metric)
        return self.task if metric == self.task else f"{metric}, {self.task}"

    def size(self) -> str:
        """On how many questions (or tokens): `n = 1,319`; empty if not recorded."""
        return f"n = {self.n:,}{'' if self.is_share else ' tokens'}" if self.n else ""


class TuneRecord(Record):
    """One recovery method's result within a stage; `log` has an entry an optimiser step (`local`: a block).

    `tokens` are trained ones, all passes; `data_tokens`, where it is above 0, those of the examples, each once.
    """

    method: str = ""
    samples: int | None = None
    tokens: int | None = None
    seconds: float | None = None
    steps: int | None = None
    data_tokens: int | None = None
    log: tuple[dict[str, JsonValue], ...] = ()
    truncated: int | None = None
    tokens_per_s: float | None = None
    peak_bytes: int | None = None
    mfu: float | None = None
    notes: tuple[str, ...] = ()

    def logged(self, key: str) -> list[tuple[int, float]]:
        """(step, value) of every entry of the log that has a number for this key."""
        found = [(row.get("step"), row.get(key)) for row in self.log]
        return [(int(s), float(v)) for s, v in found if isinstance(s, int | float) and isinstance(v, int | float)]


class Removed(Record):
    """What a round cut: neurons of every layer, layers as numbered in the original model, units of other axes."""

    neurons: int = 0
    layers: tuple[int, ...] = ()
    others: dict[str, int] = Field(default_factory=dict)


class Validation(Record):
    """What `stop_at` saw: accuracies on the problems that decide, the share kept and its lower bound."""

    n: int
    accuracy: float
    original: float
    kept: float
    lower: float


class Verdict(Record):
    """Whether the loop goes on from a stage, and why."""

    accepted: bool = True
    why: str = ""
    validation: Validation | None = None


class StageRecord(Record):
    """A stage.json: the untouched model (index 0) or what one round made of it.

    `shape` counts what can be cut by axis (layers, neurons, heads: key/value groups, vocabulary); depth and width are
    its first two. `samples` is the part [start, end) of the recipe's stream; `share` that of the budget left.
    """

    index: int
    name: str
    attempt: int = 1
    step: WrittenStep | None = None
    model_sha: str | None = None
    depth: int | None = None
    width: int | None = None
    shape: dict[str, int] | None = None
    cost: CostRecord = CostRecord()
    evals: tuple[EvalRecord, ...] = ()
    samples: tuple[int, int] | None = None
    tokens: int | None = None
    seconds: dict[str, float] = Field(default_factory=dict)
    tune: tuple[TuneRecord, ...] = ()
    rounds: int | None = None
    removed: Removed | None = None
    pruned_loss: float | None = None
    held_out_loss: float | None = None
    share: float | None = None
    decision: str | None = None
    verdict: Verdict | None = None

    @field_validator("attempt", "cost", "evals", "seconds", "tune", mode="before")
    @classmethod
    def _unknown(cls, value: Any, info: ValidationInfo) -> Any:
        """A null is what was not recorded."""
        if value is not None or info.field_name is None:
            return value
        return cls.model_fields[info.field_name].get_default(call_default_factory=True)

    def eval_of(self, task: str) -> EvalRecord | None:
        """The result on a task, if it was measured."""
        return next((e for e in self.evals if e.task == task), None)

    @property
    def params(self) -> int | None:
        """Parameters, tied ones once."""
        return self.cost.params

    @property
    def counts(self) -> dict[str, int]:
        """How many there are of each axis that is known here; BadCheckpoint as `place`."""
        depth, width = self.place
        more = {name: n for name, n in (self.shape or {}).items() if name in axes()}
        return {**more, "layers": depth, "neurons": width}

    @property
    def place(self) -> tuple[int, int]:
        """Layers and FFN width; BadCheckpoint if the record does not say them."""
        return known(self.depth, "depth"), known(self.width, "width")

    @property
    def loss(self) -> float:
        """Held-out loss, nats a token; BadCheckpoint if the record does not say it."""
        return known(self.held_out_loss, "held-out loss")

    @property
    def accepted(self) -> bool:
        """Whether the loop went on from this stage (a stage without a verdict counts as accepted)."""
        return self.verdict is None or self.verdict.accepted

    @property
    def why(self) -> str:
        """The verdict's reason; empty if none was recorded."""
        return self.verdict.why if self.verdict is not None else ""

    @property
    def mean_accuracy(self) -> float:
        """Mean over the tasks that are judged right or wrong; -1 if there is none."""
        values = [e.value for e in self.evals if e.is_share]
        return sum(values) / len(values) if values else -1.0

    @property
    def total_seconds(self) -> float | None:
        """Wall time of the whole stage."""
        return sum(self.seconds.values()) if self.seconds else None


class Waypoint(Record):
    """A shape on the way to the target, and the loss that it would add (nats)."""

    depth: int
    width: int
    damage: float


class DecisionRecord(Record):
    """RUN/decisions/NN.json: how far a round goes, with which share of the budget, and what was measured for it.

    `kind` is what it is in a search with `stop_at`: a first guess at an axis, further on it, between what stood and
    what did not, or over: then there is no step.
    """

    index: int
    rounds: int
    step: WrittenStep | None
    kind: Literal["round", "guess", "further", "between", "over"] = "round"
    share: float | None
    why: str
    loss: float
    probes: tuple[Probe, ...] = ()
    path: tuple[Waypoint, ...] = ()
    seconds: float = 0.0


class Figures(Record):
    """What was measured of a round's model, and the verdict on it: what its stage.json is composed from."""

    cost: CostRecord
    evals: tuple[EvalRecord, ...]
    pruned_loss: float | None
    held_out_loss: float | None
    verdict: Verdict | None = None


FULL = "full.json"
"""Beside the final stage's stage.json, where the rounds were asked less: the final model's figures on all questions."""


class FullRecord(Record):
    """The figures that take the place of a stage's once its model is the final one."""

    evals: tuple[EvalRecord, ...]
    flops: dict[str, float | None]


def read_stage(path: Path) -> StageRecord:
    """A stage.json, with the figures on all questions where its model was the final one."""
    stage, full = StageRecord.read(path), path.with_name(FULL)
    if not full.is_file():
        return stage
    found = FullRecord.read(full)
    cost = stage.cost.model_copy(update={"flops": found.flops})
    return stage.model_copy(update={"evals": found.evals, "cost": cost})
