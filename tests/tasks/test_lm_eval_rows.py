"""Rows of lm-eval's tasks: what the templates read is there, or the row is told before any work."""

from __future__ import annotations

from typing import Any

import pytest

from prunetune.errors import DataError
from prunetune.tasks.lm_eval_rows import check_rows, read_by

GSM = {"doc_to_text": "Question: {{question}}\\nAnswer:", "doc_to_target": "{{answer if x is undefined else other}}"}


def test_the_columns_that_a_template_reads() -> None:
    assert read_by(GSM) == ["question", "answer", "other", "x"]
    assert read_by({"doc_to_text": "prompt", "doc_to_target": 0}) == ["prompt"]
    assert read_by({"doc_to_text": "utils.doc_to_text", "doc_to_target": "{{ broken"}) == []


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (None, "is null"),
        (float("nan"), "is nan"),
        (["917"], "is of another kind .list. than in the other rows .str."),
        ({"a": 1}, "is of another kind .dict."),
        (..., "is missing"),
    ],
)
def test_a_bad_row_is_told_with_file_and_row(value: Any, told: str) -> None:
    row = {"question": "1?", "answer": "1"}
    bad = {"question": "1?"} if value is ... else {**row, "answer": value}
    with pytest.raises(DataError, match=f"gsm8k.jsonl .test., row 3: answer {told}"):
        check_rows([row, row, bad], read_by(GSM), "gsm8k.jsonl (test)")
    check_rows([row, row], read_by(GSM), "gsm8k.jsonl (test)")
    check_rows([row, {**row, "answer": 1}, {**row, "answer": ""}], read_by(GSM), "gsm8k.jsonl (test)")
    check_rows([{**row, "unread": None}], read_by(GSM), "gsm8k.jsonl (test)")


def test_a_null_in_the_first_row_too() -> None:
    with pytest.raises(DataError, match="row 1: answer is null"):
        check_rows([{"question": "a", "answer": None}, {"question": "a", "answer": "b"}], read_by(GSM), "f (test)")
    check_rows([], ["question"], "f")
