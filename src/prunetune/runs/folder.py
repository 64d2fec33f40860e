"""A run folder: which stages are history, which model is current, what may be deleted. The contract is in the README.

    RUN/recipe.yaml  original/stage.json
    RUN/NN-axis-amount[-aK]/{scores.safetensors, plan.json, pruned/, tuned/, stage.json}
    RUN/final/  final-0.8/ (of each rung)  rivals/NAME/  summary.json  report.md  report.html  figures/

A stage is history once its stage.json is there, and is never made again. Everything before that is made by
`files.once`, so that a run killed at any instant goes on where it was. A run starts in a new or an empty folder, or
goes on in one of ours, of any version; what others have put there is never deleted.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from prunetune.common.files import is_made, once, read_json, remove, write_json
from prunetune.common.notes import verify
from prunetune.common.outputs import check_own, own_folder
from prunetune.common.yaml import read_yaml
from prunetune.errors import BadCheckpoint
from prunetune.models.folders import model_sha
from prunetune.pruning.plan import PrunePlan
from prunetune.recipe.changes import check_unchanged
from prunetune.recipe.schema import Recipe
from prunetune.runs.inputs import check_inputs, note_inputs
from prunetune.runs.ours import clear_round, is_run, sweep, unfinished, verify_notes
from prunetune.runs.records import FULL, StageRecord, known, read_stage
from prunetune.runs.vocabulary import VOCABULARY
from prunetune.schedule.steps import Step

LATE = ("recover", "do_no_harm", "stop_at")
"""What first matters when a round is recovered."""
MIDDLE = ("prune", "compensate", "budget", "damage_per_round", "protect", *(
    f"score.{k}" for k in ("criterion", "reduce", "layer_criterion", "vote_share", "batch_tokens")
))  # fmt: skip
"""What first matters when a round is scored and planned."""


class RunFolder:
    """One run on disk. Use `RunFolder.open` as a context manager: it holds the folder's lock."""

    def __init__(self, path: Path, source: Path) -> None:
        self.path, self.source, self.first = path, source, "original"
        self._seen: dict[Path, tuple[object, StageRecord]] = {}

    @staticmethod
    @contextmanager
    def open(
        path: Path, recipe: Recipe, source: Path, check: Callable[[RunFolder], None] | None = None
    ) -> Iterator[RunFolder]:
        """Create or continue a run.

        Args:
            path: The run folder.
            recipe: What to run; compared with the one the folder holds.
            source: The untouched model's folder.
            check: Called before the recipe takes the place of the one there; what it raises leaves that as it is.

        Raises:
            RecipeChanged: bytes already made would differ, or were made of files that have changed. NotWritable: no
                permission, or another process is on it.
        """
        with own_folder(path, "run", is_run):
            run = RunFolder(path, source)
            sweep(path)
            for finished in path.glob("[0-9]*-*/stage.json"):  # nothing flipped is used; the rest is made anew
                verify_notes(finished.parent)
            run._check(recipe)
            if check is not None:
                check(run)
            run.adopt(recipe)
            if run.stages:
                run.tidy(recipe.keep)  # a kill may have come first
            yield run

    @staticmethod
    def check(path: Path, recipe: Recipe, source: Path) -> None:
        """What `open` would refuse. Nothing is written, nothing is held.

        Raises:
            RecipeChanged, NotWritable: As `open` does.
        """
        check_own(path, "run", is_run)
        RunFolder(path, source)._check(recipe)

    def adopt(self, recipe: Recipe) -> None:
        """Write recipe.yaml, unless the folder holds results of a recipe that it contradicts, or of other files."""
        self._check(recipe)
        note_inputs(self.path, recipe, self._free())
        recipe.write(self.path / "recipe.yaml")

    def _check(self, recipe: Recipe) -> None:
        file = self.path / "recipe.yaml"
        if file.is_file():
            before = read_yaml(file, "recipe", error=BadCheckpoint)
            if (free := self._free()) is not None:
                wish = ("stop_at",) if recipe.prune.ladder else ()  # decides on nothing: it says what is recommended
                check_unchanged(before or {}, recipe.model_dump(mode="json"), (*free, *wish))
                check_inputs(self.path, recipe, free)

    def _free(self) -> tuple[str, ...] | None:
        """What a recipe may change before the first finished round without throwing away what is made; None: all."""
        if self.stages:
            return ()
        rounds = [*unfinished(self.path), *(self.path / "decisions").glob("[0-9]*")]
        if any(p for at in rounds for p in (*at.glob("tuned"), *at.glob(".tuned-*/checkpoint-*"), *at.glob(".step-*"))):
            return ()
        if rounds:
            return LATE
        return (*LATE, *MIDDLE) if (self.path / "original" / "stage.json").is_file() else None

    # ------------------------------------------------------------------------------------------------------ history

    @property
    def stages(self) -> list[StageRecord]:
        """All finished rounds, rejected attempts too, in order."""
        found = [self._read(p) for p in self.path.glob("[0-9]*-*/stage.json")]
        return sorted(found, key=lambda s: (s.index, s.attempt))

    @property
    def accepted(self) -> list[StageRecord]:
        """The finished rounds that the loop went on from."""
        return [s for s in self.stages if s.accepted]

    @property
    def original(self) -> StageRecord:
        """RUN/original/stage.json."""
        return self._read(self.path / "original" / "stage.json")

    @property
    def start(self) -> StageRecord:
        """What the first round starts from: the original, or that with fewer tokens (`first`)."""
        return self._read(self.path / self.first / "stage.json")

    def record(self, stage: StageRecord) -> None:
        """Write a finished round's stage.json: from then on it is history."""
        write_json(self.folder(stage.name) / "stage.json", stage.to_json())

    def _read(self, path: Path) -> StageRecord:
        """A stage's record; each state of a file is read once."""
        stamp = tuple(s and (s.st_mtime_ns, s.st_size) for s in map(_stat, (path, path.with_name(FULL))))
        if path not in self._seen or self._seen[path][0] != stamp:
            self._seen[path] = (stamp, read_stage(path))
        return self._seen[path][1]

    def folder(self, name: str) -> Path:
        """Folder of a stage, or another one of the run."""
        return self.path / name

    def model_of(self, stage: StageRecord) -> Path:
        """Folder of the model that a stage left: its own, or, if it removed nothing, that of the stage before."""
        if stage.name == VOCABULARY:
            return verify(self.folder(VOCABULARY) / "model")
        if stage.index == 0:
            self._check_source(stage)
            return self.source
        tuned, removed = self.folder(stage.name) / "tuned", known(stage.removed, "removed")
        if removed.neurons == 0 and not removed.layers and not removed.others:
            before = [s for s in self.accepted if s.index < stage.index]
            return self.model_of(before[-1] if before else self.start)
        if tuned.is_dir():
            return verify(tuned)
        for final in (self.path / "final", *sorted(self.path.glob("final-*"))):
            if is_made(final, {"model": stage.model_sha}):
                return final
            if (final / "config.json").is_file() and model_sha(verify(final)) == stage.model_sha:
                return final  # copied without its hidden note
        raise BadCheckpoint("this stage's model is gone", value=str(tuned), fix="start again in a new --out")

    def _check_source(self, original: StageRecord) -> None:
        """BadCheckpoint if the untouched model is no longer the one that this run has measured."""
        if original.model_sha and (found := model_sha(self.source)) != original.model_sha:
            raise BadCheckpoint(
                "this is not the model that the run began with: its weights or its config have changed",
                value=f"{self.source}: {found}",
                valid=original.model_sha,
                fix="restore the model, or start again in a new --out",
            )

    # ---------------------------------------------------------------------------------------------------- deletion

    def clear_unfinished(self, step: Step) -> None:
        """Remove unfinished folders that another schedule left for this round."""
        for at in unfinished(self.path):
            if at.name.startswith(f"{step.index:02d}-") and at.name != step.name:
                clear_round(at)

    def tidy(self, keep: str) -> None:
        """After a stage is recorded: its intermediate models go; older models too, unless newest or best."""
        stages = self.accepted
        for s in self.stages:
            at = self.folder(s.name)
            for leftover in [at / "pruned", *at.glob(".tuned*"), *at.glob(".step*")]:
                if keep != "all" and leftover.suffix != ".key":
                    remove(leftover)
        if keep == "all":
            return
        best = max(stages, key=lambda s: (s.mean_accuracy, s.index), default=None)
        stay = {s.name for s in (*stages[-1:], best) if s}
        for s in self.stages:
            if s.name not in stay:
                remove(self.folder(s.name) / "tuned")


