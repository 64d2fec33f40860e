"""Rows, their order, packing and padding."""

from __future__ import annotations

import random

import pytest
import torch
from tests.tiny import tiny_model, tiny_tokenizer

from prunetune.data.stream import Example
from prunetune.models.head_loss import IGNORED
from prunetune.models.prompt import PromptFormat
from prunetune.tune.training.batches import Row, collate, filled, make_rows, ordered, packed


def _rows(n: int, seed: int = 0) -> list[Row]:
    rng = random.Random(seed)
    made = [tuple(rng.randrange(4, 100) for _ in range(rng.randrange(2, 40))) for _ in range(n)]
    return [Row(ids, (IGNORED, *ids[1:]), real=len(ids)) for ids in made]


def test_rows_mask_the_prompt_only_if_asked() -> None:
    examples = [Example("1+1", "2", "t")]
    tokenizer, fmt = tiny_tokenizer(), PromptFormat(question="{question}=", answer="{answer}")
    whole = make_rows(tokenizer, examples, fmt, 64).rows[0]
    answer = make_rows(tokenizer, examples, fmt, 64, completion_only=True).rows[0]
    assert tokenizer.decode(whole.ids) == "1+1=2<eos>"
    assert whole.labels == (IGNORED, *whole.ids[1:])
    assert answer.labels == (*[IGNORED] * 4, *whole.ids[4:])


def test_rows_count_cut_and_empty_examples_and_obey_the_token_budget() -> None:
    examples = [Example("", "x" * n, "t") for n in (3, 50, 3, 3)] + [Example("q" * 50, "a", "t")]
    made = make_rows(tiny_tokenizer(), examples, PromptFormat(), 20, completion_only=True)
    assert (made.used, made.truncated, made.empty, len(made.rows)) == (5, 2, 1, 4)
    assert max(len(r.ids) for r in made.rows) == 20
    short = make_rows(tiny_tokenizer(), examples, PromptFormat(), 20, tokens=21)
    assert short.used == 2


def test_order_is_a_seeded_permutation_with_little_padding() -> None:
    rows = _rows(403)
    order = ordered(rows, 8, seed=1)
    assert order == ordered(rows, 8, seed=1) != ordered(rows, 8, seed=2)
    assert sorted(r.ids for r in order) == sorted(r.ids for r in rows)
    groups = [order[i : i + 8] for i in range(0, len(order), 8)]
    padded = sum(len(g) * max(len(r.ids) for r in g) for g in groups)
    assert padded < 1.05 * sum(len(r.ids) for r in rows)
    lengths = [max(len(r.ids) for r in g) for g in groups]
    assert lengths != sorted(lengths, reverse=True), "micro-batches must come in random order"


def test_epochs_repeat_every_row_in_another_order() -> None:
    rows = _rows(24)
    order = ordered(rows, 4, seed=0, epochs=2)
    assert sorted(r.ids for r in order[:24]) == sorted(r.ids for r in order[24:]) == sorted(r.ids for r in rows)
    assert order[:24] != order[24:]


def test_packing_keeps_every_token_and_the_loss() -> None:
    rows = _rows(12)
    bins = packed(rows, 64, seed=0)
    assert len(bins) < len(rows) and all(len(b.ids) <= 64 for b in bins)
    assert sum(b.real for b in bins) == sum(r.real for r in rows)
    model = tiny_model("gemma2")  # has both kinds of attention

    def loss(some: list[Row]) -> float:
        with torch.no_grad():
            batch = collate(some)
            count = int((batch["labels"][:, 1:] != IGNORED).sum())
            return model(**batch, use_cache=False).loss.item() * count

    assert loss(bins) == pytest.approx(sum(loss([r]) for r in rows), rel=1e-5)


def test_padding_needs_no_mask() -> None:
    rows = sorted(_rows(5), key=lambda r: len(r.ids))
    model = tiny_model("qwen2")
    with torch.no_grad():
        together = model(input_ids=collate(rows, pad=7)["input_ids"]).logits
        for i, row in enumerate(rows):
            alone = model(input_ids=torch.tensor([row.ids])).logits[0]
            torch.testing.assert_close(together[i, : len(row.ids)], alone, rtol=1e-4, atol=1e-5)


def test_fillers_count_nothing() -> None:
    rows = filled(_rows(5), 4)
    assert len(rows) == 8 and all(set(r.labels) == {IGNORED} and r.real == 0 for r in rows[5:])
    assert filled(rows, 4) == rows
