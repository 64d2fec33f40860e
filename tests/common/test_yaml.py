"""YAML as people write it: surprises are told, bombs cost nothing, and what is written is read back."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from prunetune.common.yaml import MOST_NODES, dump_yaml, parse_yaml, read_mapping, read_yaml
from prunetune.errors import BadCheckpoint, MissingPath, RecipeError


def lists_of_lists(levels: int, wide: int = 9) -> str:
    text = "&L0 [" + ",".join(["z"] * 10) + "]"
    for i in range(1, levels):
        text = f"&L{i} [{text},{','.join([f'*L{i - 1}'] * wide)}]"
    return f"model: {text}\n"


MERGES = "a0: &a0 {k0: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{','.join([f'*a{i - 1}'] * 9)}], k{i}: 1}}\n" for i in range(1, 9)
)


@pytest.mark.parametrize(
    ("text", "says"),
    {
        "aliases of aliases": (lists_of_lists(8), f"more than {MOST_NODES:,} values"),
        "a thousand levels": (lists_of_lists(30), f"more than {MOST_NODES:,} values"),
        "merges of merges": (MERGES, f"more than {MOST_NODES:,} values"),
        "plain size": (f"a: [{'1,' * 30_000}]", f"more than {MOST_NODES:,} values"),
        "itself": ("a: &a [*a]", "stands for what it is part of"),
        "itself by merge": ("a: &a {<<: *a}", "stands for what it is part of"),
        "deep": ("[" * 100_000, "nested deeper"),
        "deep mappings": ("a: " + "{b: " * 5000, "nested deeper"),
        "deep blocks": ("- " * 5000, "nested deeper"),
        "large": ("# " + "x" * 2**20, "too large"),
        "twice": ("a: 1\nb: 2\na: 3", "'a' is there twice, line 3"),
        "a number as key": ("a: {1: 2}", "the key 1 is no text"),
        "a truth as key": ("true: 2", "the key true is no text"),
        "a list as key": ("? [1]\n: 2", "no text"),
        "python": ("a: !!python/object/apply:os.system ['true']", "is not read"),
        "a tag": ("a: !!timestamp 2020-01-01", "is not read"),
        "own tag": ("a: !function x.y", "is not read"),
        "tab": ("a:\n\t- 1", "spaces, not tabs"),
        "two documents": ("a: 1\n---\nb: 2", "one document a file"),
        "infinity": ("a: .inf", "no finite number"),
        "nan": ("a: .nan", "no finite number"),
        "overflow": ("a: 1e999", "no finite number"),
        "digits": ("a: " + "9" * 5000, "5,000 characters"),
        "half a character": (r'a: "\ud800"', "no character"),
        "zero byte": (r'a: "\0"', "no character"),
        "escape": ("a: \x1b[2J", r"'\x1b'"),
        "open": ("a: [1, 2", "line 1"),
        "undefined": ("a: *b", "undefined alias 'b'"),
    }.values(),
)
def test_what_is_not_read_is_told_at_once_and_shortly(text: str, says: str) -> None:
    start = time.process_time()
    with pytest.raises(BadCheckpoint) as told:
        parse_yaml(text, "r.yaml", "recipe", error=BadCheckpoint)
    assert time.process_time() - start < 2
    assert says in str(told.value) and "r.yaml" in str(told.value) and len(str(told.value)) < 600


def test_values_are_what_the_page_says() -> None:
    text = "{a: 2020-01-01, b: 010, c: 1e-5, d: 1_000, e: yes, f: 1:30, g: .5, h: 0x10, i: -1.5e+3, j: ~, k: , l: true, m: 0o17, n: 1., o: 1.2.3}"
    assert parse_yaml(text, "x") == {
        "a": "2020-01-01", "b": "010", "c": 1e-5, "d": 1000, "e": "yes", "f": "1:30", "g": 0.5, "h": 16, "i": -1500.0,
        "j": None, "k": None, "l": True, "m": 15, "n": 1.0, "o": "1.2.3",
    }  # fmt: skip
    assert parse_yaml("x: &a {b: 1, c: 2}\ny: {<<: *a, c: 3}\nz: *a", "x")["y"] == {"b": 1, "c": 3}
    assert parse_yaml("{1: a, 0.5: b}", "x", text_keys=False) == {1: "a", 0.5: "b"}
    assert parse_yaml("a: !function x.y", "x", texts=("!function",)) == {"a": "x.y"}
    assert parse_yaml("", "x") is None


@pytest.mark.parametrize(
    "value",
    ["1e5", "010", "yes", "no", "2020-01-01", "1_000", "~", "", "null", "<<", "0o17", ".5", "1:30", "=", "a: b", "# c",
     " x ", "é\n\tz", "true", "-", "%a", "1.", "+1", 1e-5, 1.5, 10**20, True, None, [], {}, [[{"a": [1]}]]],
)  # fmt: skip
def test_what_is_written_is_read_back(value: Any) -> None:
    found = parse_yaml(dump_yaml({"a": value, "b": [value]}), "x")
    assert found == {"a": value, "b": [value]} and type(found["a"]) is type(value)


def test_files(tmp_path: Path) -> None:
    with pytest.raises(MissingPath, match="no such recipe"):
        read_yaml(tmp_path / "none.yaml", "recipe")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(RecipeError, match="a recipe is a mapping"):
        read_mapping(tmp_path / "list.yaml", "recipe")
    (tmp_path / "latin.yaml").write_bytes("a: é".encode("latin-1"))
    with pytest.raises(RecipeError, match="not UTF-8 text: byte 0xe9 at 3, line 1"):
        read_mapping(tmp_path / "latin.yaml", "recipe")
    (tmp_path / "good.yaml").write_text("\ufeffa: 1")
    assert read_mapping(tmp_path / "good.yaml") == {"a": 1}
