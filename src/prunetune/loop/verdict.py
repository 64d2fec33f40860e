"""Whether a finished round stands: `stop_at`, by an interval on fresh problems.

judge(context, run, model, sha, at)      # -> Verdict: stage.json's
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from prunetune.common.files import write_json
from prunetune.common.stats import kept_interval, kept_share, pair
from prunetune.common.units import percent
from prunetune.errors import OutOfReach
from prunetune.evaluation.evaluate import read_samples
from prunetune.evaluation.spread import Spread
from prunetune.loop.context import Context, free, holding
from prunetune.loop.measure import answer, samples_of
from prunetune.models.folders import model_sha
from prunetune.recipe.measured import StopConfig
from prunetune.recipe.schema import Recipe
from prunetune.runs.folder import RunFolder
from prunetune.runs.records import EvalRecord, Validation, Verdict
from prunetune.tasks.registry import Task, TaskConfig, build_task

LOOKS = ((0.1, 0.0), (0.34, 0.01), (1.0, 0.04))
"""Shares of the validation problems after which a model may be judged, with the error that each may spend: together
5 %, so that the promise holds whenever it ends. After the first a model can only fail."""
LEAST_ASKED = 60
LEAST_REPORTED = 10
"""Problems that are left to report where the others are to decide."""
ROOM = 1.3
"""Times the fewest that can decide: what is left to them, if there are so many."""
MOST_NEEDED = 1 << 17
SURE = 0.998
"""Confidence with which a model that is judged on a part of the problems must have failed."""
UNCONDITIONAL = "the schedule's step; no condition was set on its accuracy"


def judge(context: Context, run: RunFolder, model: PreTrainedModel | Spread, sha: str, at: Path) -> Verdict:
    """The verdict on a finished round, and what it rests on.

    Args:
        context: The run.
        run: Its folder; the untouched model's answers to the problems that decide are kept in `original/`.
        model: The round's model.
        sha: Of that model.
        at: The round's folder.
    """
    if (stop := context.recipe.stop) is None:
        return Verdict(accepted=True, why=UNCONDITIONAL)
    return _asked(context, run, stop, _Judged(model, sha, at))


@dataclass(frozen=True)
class _Judged:
    """A round's model, its hash, its folder."""

    model: PreTrainedModel | Spread
    sha: str
    at: Path


def _asked(context: Context, run: RunFolder, stop: StopConfig, judged: _Judged) -> Verdict:
    """Ask both models, in `LOOKS`, until the answer is plain."""
    task = validation(context.recipe, stop, context.tasks)
    for share, error in LOOKS:
        n = len(task.problems) if share == 1 else max(LEAST_ASKED, math.ceil(share * len(task.problems)))
        part = task.first(n)
        theirs = _original(context, run, part)
        ours = _validate(context, part, judged.model, judged.sha, judged.at)
        found = promised(stop, theirs, ours, confidence=1 - error if error else 0.95)
        if n >= len(task.problems) or (found.accepted and error):
            return found
        _, most = kept_interval(pair((theirs[i], ours[i]) for i in theirs), SURE)
        if most is not None and most < stop.accuracy:
            return found.model_copy(update={"accepted": False})
    return found


def _original(context: Context, run: RunFolder, task: Task) -> dict[str, bool]:
    """The untouched model's answers; it is loaded only if some are not there yet."""
    at = run.folder("original")
    if len(found := _right(at, task)) < len(task.problems):
        with holding(context, context.source) as untouched:
            found = _validate(context.untouched(), task, untouched, model_sha(context.source), at)
        del untouched
        free()
    return found


def promised(stop: StopConfig, theirs: dict[str, bool], ours: dict[str, bool], *, confidence: float = 0.95) -> Verdict:
    """Whether a model keeps the wanted accuracy on fresh problems, by the lower end of an interval.

    Args:
        stop: What is wanted.
        theirs: Problem -> whether the original solved it.
        ours: The same of the model that is judged.
        confidence: Of the interval.
    """
    kept, lower = kept_share(
        [(theirs[i], ours[i]) for i in theirs], stop.accuracy, fresh=stop.fresh, confidence=confidence
    )
    accuracy, before = sum(ours.values()) / len(ours), sum(theirs.values()) / len(theirs)
    kept = (
        accuracy / before if before else kept
    )  # the bound is of shares that count half a question more; see kept_share
    right = f"{accuracy:.1%} of the {len(ours):,} problems that decide are right"
    told = (
        f"{right}, by the original {before:.1%}: {kept:.1%} kept, at least {lower:.1%} to be expected in a test of "
        f"{stop.fresh:,} others (stop_at.fresh); wanted {stop.accuracy:.1%}"
    )
    if not before:
        told = f"{right}, by the original none: no share can be told"
    return Verdict(
        accepted=lower >= stop.accuracy,
        why=told,
        validation=Validation(n=len(ours), accuracy=accuracy, original=before, kept=kept, lower=lower),
    )


def validation(recipe: Recipe, stop: StopConfig, tasks: tuple[Task, ...]) -> Task:
    """The problems that decide: not among those that are reported (`tasks`). OutOfReach if there are none left."""
    return _split(recipe, stop, tasks)[0]


