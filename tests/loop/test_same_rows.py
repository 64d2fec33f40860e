"""Scoring, training, RL, evaluation and the Python calls see one and the same row, under a template that drops reasoning."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.tiny import tiny_folder, tiny_tokenizer

import prunetune
from prunetune.cli.texts import sequences_of
from prunetune.common.progress import Watch
from prunetune.data.stream import FileData, load_stream
from prunetune.models.folders import load_tokenizer
from prunetune.models.prompt import PromptFormat, prompt_ids
from prunetune.tune.training.batches import make_rows

DROPS = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content.split('</think>')[-1] }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]OPEN{% endif %}"
)


@pytest.mark.parametrize("opens", ["", "<think>\n"])
def test_every_room_sees_the_same_rows(tmp_path: Path, opens: str) -> None:
    folder = tiny_folder(tmp_path / "model")
    (folder / "chat_template.jinja").write_text(DROPS.replace("OPEN", opens))
    rows = [{"question": f"{i} + 1?", "answer": f"<think>\none more\n</think>\n\n{i + 1}"} for i in range(6)]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    tokenizer, fmt = load_tokenizer(folder), PromptFormat(template="chat")
    data = {"type": "file", "path": str(tmp_path / "r.jsonl")}
    _, scored, _ = sequences_of(folder, [data], samples=6, max_length=256, seed=0, chat=True, watch=Watch(quiet=True))
    examples = load_stream([FileData(path=data["path"])], 0).take(0, 6)
    trained = make_rows(tokenizer, examples, fmt, 256, completion_only=True).rows
    assert [list(r.ids) for r in trained] == scored
    in_memory = prunetune.batches(tokenizer, [vars(e) for e in examples], fmt=fmt, max_length=256)
    held = [
        ids[mask.bool()].tolist()
        for b in in_memory
        for ids, mask in zip(b["input_ids"], b["attention_mask"], strict=True)
    ]
    assert sorted(held) == sorted(scored)
    for example, ids in zip(examples, scored, strict=True):
        asked = prompt_ids(tokenizer, example.question, fmt)
        assert ids[: len(asked)] == asked, "evaluation and RL start from the row's own beginning"
        assert example.answer in tiny_tokenizer().decode(ids)
