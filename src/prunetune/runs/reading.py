"""A run folder read back as values: stages, plans, the pruned-once control.

Everything is optional where a run may not have got there yet, so a report of half a run says what is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from prunetune.common.yaml import read_yaml
from prunetune.errors import BadCheckpoint, MissingPath
from prunetune.pruning.plan import PrunePlan
from prunetune.runs.records import ACTIONS, StageRecord, read_stage
from prunetune.runs.shapes import SHAPE, ShapeRecord
from prunetune.runs.summary import RungRecord, Summary
from prunetune.runs.vocabulary import VOCABULARY, VocabularyRecord


@dataclass(frozen=True)
class RunRecord:
    """A run folder.

    Attributes:
        path: The folder.
        original: The untouched model, measured the same way; None in a control that shares its parent's.
        fewer: That with fewer tokens, which the first round started from; None: its vocabulary is whole.
        vocabulary: Which tokens these are.
        stages: Every attempt, in order; rejected ones too.
        summary: summary.json; empty while the run is not finished.
        recipe: The resolved recipe.
        control: RUN/control, a run of its own, if there is one.
    """

    path: Path
    original: StageRecord | None
    stages: tuple[StageRecord, ...]
    summary: Summary = field(default_factory=Summary)
    recipe: Mapping[str, object] = field(default_factory=dict)
    control: RunRecord | None = None
    fewer: StageRecord | None = None
    vocabulary: VocabularyRecord | None = None

    @property
    def shares(self) -> tuple[str, ...]:
        """The tasks whose figure is a share of right answers."""
        return tuple(t for t in self.tasks if all(e.is_share for s in self.measured for e in s.evals if e.task == t))

    @property
    def finished(self) -> bool:
        """Whether summary.json is there."""
        return self.summary.final is not None

    @property
    def accepted(self) -> tuple[StageRecord, ...]:
        """The stages that the final model went through."""
        return tuple(s for s in self.stages if s.accepted)

    @property
    def measured(self) -> tuple[StageRecord, ...]:
        """The original, if it is there, that with fewer tokens, and every attempt."""
        return (*(stage for stage in (self.original, self.fewer) if stage), *self.stages)

    @cached_property
    def final(self) -> StageRecord | None:
        """The stage that `final/` holds: the summary's, else the newest accepted one, else None."""
        name = self.summary.final.name if self.summary.final is not None else None
        if self.original is not None and name == self.original.name:
            return self.original
        if self.fewer is not None and name == self.fewer.name:
            return self.fewer
        named = [s for s in self.stages if s.name == name]
        return named[-1] if named else next(iter(self.accepted[::-1]), None)

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        """Every task that was measured, in order of appearance."""
        return tuple(dict.fromkeys(e.task for s in self.measured for e in s.evals))

    def at_rung(self, rung: RungRecord) -> RunRecord:
        """The run as if it had ended at a rung of its ladder: what that model's card and its speed are read from."""
        names = [s.name for s in self.stages]
        stages = self.stages[: 1 + names.index(rung.stage)] if rung.stage in names else self.stages
        changes = {
            "final": stages[-1] if stages else None, "stages": stages, "params_ratio": rung.params_ratio,
            "accuracy": rung.accuracy, "speedup": rung.speedup, "latency": rung.latency, "control": None,
            "promise": None, "asked": rung.share, "reached": rung.params_ratio, "ladder": (), "recommended": None,
            "rivals": (), "recovery_tokens": rung.recovery_tokens, "shape": stages[-1].shape if stages else None,
        }  # fmt: skip
        return replace(self, stages=stages, summary=self.summary.model_copy(update=changes), control=None)

    def folder(self, stage: StageRecord) -> Path:
        """The folder of one of this run's stages."""
        return self.path / stage.name

    @cached_property
    def shapes(self) -> ShapeRecord | None:
        """How the final shape was chosen, if it was."""
        path = self.path / "decisions" / SHAPE
        return ShapeRecord.read(path) if path.is_file() else None

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
        """Wall time by action over all stages, the original's evaluation and the timing of speed included."""
        everyone = self.measured
        actions = [*ACTIONS, *{a for s in everyone for a in s.seconds if a not in ACTIONS}]
        found = {
            a: sum(s.seconds.get(a, 0.0) for s in everyone) for a in actions if any(a in s.seconds for s in everyone)
        }
        latency = self.summary.seconds.get("latency", 0.0)
        return {**found, "latency": latency} if latency else found


def cut_axes(run: RunRecord) -> tuple[str, ...]:
    """The axes beside layers and neurons that some stage of a run has lost units of."""
    shapes = [s.shape for s in run.measured if s.shape]
    names = dict.fromkeys(name for shape in shapes for name in shape if name not in ("layers", "neurons"))
    return tuple(name for name in names if len({shape.get(name) for shape in shapes}) > 1)


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
    stages = sorted((read_stage(p) for p in found), key=lambda s: (s.index, s.attempt))
    summary, recipe = path / "summary.json", path / "recipe.yaml"
    control = path / "control"
    child = _read(control) if control.is_dir() else None
    fewer, tokens = _tokens(path)
    return RunRecord(
        fewer=fewer,
        vocabulary=tokens,
        path=path,
        original=read_stage(first) if first.is_file() else None,
        stages=tuple(stages),
        summary=Summary.read(summary) if summary.is_file() else Summary(),
        recipe=_yaml(recipe) if recipe.is_file() else {},
        control=child if child is not None and child.stages else None,
    )


def _tokens(path: Path) -> tuple[StageRecord | None, VocabularyRecord | None]:
    """The model with fewer tokens, where the rounds start from it: a choice by axes may have left all tokens."""
    at, shape = path / VOCABULARY, path / "decisions" / SHAPE
    recipe = _yaml(path / "recipe.yaml") if (path / "recipe.yaml").is_file() else {}
    prune = recipe.get("prune")
    if not (at / "stage.json").is_file() or not (isinstance(prune, dict) and prune.get(VOCABULARY)):
        return None, None
    stage, record = read_stage(at / "stage.json"), VocabularyRecord.read(at / "vocabulary.json")
    if shape.is_file() and ShapeRecord.read(shape).shape.get(VOCABULARY, record.rows) != record.rows:
        return None, None
    return stage, record


def _yaml(path: Path) -> Mapping[str, object]:
    value = read_yaml(path, "recipe", error=BadCheckpoint)
    return value if isinstance(value, dict) else {}
