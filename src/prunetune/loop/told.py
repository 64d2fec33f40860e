"""Who is told how a run goes, beside the person at the terminal: `RUN/events.jsonl`, and the recipe's trackers.

with telling(run, recipe, watch) as (journal, watch): ...     # started; then finished, stopped or failed, and why
tell_stage(context, run, record)                              # a round's figures
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from rich.markup import escape

from prunetune.common.events import EVENTS, Journal
from prunetune.common.progress import Watch
from prunetune.errors import Declined, PrunetuneError, plain
from prunetune.evaluation.samples import read_samples
from prunetune.recipe.schema import Recipe
from prunetune.runs.folder import RunFolder
from prunetune.runs.records import StageRecord
from prunetune.tune.trackers import check_trackers, log_figures

MOST = 200
"""Characters of a question or an answer that are shown."""


@contextmanager
def telling(run: RunFolder, recipe: Recipe, watch: Watch) -> Iterator[tuple[Journal, Watch]]:
    """The journal of a run that is held, and a watch whose bars it hears; how it ended is written too.

    Raises:
        MissingExtra, UnknownName: A tracker of the recipe that is not there.
    """
    check_trackers(recipe.log)
    journal = Journal.open(run.path / EVENTS)
    journal.started()
    try:
        yield journal, watch.telling(journal.action)
    except KeyboardInterrupt:
        journal.write(kind="run", state="stopped")
        raise
    except Declined:
        journal.write(kind="run", state="stopped", why="you answered no")
        raise
    except Exception as e:
        what = e.what if isinstance(e, PrunetuneError) else f"{type(e).__name__}: {e}"
        journal.write(kind="run", state="failed", why=what[:500])
        raise
    journal.stage = ""
    journal.write(kind="run", state="finished")


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Inside, transformers shows no bars of its own beside ours; then as it was."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # where the environment keeps the hub's own off
                logging.enable_progress_bar()


def tell_stage(journal: Journal, recipe: Recipe, run: RunFolder, stage: StageRecord) -> None:
    """A stage that was measured: size, accuracy, held-out loss."""
    accuracy = {e.task: e.value for e in stage.evals}
    told = {"accuracy": accuracy, "params": stage.params, "loss": stage.held_out_loss}
    journal.write(kind="stage", **{**told, "stage": stage.name})
    if recipe.log:
        figures: dict[str, float | int | None] = {f"accuracy/{task}": value for task, value in accuracy.items()}
        figures |= {"params": stage.params, "held_out_loss": stage.held_out_loss, "pruned_loss": stage.pruned_loss}
        log_figures(recipe.log, run.path, stage=stage.name, index=stage.index, figures=figures)


def one_answer(run: RunFolder, task: str) -> list[str]:
    """A question that the original got wrong, what it answered and what was expected, and where all answers are."""
    file = run.folder("original") / "eval" / f"{task.replace('/', '_')}.jsonl"
    wrong = next((s for s in read_samples(file) if not s.correct), None)
    if wrong is None:
        return []
    parts = {"question": wrong.question, "answered": wrong.output, "expected": wrong.reference}
    lines = [
        f"  {name}: {escape(plain(' / '.join(text.strip().split(chr(10))), MOST))}" for name, text in parts.items()
    ]
    return [*lines, f"  all answers: {escape(str(file))}"]
