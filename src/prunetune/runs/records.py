"""A run folder read back as values (the contract is in the README): stages, plans, the pruned-once control.

Everything is optional where a run may not have got there yet, so a report of half a run says what is missing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prunetune.common import units as human
from prunetune.common.files import read_json
from prunetune.errors import BadCheckpoint, MissingPath
from prunetune.pruning.plan import PrunePlan

ACTIONS = ("score", "plan", "compensate", "apply", "tune", "evaluate")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow")


class CostRecord(_Record):
    """What a model of one stage costs; `flops` is the mean a question, by task."""

    params: int | None = None
    weight_bytes: int | None = None
    kv_bytes_per_token: int | None = None
    flops: dict[str, Any] = Field(default_factory=dict)


class EvalRecord(_Record):
    """One task's result; `seconds` is wall time for all `n` questions.

    `value` and `stderr` are shares of 1, unless `metric` is something else: then `n` counts tokens of text.
    """

    task: str
    value: float
    stderr: float | None = None
    n: int | None = None
    version: str | int | float | None = None
    metric: str = "accuracy"
    seed: int | None = None
    prompt_tokens: float | None = None
    new_tokens: float | None = None
    seconds: float | None = None
    correct: int | None = None
    truncated: int | None = None

    @property
    def is_share(self) -> bool:
        """Whether the figure is a share of right answers (not a perplexity)."""
        return human.is_share(self.metric)

    def text(self) -> str:
        """The figure with its standard error, in its own unit."""
        return human.measured(self.value, self.stderr, self.metric)

    def label(self) -> str:
        """What was measured on what: `accuracy, gsm8k`; a task that is its own metric is named once."""
        metric = human.metric(self.metric)
        return self.task if metric == self.task else f"{metric}, {self.task}"

    def size(self) -> str:
        """On how many questions (or tokens): `n = 1,319`; empty if not recorded."""
        return f"n = {self.n:,}{'' if self.is_share else ' tokens'}" if self.n else ""


class TuneRecord(_Record):
    """One recovery method's result within a stage."""

    method: str = ""
    samples: int | None = None
    tokens: int | None = None
    seconds: float | None = None
    steps: int | None = None
    log: tuple[dict[str, Any], ...] = ()
    truncated: int | None = None
    tokens_per_s: float | None = None
    peak_bytes: int | None = None
    mfu: float | None = None
    notes: tuple[str, ...] = ()


class StageRecord(_Record):
    """A stage.json: the untouched model (index 0) or what one step made of it."""

    index: int
    name: str
    attempt: int = 1
    step: dict[str, Any] | None = None
    model_sha: str | None = None
    depth: int | None = None
    width: int | None = None
    cost: CostRecord = CostRecord()
    evals: tuple[EvalRecord, ...] = ()
    samples: tuple[int, int] | None = None
    tokens: int | None = None
    seconds: dict[str, float] = Field(default_factory=dict)
    tune: tuple[TuneRecord, ...] = ()
    removed: dict[str, Any] | None = None
    pruned_loss: float | None = None
    held_out_loss: float | None = None
    verdict: dict[str, Any] | None = None
    decision: str | None = None

    def eval_of(self, task: str) -> EvalRecord | None:
        """The result on a task, if it was measured."""
        return next((e for e in self.evals if e.task == task), None)

    @property
    def params(self) -> int | None:
        """Parameters, tied ones once."""
        return self.cost.params

    @property
    def accepted(self) -> bool:
        """Whether the loop went on from this stage (a stage without a verdict counts as accepted)."""
        return self.verdict is None or bool(self.verdict.get("accepted", True))

    @property
    def total_seconds(self) -> float | None:
        """Wall time of the whole stage."""
        return sum(self.seconds.values()) if self.seconds else None


