"""What the command line says of a recipe: counts as people write them, and one value of the mapping."""

from __future__ import annotations

import pytest

from prunetune.errors import RecipeError
from prunetune.recipe.said import changed, count, target


@pytest.mark.parametrize(
    ("text", "value"),
    [("20M", 20_000_000), ("1.5k", 1500), ("300_000", 300_000), ("3B", 3 * 10**9), ("1e6", 10**6), ("7", 7)],
)
def test_counts(text, value):
    assert count(text, "--tokens") == value


@pytest.mark.parametrize("text", ["", "0", "-3", "many", "nan", "1e99", "20 MB", "inf", "0x10"])
def test_what_is_no_count(text):
    with pytest.raises(RecipeError, match="--tokens must be a count") as e:
        count(text, "--tokens")
    assert "20M" in str(e.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [("0.6", 0.6), ("60%", 0.6), ("60 %", 0.6), ("3B", 3 * 10**9), ("500000", 500000), ("1", 1.0), ("1.5k", 1500)],
)
def test_targets(text, value):
    assert target(text) == value


def test_one_value_of_a_mapping():
    value = {"score": {"samples": 1}, "recover": [{"type": "cpt"}, {"type": "grpo"}]}
    found = changed(changed(value, "score.samples=512"), "recover.1.learning_rate=1e-5")
    assert found == {"score": {"samples": 512}, "recover": [{"type": "cpt"}, {"type": "grpo", "learning_rate": 1e-5}]}
    assert value["score"] == {"samples": 1}, "the caller's mapping stays"
    assert changed({}, "prune.target={width: 8, depth: 2}") == {"prune": {"target": {"width": 8, "depth": 2}}}
    assert changed({}, "a.b.c=null") == {"a": {"b": {"c": None}}}
    assert changed({}, "name=a=b") == {"name": "a=b"}


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ("score.samples", "KEY=VALUE"),
        ("=3", "KEY=VALUE"),
        ("a..b=3", "KEY=VALUE"),
        ("recover.7.tokens=3", "0 to 0"),
        ("recover.x.tokens=3", "0 to 0"),
        ("score=[", "not valid YAML"),
    ],
)
def test_what_cannot_be_set(said, says):
    with pytest.raises(RecipeError) as e:
        changed({"recover": [{"type": "cpt"}]}, said)
    assert says in str(e.value)