def layer_origins(run: RunFolder) -> list[int]:
    """For every layer of a run's current model, its index in the original model."""
    origins = list(range(known(run.original.depth, "depth")))
    for stage in run.accepted:
        plan = PrunePlan.read(run.folder(stage.name) / "plan.json")
        origins = [origins[i] for i in plan.kept_layers]
    return origins


def _stat(path: Path) -> os.stat_result | None:
    return path.stat() if path.is_file() else None


class Timed:
    """`files.once` with the seconds that making took, kept beside the thing, so that a resumed run can still tell.

    `seconds`: by action, whenever it was made; `made`: of each thing that was made now.
    """

    def __init__(self, at: Path) -> None:
        self.at = at
        self.seconds: dict[str, float] = {}
        self.made: dict[str, float] = {}

    def once(self, name: str, action: str, key: object, make: Callable[[Path], object]) -> Path:
        """Make `at/name` once; its time counts as `action`."""
        note = self.at / f".{name}.seconds"

        def timed(tmp: Path) -> None:
            start = time.monotonic()
            make(tmp)
            self.made[name] = round(time.monotonic() - start, 3)
            write_json(note, self.made[name])

        path = once(self.at / name, key, timed)
        self.seconds[action] = round(self.seconds.get(action, 0.0) + float(read_json(note)), 3)
        return path


def seconds_of(at: Path, name: str) -> float:
    """How long `Timed` took to make `at/name`; 0 if it has not."""
    note = at / f".{name}.seconds"
    return float(read_json(note)) if note.is_file() else 0.0


def link_or_copy(source: str, out: str) -> None:
    """Hard-link weights (they are never written in place), copy everything else."""
    if source.endswith(".safetensors"):
        try:
            os.link(source, out)
        except OSError:
            shutil.copyfile(source, out)
    else:
        shutil.copyfile(source, out)
