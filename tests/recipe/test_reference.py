"""The reference of a recipe's keys: complete, current, and each default the one that a recipe really gets."""

from __future__ import annotations

from pathlib import Path

import yaml

from prunetune.recipe.reference import NEEDED, about, markdown, sections, text
from prunetune.recipe.schema import Recipe

PAGE = Path(__file__).parents[2] / "docs" / "recipe.md"
MINIMAL = {"model": "demo", "data": [{"type": "demo", "size": 100}], "prune": {"target": 0.6}}


def test_the_page_is_current():
    assert PAGE.read_text(encoding="utf-8") == markdown(sections(Recipe)) + "\n", (
        "prunetune keys --markdown > docs/recipe.md"
    )


def test_every_key_is_told_with_its_meaning():
    found = sections(Recipe)
    assert all(k.about for s in found for k in s.keys), [k for s in found for k in s.keys if not k.about]
    names = {s.title: {k.name for k in s.keys} for s in found}
    assert names["recipe"] == set(Recipe.model_fields)
    assert {"learning_rate", "average", "when"} <= names["recover[], any type"]
    assert {"group"} <= names["recover[] type: grpo"] and "when" not in names["recover[] type: grpo"]
    assert [s.title for s in found].count("data[] type: file") == 1
    file = next(s for s in found if s.title == "data[] type: file")
    assert "protect.data[] type: file" in file.places


def test_defaults_are_those_of_a_resolved_recipe():
    told = {s.title: {k.name: k.default for k in s.keys} for s in sections(Recipe)}
    real = Recipe.parse({**MINIMAL, "recover": [{"type": "cpt"}]}).model_dump(mode="json")
    checked = 0
    for title, value in (("recipe", real), ("score", real["score"]), ("recover[], any type", real["recover"][0])):
        for name, default in told[title].items():
            if isinstance(value[name], (dict, list)) or default == NEEDED:
                continue
            assert (
                yaml.safe_load(default) == value[name]
                or default == f"{value[name]}"
                or (default, value[name]) == ("none", None)
            )
            checked += 1
    assert checked > 25


def test_a_word_finds_keys_and_sections():
    found = about(sections(Recipe), "lora")
    assert {s.title for s in found} >= {"recover[], any type", "recover[].cpt.lora"}
    assert [k.name for k in found[0].keys] == ["lora"]
    assert "rank (whole number; 16)" in text(found)
    assert about(sections(Recipe), "xyzzy") == []
