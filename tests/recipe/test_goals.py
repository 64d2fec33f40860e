"""Goals in a word: what they are short for, and what contradicts them."""

from __future__ import annotations

import pytest

from prunetune.errors import RecipeError
from prunetune.recipe.schema import Recipe

BASE = {"model": "demo", "data": [{"type": "demo", "size": 2000}], "evaluate": {"tasks": [{"name": "demo"}]}}


@pytest.mark.parametrize("said", [0.95, "95%", "95 %"])
def test_keep_is_short_for_a_search(said):
    found = Recipe.parse({**BASE, "keep": said})
    assert found.stop_at.accuracy == 0.95
    assert (found.prune.target, found.keep, found.searches, found.foreseen) == ("smallest", "best", True, False)
    assert Recipe.parse(found.model_dump(mode="json")) == found


def test_a_target_is_how_far_it_goes():
    found = Recipe.parse({**BASE, "keep": 0.9, "prune": {"target": 0.5}, "stop_at": {"n": 500}})
    assert (found.prune.target, found.stop_at.n, found.stop_at.accuracy) == (0.5, 500, 0.9)


def test_the_other_meaning_stays():
    assert Recipe.parse({**BASE, "keep": "all", "prune": {"target": 0.5}}).keep == "all"


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"keep": 0.95, "stop_at": {"accuracy": 0.9}}, "not both"),
        ({"keep": 95}, "accuracy"),
        ({"keep": 0}, "accuracy"),
        ({"keep": "some", "prune": {"target": 0.5}}, "best"),
        ({"keep": 0.95, "evaluate": {"tasks": []}}, "keep .stop_at. needs problems"),
    ],
)
def test_what_cannot_be_is_told(said, why):
    with pytest.raises(RecipeError, match=why):
        Recipe.parse({**BASE, **said})