def _split(recipe: Recipe, stop: StopConfig, tasks: tuple[Task, ...]) -> tuple[Task, _Split]:
    config = stop.task or recipe.evaluate.judged or recipe.evaluate.tasks[0]
    if stop.task is None:
        config = TaskConfig.model_validate({**config.model_dump(), "n": None, "seed": config.seed + 1})
        if config.path is None:  # generated: as many as are wanted, with some to spare
            config = config.model_copy(update={"n": stop.n + 200})
    task = build_task(config)
    reported = {p.question for t in tasks for p in t.problems}
    fresh = tuple(p for p in task.problems if p.question not in reported)
    split = _Split(config, len(task.problems), len(task.problems) - len(fresh), len(fresh[: stop.n]))
    if not fresh:
        raise OutOfReach(
            "no problems are left to decide with: keep (stop_at) needs others than those that are reported",
            value=split.text(),
            valid="more problems than are reported; a few hundred that decide tell 95 % from 90 %",
            fix=split.fix(stop),
        )
    return dataclasses.replace(task, name="validation", problems=fresh[: stop.n]), split


@dataclass(frozen=True)
class _Split:
    """How a task's rows are shared out between the report and the verdict."""

    config: TaskConfig
    rows: int
    reported: int
    decide: int

    def text(self) -> str:
        """In words: 80 rows of sums: 50 are reported (--n), 30 decide."""
        return f"{self.rows:,} rows of {self.config.name}: {self.reported:,} are reported (--n), {self.decide:,} decide"

    def reports(self, stop: StopConfig) -> int | None:
        """How many to report so that enough are left to decide with; None: the rows are too few, or are generated."""
        least = needed(stop)
        if self.config.path is None or stop.task is not None or least > min(stop.n, self.rows - LEAST_REPORTED):
            return None
        return max(LEAST_REPORTED, self.rows - math.ceil(ROOM * least))

    def fix(self, stop: StopConfig) -> str:
        """What to do about too few that decide."""
        least = needed(stop)
        if (spare := self.reports(stop)) is not None:
            return f"--n {spare}, so that {self.rows - spare:,} decide; or a longer test file; or --keep less"
        if least == MOST_NEEDED:
            return "--keep less"
        if least > stop.n:
            return f"--set stop_at.n={least}; or --keep less"
        if stop.task is not None:
            return f"{least:,} rows or more in stop_at.task; or --keep less"
        return f"a longer test file: {least + LEAST_REPORTED:,} rows, with --n {LEAST_REPORTED}; or --keep less"


def needed(stop: StopConfig) -> int:
    """The fewest problems that can prove the share, by a model that answers all of them as the original does."""
    return _needed(stop.accuracy, stop.fresh)


@functools.lru_cache
def _needed(share: float, fresh: int) -> int:
    low, high = 0, MOST_NEEDED
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _proves(middle, share, fresh) else (middle, high)
    return high


def _proves(n: int, share: float, fresh: int) -> bool:
    """Whether n answers like the original's show that a share is kept."""
    return kept_share([(True, True)] * n, share, fresh=fresh, confidence=1 - LOOKS[-1][1])[1] >= share


def provable(n: int, fresh: int) -> float:
    """The largest share that n problems can prove: of a model that answers all of them as the original does, rightly.

    A whole per mille, rounded down; 0 if they can prove none.
    """
    return next((i / 1000 for i in range(1000, 0, -1) if _proves(n, i / 1000, fresh)), 0.0)


def hardly_provable(context: Context, evals: Sequence[EvalRecord] = ()) -> str | None:
    """Why a share is more than the problems that decide can prove, unless the smaller model is the better one.

    Args:
        context: The run.
        evals: The original's figures, once they are known.

    Raises:
        OutOfReach: There are no problems to decide with, or too few where another --n leaves enough; or none on which
            a smaller model could be better.
    """
    stop = context.recipe.stop
    if stop is None:
        return None
    task, split = _split(context.recipe, stop, context.tasks)
    n = len(task.problems)
    if stop.accuracy <= (most := provable(n, stop.fresh)):
        return None
    why = f"{n:,} problems cannot show that {percent(stop.accuracy)} of the accuracy are kept"
    told = f"a model that answers all of them as the original does is shown to keep {percent(most)}"
    if split.reports(stop) is not None:  # the rows are there: another --n does it
        raise OutOfReach(why, value=split.text(), valid=f"{needed(stop):,} that decide, or more", fix=split.fix(stop))
    if any(e.is_share and e.value == 1 for e in evals):
        raise OutOfReach(
            why,
            value=f"{split.text()}; {told}; the original solves all that were asked, so that none can be better",
            valid=f"at most {percent(most)}",
            fix=f"--keep {math.floor(100 * most)}%, or {split.fix(stop)}",
        )
    return f"{why} ({split.text()}): {told}, so that only a better one would stand"


def _validate(context: Context, task: Task, model: PreTrainedModel | Spread, sha: str, at: Path) -> dict[str, bool]:
    result = answer(context, task, model, sha, at)
    write_json(at / "validation.json", result.to_json())
    return _right(at, task)


def _right(at: Path, task: Task) -> dict[str, bool]:
    wanted = {p.id for p in task.problems}
    return {r.id: r.correct for r in read_samples(samples_of(at, task)) if r.id in wanted}
