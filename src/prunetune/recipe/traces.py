"""Own traces in a recipe: where they may stand, who judges them, what stands in for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from prunetune.data.stream import DataSource, TracesData
from prunetune.errors import RecipeError
from prunetune.tasks.registry import TaskConfig, has_verifier
from prunetune.tune.methods import TuneConfig

if TYPE_CHECKING:
    from prunetune.recipe.schema import Recipe


def check_traces(
    data: Sequence[DataSource],
    scored: Sequence[DataSource] | None,
    recover: Sequence[TuneConfig],
    protected: Sequence[DataSource],
) -> None:
    """ValueError for traces where they cannot be."""
    replayed = [s for m in recover if m.replay for s in m.replay.sources]
    if any(isinstance(s, TracesData) for s in (*protected, *replayed)):
        raise ValueError("traces go under data, score.data or a method's data, not under protect or replay")
    if any(isinstance(s, TracesData) and s.renew for s in data):
        raise ValueError(
            "renew: true changes the data from round to round, and held-out rows must stay: put such traces under "
            "score.data or a method's data"
        )
    for own in (scored, *(m.data for m in recover)):
        if renewed(own) and len(own or ()) > 1:
            raise ValueError("traces with renew: true are alone in their list: other rows would be seen twice")


def renewed(sources: Sequence[DataSource] | None) -> bool:
    """Whether a list of sources is sampled anew in every round."""
    return any(isinstance(s, TracesData) and s.renew for s in sources or ())


def questions(sources: Sequence[DataSource]) -> list[DataSource]:
    """The sources, with the questions and their right answers in the place of traces: where nothing is sampled yet."""
    return [s.source if isinstance(s, TracesData) else s for s in sources]


def judge_of(recipe: Recipe, traces: TracesData) -> TaskConfig:
    """Who judges the answers; RecipeError if nobody can."""
    if traces.verifier is not None:
        return TaskConfig(name="rows", verifier=traces.verifier)
    if traces.task is None and recipe.evaluate.judged is not None:
        return recipe.evaluate.judged
    for task in recipe.evaluate.tasks:
        if task.name == traces.task and has_verifier(task):
            return task
    if traces.task is not None and has_verifier(found := TaskConfig(name=traces.task)):
        return found
    raise RecipeError(
        "nobody judges these traces",
        value=f"task: {traces.task}",
        valid="task: NAME of one with a verifier (gsm8k, or one of evaluate.tasks), or verifier: number, boxed, exact",
    )


def traces_of(recipe: Recipe) -> list[TracesData]:
    """All traces that a recipe names, each once."""
    lists: Iterable[Sequence[DataSource]] = (
        recipe.data,
        recipe.score.data or (),
        *(m.data or () for m in recipe.recover),
    )
    return list(dict.fromkeys(s for sources in lists for s in sources if isinstance(s, TracesData)))


def replaced(recipe: Recipe, by: Callable[[TracesData], DataSource]) -> Recipe:
    """The recipe with something else in the place of its traces."""

    def each(sources: Sequence[DataSource]) -> list[DataSource]:
        return [by(s) if isinstance(s, TracesData) else s for s in sources]

    if not traces_of(recipe):
        return recipe
    scored = recipe.score.data
    return recipe.changed(
        data=each(recipe.data),
        score=recipe.score.model_copy(update={"data": scored and each(scored)}),
        recover=[m.model_copy(update={"data": m.data and tuple(each(m.data))}) for m in recipe.recover],
    )
