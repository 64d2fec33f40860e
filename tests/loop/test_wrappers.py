"""The loop on models with a vision tower: scored, cut, trained and measured on text; the wrapper comes out whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.tiny_run import rows, tiny_recipe
from tests.wrapped import with_image, wrapped_folder
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from prunetune.common.files import read_json
from prunetune.loop import loop
from prunetune.models.families.wrappers import WRAPPERS
from prunetune.models.shards import ShardReader, open_shards


def others(folder: Path, name: str) -> dict[str, torch.Tensor]:
    found = {}
    for path, infos in open_shards(folder).items():
        with ShardReader(path) as reader:
            found |= {n: reader.read(n) for n in infos if WRAPPERS[name].is_other(n)}
    return found


def finished(
    at: Path, name: str, recover: list[dict[str, Any]], more: dict[str, Any] | None = None, **prune: Any
) -> Path:
    wrapped_folder(at / "model", name)
    if name == "qwen3_vl":  # types differ, as where a tower was frozen while the rest was trained
        for path, infos in open_shards(at / "model").items():
            with ShardReader(path) as reader:
                read = {n: reader.read(n) for n in infos}
            save_file(
                {n: t if WRAPPERS[name].is_other(n) else t.bfloat16() for n, t in read.items()}, path, {"format": "pt"}
            )
    rows(at / "rows.jsonl", 40)
    settings = {"target": 0.85, "align": 4, "layers": 0, **({} if more else {"step": 0.1}), **prune}
    recipe = tiny_recipe(at, prune=settings, recover=recover, **(more or {}))
    loop.prune_tune_loop(recipe, at / "run")
    return at / "run" / "final"


CPT = {"type": "cpt", "samples": 8, "batch_size": 4, "learning_rate": 1e-3, "max_length": 32}
GRPO = {"type": "grpo", "samples": 2, "batch_size": 1, "group": 2, "max_length": 32, "max_new_tokens": 2}
RECOVERED, LOOPED = ("cpt", "grpo"), list(WRAPPERS)
"""What docs/families.md says of these models."""


@pytest.mark.parametrize("name", LOOPED)
def test_two_rounds(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With cpt and grpo, whose reference is the cut language model."""
    monkeypatch.setattr(loop, "write_report", lambda *_args, **_options: None)  # figures, which know of no wrapper
    final = finished(tmp_path, name, [CPT, GRPO])
    model = AutoModelForImageTextToText.from_pretrained(final)
    assert read_json(final / "config.json")["text_config"]["intermediate_size"] < 48
    with torch.no_grad():
        seen = model(**with_image(name), use_cache=False).logits
    assert bool(seen.isfinite().all())
    before, after = others(tmp_path / "model", name), others(final, name)
    assert before.keys() == after.keys() and all(torch.equal(t, after[n]) for n, t in before.items())
    stored = {n: info for infos in open_shards(final).values() for n, info in infos.items()}
    kinds = {info.dtype for n, info in stored.items() if not WRAPPERS[name].is_other(n)}
    assert kinds == {torch.bfloat16 if name == "qwen3_vl" else torch.float32}
    rounds = [read_json(p) for p in sorted((tmp_path / "run").glob("0*/stage.json"))]
    assert len(rounds) == 2
    for record in rounds:
        assert tuple(r["method"] for r in record["tune"]) == RECOVERED
        assert all(r["steps"] > 0 and r["tokens"] > 0 for r in record["tune"])


def test_as_recommended_a_probes_patch_is_the_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe folds the language model in memory; the round cuts the wrapper on disk."""
    monkeypatch.setattr(loop, "write_report", lambda *_args, **_options: None)
    more = {"extends": "recommended", "score": {"samples": 12, "held_out": 4, "max_length": 64}}
    final = finished(tmp_path, "qwen2_5_vl", [CPT], {**more, "damage_per_round": 100.0}, rounds="auto")
    (stage,) = (p.parent for p in (tmp_path / "run").glob("0*/stage.json"))
    probed = tmp_path / "run" / "decisions" / "01" / "patch.safetensors"
    assert probed.read_bytes() == (stage / "patch.safetensors").read_bytes()
    assert type(AutoModelForImageTextToText.from_pretrained(final)).__name__.startswith("Qwen2_5_VL")


@pytest.mark.parametrize(("name", "kind"), [("gemma3", "Gemma3ForCausalLM"), ("gemma4", "Gemma4ForCausalLM")])
def test_text_only(name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "write_report", lambda *_args, **_options: None)
    final = finished(tmp_path, name, [CPT], text_only=True, layers=1)
    assert type(AutoModelForCausalLM.from_pretrained(final)).__name__ == kind
    assert not others(final, name)
