"""Messages say what, which value, what is valid, how to mend."""

from __future__ import annotations

import inspect

from prunetune import errors
from prunetune.errors import MissingExtra, PrunetuneError, RecipeError, UnknownName


def test_message_holds_all_four_parts():
    text = str(PrunetuneError("no such thing", value="x", valid=["a", "b"], fix="use a"))
    assert text.splitlines() == ["no such thing", "  got:   'x'", "  valid: a, b", "  fix:   use a"]
    assert str(PrunetuneError("bare")) == "bare"


def test_each_part_is_cut_and_nothing_reaches_the_terminal():
    bomb: object = ["z"] * 10
    for _ in range(12):
        bomb = [bomb] * 9  # 9 ** 12 texts if it were written out
    loop: list[object] = []
    loop.append(loop)
    for value in (
        "x" * 10**6,
        10**5000,
        bomb,
        loop,
        {i: "y" * 999 for i in range(999)},
        b"z" * 10**6,
        {"a": {"\x1b[2J"}},
    ):
        text = str(PrunetuneError("w" * 10**6, value=value, valid=["v" * 99] * 9999, fix="f" * 10**6))
        assert len(text) < 8_000 and "\x1b" not in text, value
    text = str(PrunetuneError("no \x1b[31mred\ud800\u202e\x9b\r here\nsecond line", fix="\x07bell\ttab"))
    assert text == "no \\x1b[31mred\\ud800\\u202e\\x9b\\r here\nsecond line\n  fix:   \\x07bell\\ttab"
    text.encode()
    assert "(1,000,000 characters)" in str(PrunetuneError("w" * 10**6))
    assert "5,001 digits" in str(PrunetuneError("n", value=10**5000))


def test_unknown_name_suggests_the_nearest():
    e = UnknownName("criterion", "contribtion", ["contribution", "taylor"])
    assert "did you mean 'contribution'?" in str(e)
    assert "did you mean" not in str(UnknownName("criterion", "zzz", ["contribution"]))
    assert isinstance(e, RecipeError)


def test_missing_extra_names_the_install_command():
    assert "pip install vllm" in str(MissingExtra("vllm", "vllm", "fast rollouts"))


def test_the_tree_in_the_docstring_is_the_tree():
    classes = {n for n, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, PrunetuneError)}
    named = {
        w
        for line in (errors.__doc__ or "").splitlines()
        for w in line.replace("├── ", "").replace("└── ", "").replace("│", "").split()[:1]
    }
    assert classes <= named
