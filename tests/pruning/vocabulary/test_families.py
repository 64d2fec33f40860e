"""The vocabulary of every family can be cut: plain transformers gives the same logits for the tokens that stay."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.pruning.vocabulary.test_folder import TASK
from tests.pruning.vocabulary.toy import file_of, toy
from tests.tiny import tiny_model
from transformers import AutoModelForCausalLM

from prunetune.models.families import FAMILIES
from prunetune.models.folders import check_model_folder
from prunetune.pruning.vocabulary.folder import cut_vocabulary, fit

CUT = list(FAMILIES)


@pytest.mark.parametrize("name", CUT)
def test_the_logits_of_what_stays(name: str, tmp_path: Path) -> None:
    tokenizer = toy("byte-level")
    model = tiny_model(name, vocab_size=len(file_of(tokenizer).tokens) + 8, pad_token_id=0)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    fitted = fit(tmp_path / "model", TASK[:8], align=8)
    cut_vocabulary(tmp_path / "model", fitted, tmp_path / "small")
    check_model_folder(tmp_path / "small")
    rows = torch.tensor(fitted.kept.rows)
    small = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    assert len(rows) == small.config.vocab_size < model.config.vocab_size
    ids = torch.randint(0, len(rows), (2, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    with torch.no_grad():
        found = small(ids, attention_mask=mask).logits
        wanted = model(rows[ids], attention_mask=mask).logits[..., rows]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