@dataclass(frozen=True)
class RunRecord:
    """A run folder.

    Attributes:
        path: The folder.
        original: The untouched model, measured the same way; None in a control that shares its parent's.
        stages: Every attempt, in order; rejected ones too.
        summary: summary.json, or {} while the run is not finished.
        recipe: The resolved recipe.
        control: RUN/control, a run of its own, if there is one.
    """

    path: Path
    original: StageRecord | None
    stages: tuple[StageRecord, ...]
    summary: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    control: RunRecord | None = None

    @property
    def shares(self) -> tuple[str, ...]:
        """The tasks whose figure is a share of right answers."""
        return tuple(t for t in self.tasks if all(e.is_share for s in self.measured for e in s.evals if e.task == t))

    @property
    def finished(self) -> bool:
        """Whether summary.json is there."""
        return bool(self.summary)

    @property
    def accepted(self) -> tuple[StageRecord, ...]:
        """The stages that the final model went through."""
        return tuple(s for s in self.stages if s.accepted)

    @property
    def measured(self) -> tuple[StageRecord, ...]:
        """The original, if it is there, and every attempt."""
        return (*((self.original,) if self.original else ()), *self.stages)

    @cached_property
    def final(self) -> StageRecord | None:
        """The stage that `final/` holds: the summary's, else the newest accepted one, else None."""
        name = (self.summary.get("final") or {}).get("name")
        if self.original is not None and name == self.original.name:
            return self.original
        named = [s for s in self.stages if s.name == name]
        return named[-1] if named else next(iter(self.accepted[::-1]), None)

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        """Every task that was measured, in order of appearance."""
        return tuple(dict.fromkeys(e.task for s in self.measured for e in s.evals))

    def folder(self, stage: StageRecord) -> Path:
        """The folder of one of this run's stages."""
        return self.path / stage.name

    def plans(self) -> list[tuple[StageRecord, PrunePlan]]:
        """The accepted stages that have a plan.json, with it."""
        found = [(s, self.folder(s) / "plan.json") for s in self.accepted]
        return [(s, PrunePlan.read(p)) for s, p in found if p.is_file()]

    def recovery_tokens(self) -> int | None:
        """Tokens spent on recovery in all stages, rejected attempts too; None if not recorded."""
        if not self.stages or any(s.tokens is None for s in self.stages):
            return None
        return sum(s.tokens or 0 for s in self.stages)

    def seconds(self) -> dict[str, float]:
        """Wall time by action over all stages, the original's evaluation included."""
        everyone = self.measured
        actions = [*ACTIONS, *{a for s in everyone for a in s.seconds if a not in ACTIONS}]
        return {
            a: sum(s.seconds.get(a, 0.0) for s in everyone) for a in actions if any(a in s.seconds for s in everyone)
        }


def read_run(path: Path) -> RunRecord:
    """Read a run folder; MissingPath if it is none, BadCheckpoint for a record that cannot be read."""
    if not path.is_dir():
        raise MissingPath("no such run folder", value=str(path), fix="check the path")
    run = _read(path)
    if run.original is None and not run.stages:
        raise MissingPath(
            "this folder holds no run: it has neither original/stage.json nor a finished stage",
            value=str(path),
            fix="pass the folder that `prunetune run --out` wrote",
        )
    return run


def _read(path: Path) -> RunRecord:
    first = path / "original" / "stage.json"
    found = sorted(p for p in path.glob("[0-9]*/stage.json"))
    stages = sorted((_stage(p) for p in found), key=lambda s: (s.index, s.attempt))
    summary, recipe = path / "summary.json", path / "recipe.yaml"
    control = path / "control"
    child = _read(control) if control.is_dir() else None
    return RunRecord(
        path=path,
        original=_stage(first) if first.is_file() else None,
        stages=tuple(stages),
        summary=read_json(summary) if summary.is_file() else {},
        recipe=_yaml(recipe) if recipe.is_file() else {},
        control=child if child is not None and child.stages else None,
    )


def _yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise BadCheckpoint(f"this recipe cannot be read ({e})", value=str(path), fix="restore the file") from None
    return value if isinstance(value, dict) else {}


def _stage(path: Path) -> StageRecord:
    try:
        raw = {k: v for k, v in read_json(path).items() if v is not None}
        return StageRecord.model_validate(raw)
    except (ValidationError, AttributeError) as e:
        detail = e.errors()[0] if isinstance(e, ValidationError) else {"loc": (), "msg": "not an object"}
        where = ".".join(str(p) for p in detail["loc"]) or "stage"
        raise BadCheckpoint(
            f"this stage record is not valid: {where}: {detail['msg']}", value=str(path), fix="run the stage again"
        ) from None
