"""Covered text is cut as before and all text comes back: against the original tokenizer, on texts of every kind.

PRUNETUNE_MODELS names folders (separated by `:`) of real models whose tokenizers go through 10,000 texts as well.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tests.pruning.vocabulary.toy import KINDS, OTHERS, SPECIAL, TEXTS, counts_of, cut_of, file_of, task, toy
from tokenizers import Tokenizer

from prunetune.errors import BadCheckpoint, OutOfReach, UnsupportedModel
from prunetune.pruning.vocabulary.keep import Kept, choose, needed
from prunetune.pruning.vocabulary.merges import Merges
from prunetune.pruning.vocabulary.tokenizer import BYTES, TokenizerFile

REAL = [Path(p) for p in os.environ.get("PRUNETUNE_MODELS", "").split(":") if p]


def check_alike(old: Tokenizer, new: Tokenizer, kept: Kept, text: str) -> bool:
    """Whether the text was covered; AssertionError unless it is then cut alike, and comes back in any case."""
    before, after = old.encode(text), new.encode(text)
    for skip in (False, True):
        assert new.decode(after.ids, skip_special_tokens=skip) == old.decode(before.ids, skip_special_tokens=skip)
    covered = set(before.ids) <= set(kept.rows[: kept.tokens])
    if covered:
        assert after.tokens == before.tokens
        assert [kept.rows[i] for i in after.ids] == before.ids
    assert len(after.ids) >= len(before.ids) or not covered
    return covered


@pytest.fixture(scope="module", params=KINDS)
def cut(request: pytest.FixtureRequest) -> tuple[Tokenizer, Kept, Tokenizer]:
    tokenizer = toy(request.param)
    kept, new = cut_of(tokenizer.backend_tokenizer, file_of(tokenizer), task(), align=8)
    return tokenizer.backend_tokenizer, kept, new


def test_the_cut_is_worth_it(cut: tuple[Tokenizer, Kept, Tokenizer]) -> None:
    old, kept, new = cut
    assert new.get_vocab_size() == kept.tokens < 0.85 * old.get_vocab_size()
    assert len(kept.rows) % 8 == 0 and kept.lost == 0


def test_the_texts_that_it_was_fitted_to_are_cut_as_before(cut: tuple[Tokenizer, Kept, Tokenizer]) -> None:
    old, kept, new = cut
    assert all(check_alike(old, new, kept, text) for text in task())


@settings(max_examples=120, deadline=None, phases=(Phase.explicit, Phase.generate, Phase.shrink))
@given(text=TEXTS)
def test_any_text(cut: tuple[Tokenizer, Kept, Tokenizer], text: str) -> None:
    check_alike(cut[0], cut[2], cut[1], text)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_tokens_that_stay_come_out_of_texts_made_of_them(
    cut: tuple[Tokenizer, Kept, Tokenizer], data: st.DataObject
) -> None:
    """Texts that nobody wrote, near the border of what is covered: kept tokens in any order."""
    old, kept, new = cut
    tokens = data.draw(st.lists(st.sampled_from(kept.rows[: kept.tokens]), max_size=12))
    check_alike(old, new, kept, old.decode(tokens, skip_special_tokens=False))


def test_a_way_is_what_the_library_merges() -> None:
    """Every symbol on the way to a token is needed: without one of them, the library does not come to it."""
    tokenizer = toy("byte-level")
    file = file_of(tokenizer)
    longest = sorted((t for t in file.merges.symbols if t not in file.added), key=len)[-20:]
    for token in longest:
        path = file.merges.path(token)
        assert token in path and len(path) > len(set(token))
        for gone in path - set(token) - {token}:
            kept = [i for t, i in file.tokens.items() if t != gone]
            assert Tokenizer.from_str(json.dumps(file.cut(kept))).encode(_text(token)).tokens[1:] != [token]


def _text(token: str) -> str:
    return str(toy("byte-level").backend_tokenizer.decoder.decode([token]))


def test_of_two_ways_to_a_token_the_one_that_fires_is_kept() -> None:
    """`abc` is made of `ab` + `c`, though `a` + `bc` is in the table and stands first of those that make it."""
    merges = Merges(
        {("a", "b"): 0, ("b", "c"): 1, ("a", "bc"): 2, ("ab", "c"): 3},
        dict.fromkeys(["a", "b", "c", "ab", "bc", "abc"], 0),
    )
    assert merges.path("abc") == {"a", "b", "c", "ab", "abc"}
    assert merges.path("bc") == {"b", "c", "bc"}


def test_a_token_that_merging_never_makes_needs_nothing() -> None:
    merges = Merges(
        {("a", "b"): 0, ("b", "c"): 1, ("a", "bc"): 2}, dict.fromkeys(["a", "b", "c", "ab", "bc", "abc"], 0)
    )
    assert merges.run("abc")[0] == ["ab", "c"]
    assert merges.path("abc") == {"abc"}


def test_what_stays_whatever_the_text_is() -> None:
    for kind in KINDS:
        tokenizer = toy(kind)
        file = file_of(tokenizer)
        assert file.kind == ("byte-level" if kind in ("byte-level", "whole-words") else "byte-fallback")
        names = {t for t, i in file.tokens.items() if i in needed(file)}
        assert names >= {*SPECIAL, "<think>", "other"}
        assert names >= (
            set(BYTES) | {"▁"} if file.kind == "byte-fallback" else {t for t in file.tokens if len(t) == 1}
        )


def test_without_a_decoder_of_bytes_no_character_goes() -> None:
    """It would come back as `<0xE2>`."""
    values = json.loads(toy("byte-fallback").backend_tokenizer.to_str())
    values["decoder"] = {"type": "Fuse"}
    file = TokenizerFile.of(values)
    assert file.kind == "characters"
    assert {t for t in file.tokens if len(t) == 1} <= {t for t, i in file.tokens.items() if i in needed(file)}


def test_a_count_keeps_the_most_frequent_and_fills_the_last_block() -> None:
    tokenizer = toy("byte-level")
    file, core = file_of(tokenizer), tokenizer.backend_tokenizer
    rows = max(file.tokens.values()) + 1
    counts = counts_of(core, task())
    for keep in (300, 340, 360):
        kept = choose(file, counts, rows=rows, keep=keep, align=16)
        assert len(kept.rows) == kept.tokens == keep // 16 * 16
        assert kept.lost > 0
        went = [n for i, n in counts.items() if i not in kept.rows]
        assert sum(went) < 0.6 * sum(counts.values())
    all_of_them = choose(file, counts, rows=rows, keep=rows)
    assert sorted(all_of_them.rows) == list(range(rows))
    for keep, said in ((100, "need more room"), (rows + 1, "cannot be kept")):
        with pytest.raises(OutOfReach, match=said):
            choose(file, counts, rows=rows, keep=keep)


def test_a_guard_is_kept_after_the_task() -> None:
    tokenizer = toy("byte-level")
    file, core = file_of(tokenizer), tokenizer.backend_tokenizer
    rows, guard = max(file.tokens.values()) + 1, [OTHERS[1]]
    alone = choose(file, counts_of(core, task()), rows=rows)
    both = choose(file, counts_of(core, task()), counts_of(core, guard), rows=rows)
    assert set(alone.rows) < set(both.rows) >= set(core.encode(OTHERS[1]).ids)


def test_rows_that_are_no_tokens_fill_up_only_where_tokens_are_lacking() -> None:
    """As in Qwen, whose embedding is larger than its vocabulary. None is made up."""
    file = file_of(toy("byte-level"))
    tokens = len(file.tokens)
    kept = choose(file, dict.fromkeys(file.tokens.values(), 1), rows=tokens + 100, align=64)
    assert kept.tokens == tokens and len(kept.rows) == -(-tokens // 64) * 64
    assert set(kept.rows[tokens:]) <= set(range(tokens, tokens + 100))
    assert len(choose(file, dict.fromkeys(file.tokens.values(), 1), rows=tokens, align=64).rows) == tokens


def test_a_token_without_a_row_is_told() -> None:
    file = file_of(toy("byte-level"))
    with pytest.raises(BadCheckpoint, match="no row in the embedding"):
        choose(file, {}, rows=len(file.tokens) - 2)


@pytest.mark.parametrize(
    "model",
    [
        {"type": "Unigram", "vocab": [["a", -1.0]], "unk_id": 0},
        {"type": "WordPiece", "vocab": {"a": 0}},
        {"type": "BPE", "vocab": {"a": 0}, "merges": [], "end_of_word_suffix": "</w>"},
    ],
)
def test_other_kinds_are_refused(model: dict[str, object]) -> None:
    with pytest.raises(UnsupportedModel, match=r"cannot be cut: it has a .*(Unigram|WordPiece|end_of_word_suffix)"):
        TokenizerFile.of({"model": model})


def test_damage_is_told() -> None:
    for values in (
        None,
        {},
        {"model": {"type": "BPE", "vocab": [], "merges": []}},
        {"model": {"type": "BPE", "vocab": {"a": 0, "b": 0}, "merges": []}},
    ):
        with pytest.raises(BadCheckpoint):
            TokenizerFile.of(values)


# ------------------------------------------------------------------------------------------------------ real tokenizers


def wild(seed: int, n: int) -> Iterator[str]:
    """Texts of every kind, drawn fast: hypothesis takes minutes for ten thousand."""
    rng = random.Random(seed)
    ranges = [(0, 0x80), (0x20, 0x7F), (0xA0, 0x250), (0x370, 0x530), (0x590, 0x780), (0x900, 0xE80), (0x3040, 0x3100),
              (0x4E00, 0x9FA0), (0xAC00, 0xD7A0), (0x1F300, 0x1FB00), (0x200B, 0x2070), (0xE000, 0xE010)]  # fmt: skip
    words = [w for text in (*OTHERS, *task()[:30]) for w in text.split(" ")] + ["  ", " " * 9, "\n\n", "\t\t", "\r\n"]

    def part() -> str:
        if rng.random() < 0.6:
            return rng.choice(words)
        low, high = rng.choice(ranges)
        return "".join(chr(rng.randrange(low, high)) for _ in range(rng.randint(1, 9)))

    for _ in range(n):
        yield rng.choice(["", " ", " "]).join(part() for _ in range(rng.randint(0, 14)))


@pytest.mark.skipif(not REAL, reason="PRUNETUNE_MODELS names no folders of real models")
@pytest.mark.parametrize("folder", REAL, ids=lambda p: p.name)
def test_ten_thousand_texts_on_a_real_tokenizer(folder: Path) -> None:
    file = TokenizerFile.read(folder)
    old = Tokenizer.from_file(str(folder / "tokenizer.json"))
    kept, new = cut_of(old, file, [*task(), *wild(1, 300)], align=64)
    rows = set(kept.rows)
    # near the border: kept tokens in random order, of which about half make covered texts
    rng, ids = random.Random(2), sorted(rows)
    shuffled = (old.decode(rng.choices(ids, k=rng.randint(1, 12)), skip_special_tokens=False) for _ in range(5000))
    covered = sum(check_alike(old, new, kept, text) for text in (*wild(0, 5000), *shuffled))
    print(f"{folder.name}: {kept.tokens:,} tokens, {covered:,} of 10,000 texts covered")
    assert covered > 1000
