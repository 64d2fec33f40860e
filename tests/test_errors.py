"""Messages say what, which value, what is valid, how to mend."""

from __future__ import annotations

import inspect

from prunetune import errors
from prunetune.errors import MissingExtra, PrunetuneError, RecipeError, UnknownName


def test_message_holds_all_four_parts():
    text = str(PrunetuneError("no such thing", value="x", valid=["a", "b"], fix="use a"))
    assert text.splitlines() == ["no such thing", "  got:   'x'", "  valid: a, b", "  fix:   use a"]
    assert str(PrunetuneError("bare")) == "bare"


def test_unknown_name_suggests_the_nearest():
    e = UnknownName("criterion", "contribtion", ["contribution", "taylor"])
    assert "did you mean 'contribution'?" in str(e)
    assert "did you mean" not in str(UnknownName("criterion", "zzz", ["contribution"]))
    assert isinstance(e, RecipeError)


def test_missing_extra_names_the_install_command():
    assert "pip install 'prunetune[vllm]'" in str(MissingExtra("vllm", "vllm", "fast rollouts"))


def test_the_tree_in_the_docstring_is_the_tree():
    classes = {n for n, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, PrunetuneError)}
    named = {
        w
        for line in (errors.__doc__ or "").splitlines()
        for w in line.replace("├── ", "").replace("└── ", "").replace("│", "").split()[:1]
    }
    assert classes <= named
