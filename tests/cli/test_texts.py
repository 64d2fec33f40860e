"""Every command reads data in the same way, says what it took, and refuses a chat template before any work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.cli.test_app import call
from tests.tiny import brief_folder
from tests.tiny_run import tiny_recipe

from prunetune.cli.texts import parse_columns, placed, task_columns, with_columns
from prunetune.errors import RecipeError

THINK = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content.split('</think>')[-1] }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]<think>\n{% endif %}"
)
RAISES = "{{ raise_exception('not today') }}"


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for name, template in (("thinks", THINK), ("raises", RAISES)):
        brief_folder(folder / name)
        (folder / name / "chat_template.jinja").write_text(template)
    rows = [{"p": f"{i} + 1?", "s": f"<think>count</think>{i + 1}"} for i in range(120)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


@pytest.mark.parametrize("bad", ["question", "question=", "=p", "a=b,a=c", ""])
def test_columns_are_pairs(bad: str) -> None:
    with pytest.raises(RecipeError, match="pairs"):
        parse_columns(bad)


def test_columns_go_where_rows_are_read() -> None:
    assert parse_columns(None) == {}
    assert with_columns({"type": "file", "path": "x"}, "text = t")["columns"] == {"text": "t"}
    with pytest.raises(RecipeError, match="no columns to choose"):
        with_columns({"type": "demo"}, "text=t")
    wanted = {"mine": True, "gsm8k": True, "squad": False, "lm-eval:x": False}
    assert {n: bool(task_columns(n, "x.jsonl", "question=p")) for n in wanted} == wanted


COMMANDS: dict[str, list[Any]] = {
    "score": ["score", "MODEL", "--out", "OUT", "--samples", 8],
    "tune": ["tune", "sft", "MODEL", "OUT", "--samples", 8],
    "generate": ["generate", "MODEL", "OUT", "--verifier", "exact", "--n", 2, "--max-new-tokens", 2],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_columns_chat_and_what_is_said(capsys: pytest.CaptureFixture[str], at: Path, tmp_path: Path, name: str) -> None:
    def run(model: str, *more: Any) -> tuple[int, str, str]:
        places = {"MODEL": at / model, "OUT": tmp_path / "out"}
        words = [places.get(word, word) for word in COMMANDS[name]]
        return call(capsys, *words, "--data", at / "rows.jsonl", "--device", "cpu", *more)

    code, _, err = run("thinks")
    assert code == 2 and "--columns" in err and "p, s" in err.replace("'", "").replace("[", "").replace("]", "")
    code, _, err = run("raises", "--columns", "question=p,answer=s", "--chat")
    assert code == 2 and "not today" in err and "fix:" in err and not (tmp_path / "out").exists()
    code, _, err = run("thinks", "--columns", "question=p,answer=s")
    assert "taken: question = p, answer = s" in err and "has a chat template, and the prompt is plain" in err
    if name == "generate":
        assert code == 2 and "solved none" in err, "a random model answers nothing; all was read and asked"
    else:
        assert code == 0, err


def test_eval_tries_the_template_first(capsys: pytest.CaptureFixture[str], at: Path) -> None:
    task = [
        "--task",
        "mine",
        "--path",
        at / "rows.jsonl",
        "--verifier",
        "exact",
        "--columns",
        "question=p,answer=s",
        "--n",
        2,
    ]
    code, _, err = call(capsys, "eval", at / "raises", *task, "--chat", "--device", "cpu")
    assert code == 2 and "not today" in err
    code, out, err = call(capsys, "eval", at / "raises", *task, "--device", "cpu")
    assert code == 0 and "n = 2" in out and "--chat" in err


def test_a_dry_run_and_a_run_refuse_the_template(capsys: pytest.CaptureFixture[str], at: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    value = recipe.model_dump(mode="json") | {"model": str(at / "raises"), "prompt": {"template": "chat"}}
    type(recipe).parse(value).write(tmp_path / "recipe.yaml")
    for more in (["--dry-run"], []):
        code, _, err = call(capsys, "run", tmp_path / "recipe.yaml", "--out", tmp_path / "out", *more)
        assert code == 2 and "refuses: not today" in err
    assert not list((tmp_path / "out").glob("**/*.safetensors")), "before any work"


def test_a_model_that_cannot_be_cut_can_be_measured(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": 32}')
    assert placed("cpu", tmp_path) == "cpu"
